"""Replays a retail file into the change log, as if the shop's database had been captured while it happened.

The log says how far it got and the next run goes on from there, so a crash anywhere leaves nothing out and repeats
nothing. What the changes are is shop's, how they are written change's.

Errors: ReplayError
          └─ ReplayMismatchError   the lines are not those (or an extension of those) that were replayed before
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from streaming.change import envelope_sql
from streaming.locks import exclusive
from streaming.log import ChangeLog, TopicPartition
from streaming.replay_state import SYSTEM, ReplayState, digest, ends, last_landing, topics
from streaming.shop import LSN_STEP, TABLES, order_lines, stage_changes

__all__ = ["ReplayError", "ReplayMismatchError", "ReplayReport", "replay"]

# Lines whose changes are built and appended together: about 60 MB of envelopes in memory.
_SLICE_LINES = 100_000


class ReplayError(RuntimeError):
    """The replay refused."""


class ReplayMismatchError(ReplayError):
    """The lines are not those that were replayed before, nor an extension of those."""


@dataclass(frozen=True)
class ReplayReport:
    """`lines`: emitted so far, of `input_lines`; `appended`: changes that this run appended, by table.

    `last_event_at`: landing time of the newest change in the log; None when nothing has landed up to `until`.
    """

    lines: int
    input_lines: int
    appended: Mapping[str, int]
    last_event_at: datetime | None

    @property
    def changes(self) -> int:
        return sum(self.appended.values())


def replay(
    lines: pa.Table, log: ChangeLog, state_path: Path, until: datetime | None = None, *, slice_lines: int = _SLICE_LINES
) -> ReplayReport:
    """Append the changes of `lines` (retail.LINE_SCHEMA) that landed by `until` (None: all) and are not in the log yet.

    Writes `state_path` afterwards. Unchanged input appends nothing and builds no envelope. Raises ReplayMismatchError.
    """
    with exclusive(state_path.with_suffix(".lock")):
        state, given = ReplayState.load(state_path), digest(lines)
        if state and _nothing_to_do(state, given, log, until):
            return _unchanged(state, log, state_path)
        return _replay(lines, given, log, state_path, state, until, slice_lines)


def _nothing_to_do(state: ReplayState, given: str, log: ChangeLog, until: datetime | None) -> bool:
    held_back = datetime.fromisoformat(state.next_landing_at) if state.next_landing_at else None
    reached = held_back is None or (until is not None and until < held_back)
    log_fits = state.injected(log) or ends(log) == state.ends
    return state.input_digest == given and reached and log_fits


def _unchanged(state: ReplayState, log: ChangeLog, state_path: Path) -> ReplayReport:
    """An injection may have died between its append and its state: the log knows the clock."""
    newest = last_landing(log)
    if newest and newest.isoformat() != state.last_event_at:
        replace(state, last_event_at=newest.isoformat()).save(state_path)
    return ReplayReport(state.lines, state.input_lines, dict.fromkeys(TABLES, 0), newest)


def _replay(
    lines: pa.Table,
    given: str,
    log: ChangeLog,
    state_path: Path,
    state: ReplayState | None,
    until: datetime | None,
    slice_lines: int,
) -> ReplayReport:
    ordered, before = order_lines(lines), ends(log)
    injected = state is not None and state.injected(log)
    if state and state.injections and not injected:  # announced, but died before it appended anything
        state = replace(state, injections=())
        state.save(state_path)
    done = _lines_done(state, before, ordered, state_path)
    count = max(done, _landed_by(ordered, until))
    if injected and count > done:
        raise _mismatch(state_path, f"{count - done} further lines, but changes were injected after the first {done}")
    if count == 0:
        return ReplayReport(0, lines.num_rows, dict.fromkeys(TABLES, 0), None)
    if not injected:
        _emit(ordered.slice(0, count), log, before, state_path, slice_lines)
    after = ends(log)
    newest = last_landing(log)
    assert newest is not None  # count > 0: there is a record
    ReplayState(
        input_digest=given,
        input_lines=lines.num_rows,
        digest=digest(ordered.slice(0, count)),
        lines=count,
        ends=state.ends if state and state.injections else after,
        last_event_at=newest.isoformat(),
        next_landing_at=ordered["landed_at"][count].as_py().isoformat() if count < ordered.num_rows else None,
        injections=state.injections if state else (),
    ).save(state_path)
    return ReplayReport(count, lines.num_rows, {t: after[t] - before[t] for t in TABLES}, newest)


def _lines_done(state: ReplayState | None, in_log: Mapping[str, int], ordered: pa.Table, state_path: Path) -> int:
    """How many lines the log has already: one order_lines record each. Raises ReplayMismatchError."""
    if state and (state.lines > ordered.num_rows or digest(ordered.slice(0, state.lines)) != state.digest):
        raise _mismatch(
            state_path, f"{ordered.num_rows} lines that do not begin with the {state.lines} replayed before"
        )
    done = state.lines if state and state.injections else in_log["order_lines"]
    if done > ordered.num_rows:
        raise _mismatch(state_path, f"{ordered.num_rows} lines, fewer than the {done} in the log")
    if state and done < state.lines:
        raise _mismatch(state_path, f"a log of {done} order lines, of which {state.lines} were replayed before")
    return done


def _landed_by(ordered: pa.Table, until: datetime | None) -> int:
    if until is None:
        return int(ordered.num_rows)
    landed_us = ordered["landed_at"].combine_chunks().cast(pa.int64()).to_numpy()
    limit_us = pa.scalar(until, pa.timestamp("us")).cast(pa.int64()).as_py()
    return int(np.searchsorted(landed_us, limit_us, side="right"))


def _emit(ordered: pa.Table, log: ChangeLog, in_log: Mapping[str, int], state_path: Path, slice_lines: int) -> None:
    """Append what is missing, slice by slice, each with all of its topics in one append."""
    with duckdb.connect() as connection:
        stage_changes(connection, ordered)
        after_lsn = {table: _position(connection, table, log, in_log[table], state_path) for table in TABLES}
        for first, last in _slices(min(after_lsn.values()) // LSN_STEP, ordered.num_rows, slice_lines):
            batches = {
                topic: _envelopes(connection, table, max(after_lsn[table], first * LSN_STEP - 1), last * LSN_STEP)
                for table, topic in topics().items()
            }
            log.append({topic: batch for topic, batch in batches.items() if batch.num_rows})


def _slices(done: int, total: int, size: int) -> Iterator[tuple[int, int]]:
    """Places [first, last) in the stream from the one after `done` on."""
    for first in range(max(done, 1), total + 1, size):
        yield first, min(first + size, total + 1)


def _envelopes(connection: duckdb.DuckDBPyConnection, table: str, after_lsn: int, before_lsn: int) -> pa.Table:
    changes = f"(FROM {table} WHERE lsn > {after_lsn} AND lsn < {before_lsn})"
    return connection.sql(envelope_sql(changes, system=SYSTEM, table=table)).to_arrow_table()


def _position(connection: duckdb.DuckDBPyConnection, table: str, log: ChangeLog, count: int, state_path: Path) -> int:
    """The lsn of the table's change that is last in the log, which must be the very same record; -1 for none."""
    if count == 0:
        return -1
    found = connection.sql(f"SELECT lsn FROM {table} ORDER BY lsn LIMIT 1 OFFSET {count - 1}").fetchall()
    in_log = log.read(TopicPartition(topics()[table], 0), count - 1, 1)["value"]
    if not found or _envelopes(connection, table, found[0][0] - 1, found[0][0] + 1)["value"] != in_log:
        raise _mismatch(state_path, f"lines whose change {count - 1} of {table} is not the one in the log")
    return int(found[0][0])


def _mismatch(state_path: Path, found: str) -> ReplayMismatchError:
    return ReplayMismatchError(
        f"the retail lines do not continue what {state_path.parent} was built from: found {found}. A log of changes "
        "cannot be rewritten: set HEADWATER_HOME to a new directory for another file"
    )
