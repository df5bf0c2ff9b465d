"""Replays a retail file into the shop's database: the transactions that the shop would have run, one for each invoice.

The changes are those of the embedded replay, in its order and with its row images, so that what is captured from here
lands as the same tables. How far it got stands in the database, in the very transaction that got there: a run that was
killed anywhere goes on exactly there. A digest of what was said is kept with it: another file is refused, an extension
of the same one goes on.

Errors: ShopReplayError (a connect.ShopDatabaseError)
          ├─ AnotherFile   the lines are not those (or an extension of those) that were replayed before
          ├─ NotEmpty      the tables hold rows that no replay wrote
          └─ Busy          another replay into this database goes on
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

import duckdb
import numpy as np
import pyarrow as pa

from streaming.capture.credentials import Address
from streaming.shop import order_lines
from streaming.shop_database.connect import Conflict, Database, Rejected, ShopDatabaseError, open_database
from streaming.shop_database.ddl import CLOCK, PROGRESS, SHOP, create_statements
from streaming.shop_database.durability import put_back, relaxed
from streaming.shop_database.statements import LeftOut, Transaction, left_out, stage_statements, transactions

__all__ = ["AnotherFile", "Busy", "NotEmpty", "Options", "Progress", "Report", "ShopReplayError", "replay_shop"]

# Lines whose statements are made together: about 60 MB of text.
_SLICE_LINES = 50_000
# Statements sent in one round trip; a transaction may span several.
_MESSAGE_CHARS = 256 * 1024
# Another replay that was killed may still have such a message carried out.
_LOCK_WAIT_S = 30
_LOCK_NUMBER = 0x48656164


class ShopReplayError(ShopDatabaseError):
    """The replay refused."""


class AnotherFile(ShopReplayError):
    """The lines are not those that were replayed before, nor an extension of those."""


class NotEmpty(ShopReplayError):
    """The tables hold rows that no replay wrote."""


class Busy(ShopReplayError):
    """Another replay into this database goes on."""


@dataclass(frozen=True)
class Options:
    """`until`: replay what landed by then (None: all). `rate`: rows a second (None: as fast as it goes).

    `relax_server`: let MariaDB's whole server not wait for the disk meanwhile; PostgreSQL needs no such permission.
    """

    until: datetime | None = None
    rate: float | None = None
    relax_server: bool = False


@dataclass(frozen=True)
class Progress:
    """Lines replayed so far of those to replay, and rows that this run has written."""

    lines: int
    of_lines: int
    rows: int


@dataclass(frozen=True)
class Report:
    """`lines` of the file's `input_lines` are replayed; `transactions` and `rows` are what this run wrote.

    `left_out` is what of those lines the database cannot hold. `last_event_at`: landing time of the last line replayed.
    """

    lines: int
    input_lines: int
    transactions: int
    rows: int
    left_out: tuple[LeftOut, ...]
    last_event_at: datetime | None


def replay_shop(
    lines: pa.Table,
    place: str | Address,
    options: Options | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Report:
    """Bring the database up to the lines (retail.LINE_SCHEMA) that landed by `until`. Raises ShopDatabaseError."""
    options, ordered = options or Options(), order_lines(lines)
    with open_database(place) as database, duckdb.connect() as connection:
        done, digest = _prepare(database)
        if done > lines.num_rows:
            raise _another_file(f"{lines.num_rows} lines, fewer than the {done} replayed before")
        stage_statements(connection, ordered, database.dialect)
        _expect_same(connection, ordered, done, digest)
        count = max(done, _landed_by(ordered, options.until))
        writer = _Writer(database, options.rate, digest, Progress(done, count, 0), on_progress)
        with relaxed(database, server=options.relax_server):
            for transaction in _transactions(connection, ordered, done + 1, count, done):
                writer.write(transaction)
            writer.finish()
        last_event = ordered["landed_at"][count - 1].as_py() if count else None
        refused = left_out(connection, count)
    return Report(count, lines.num_rows, writer.transactions, writer.at.rows, refused, last_event)


def _landed_by(ordered: pa.Table, until: datetime | None) -> int:
    if until is None:
        return int(ordered.num_rows)
    return int(np.searchsorted(_landed_us(ordered), pa.scalar(until, pa.timestamp("us")).value, side="right"))


def _landed_us(ordered: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    landed: np.ndarray[tuple[int], np.dtype[np.int64]] = ordered["landed_at"].combine_chunks().cast("int64").to_numpy()
    return landed


def _prepare(database: Database) -> tuple[int, str]:
    """Be alone, make what is missing; the lines that are done, and their digest."""
    _be_alone(database)
    for statement in create_statements(database.dialect, replay=True):
        database.script(statement)
    known = database.query(f"SELECT lines_done, digest FROM {PROGRESS} WHERE id = 1")
    if known:
        put_back(database)
        return int(known[0][0]), str(known[0][1])
    filled = [table.name for table in SHOP if database.query(f"SELECT 1 FROM {table.name} LIMIT 1")]
    if filled:
        raise NotEmpty(
            f"found rows in {', '.join(filled)} that no replay wrote: replay into an empty database, or remove them"
        )
    database.script(f"INSERT INTO {PROGRESS} (id, lines_done, digest) VALUES (1, 0, '')")
    return 0, ""


def _be_alone(database: Database) -> None:
    """Hold a lock for as long as the connection lives."""
    if database.dialect == "postgresql":
        database.script(f"SET lock_timeout = '{_LOCK_WAIT_S}s'")
        try:
            database.script(f"SELECT pg_advisory_lock({_LOCK_NUMBER})")
        except Conflict:
            raise _busy() from None
        database.script("SET lock_timeout = 0")
    elif database.query("SELECT get_lock(concat('headwater.replay.', database()), %s)", [_LOCK_WAIT_S]) != [(1,)]:
        raise _busy()


def _busy() -> Busy:
    return Busy(f"waited {_LOCK_WAIT_S} s for another replay into this database: let it end, or stop it")


def _transactions(
    connection: duckdb.DuckDBPyConnection, ordered: pa.Table, first: int, last: int, split_after: int
) -> Iterator[Transaction]:
    """The transactions of the lines at places first to last, made slice by slice, none of them cut by a slice."""
    starts = np.flatnonzero(ordered["starts_tx"].to_numpy()) + 1
    while first <= last:
        following = int(np.searchsorted(starts, first + _SLICE_LINES, side="left"))
        end = min(int(starts[following]) - 1 if following < len(starts) else last, last)
        yield from transactions(connection, first, end, split_after)
        first = end + 1


def _expect_same(connection: duckdb.DuckDBPyConnection, ordered: pa.Table, done: int, digest: str) -> None:
    """What these lines would have written so far is what was written."""
    found = ""
    for transaction in _transactions(connection, ordered, 1, done, done):
        found = _chained(found, transaction)
    if found != digest:
        raise _another_file(f"{ordered.num_rows} lines that do not begin with the {done} replayed before")


def _another_file(found: str) -> AnotherFile:
    return AnotherFile(
        f"the retail lines do not continue what is in the database: found {found}. Replay another file into another "
        "database, which may be on the same server"
    )


def _chained(digest: str, transaction: Transaction) -> str:
    said = (digest, transaction.event_at, transaction.landed_at, *transaction.statements)
    return hashlib.sha256("\0".join(said).encode()).hexdigest()


class _Writer:
    """Sends transactions, many in one round trip unless they are paced."""

    def __init__(
        self,
        database: Database,
        rate: float | None,
        digest: str,
        at: Progress,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.transactions, self.at = 0, at
        self._database, self._rate, self._digest, self._on_progress = database, rate, digest, on_progress
        self._said: list[str] = []
        self._chars = 0
        self._started = self._shown = time.monotonic()
        self._recorded = at.lines

    def write(self, transaction: Transaction) -> None:
        """Carry it out, now or with those that follow."""
        self._digest = _chained(self._digest, transaction)
        self.at = Progress(transaction.last_line, self.at.of_lines, self.at.rows + transaction.rows)
        if not transaction.statements:
            return
        self._wait()
        self._say("BEGIN", _clock(self._database, transaction), *transaction.statements, self._record(), "COMMIT")
        self.transactions += 1
        if self._rate:
            self._send()

    def finish(self) -> None:
        """Send what is left, and record lines of which nothing could be written."""
        if self._recorded != self.at.lines:
            self._say(self._record())
        self._send()
        self._on_progress(self.at)

    def _record(self) -> str:
        self._recorded = self.at.lines
        return f"UPDATE {PROGRESS} SET lines_done = {self.at.lines}, digest = '{self._digest}' WHERE id = 1"

    def _wait(self) -> None:
        if self._rate:
            due = self._started + self.at.rows / self._rate
            while (ahead := due - time.monotonic()) > 0:
                self._show()
                time.sleep(min(ahead, 1))

    def _say(self, *statements: str) -> None:
        for statement in statements:
            self._said.append(statement)
            self._chars += len(statement)
            if self._chars > _MESSAGE_CHARS:
                self._send()

    def _send(self) -> None:
        if self._said:
            message, self._said, self._chars = ";".join(self._said), [], 0
            try:
                self._database.script(message)
            except Rejected as error:
                raise Rejected(
                    f"{error}; the replay stopped before line {self.at.lines}: did somebody else write into its tables?"
                ) from error
        self._show()

    def _show(self) -> None:
        if time.monotonic() - self._shown >= 1:
            self._shown = time.monotonic()
            self._on_progress(self.at)


def _clock(database: Database, transaction: Transaction) -> str:
    columns = ("event_at", "landed_at", "tick")
    if database.dialect == "postgresql":
        otherwise = "ON CONFLICT (id) DO UPDATE SET " + ", ".join(f"{c} = excluded.{c}" for c in columns)
    else:
        otherwise = "ON DUPLICATE KEY UPDATE " + ", ".join(f"{c} = VALUES({c})" for c in columns)
    values = f"1, {transaction.event_at}, {transaction.landed_at}, {transaction.last_line}"
    return f"INSERT INTO {CLOCK} (id, {', '.join(columns)}) VALUES ({values}) {otherwise}"
