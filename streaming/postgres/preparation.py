"""Before streaming: checks, publication, slot, and whether the server still has what the checkpoint needs."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import psycopg

from streaming.capture.checkpoint import Checkpoint
from streaming.capture.errors import Halt, Retryable, sift
from streaming.capture.source import Retained
from streaming.capture.tables import TableSchema
from streaming.postgres import setup
from streaming.postgres.catalog import Catalog, Description
from streaming.postgres.checks import (
    ServerState,
    check_identities,
    check_server,
    check_tables,
    quoted,
    server_state,
)
from streaming.postgres.connect import Server
from streaming.postgres.pgoutput import lsn_text
from streaming.postgres.retained import end_of_log, measured
from streaming.postgres.setup import Slot
from streaming.postgres.stream import ServerIdentity, Stream
from streaming.postgres.watch import Due, Marks, remembering, to_read_anew

__all__ = ["CLOCK", "Look", "Preparation", "Prepared"]

CLOCK = "headwater_clock"
"""The table that says when a replayed transaction happened and became known; written first in it, never emitted."""

_STATEMENT_TIMEOUT_S, _LOCK_TIMEOUT_S = 60, 30
# A walsender whose client has vanished keeps the slot until wal_sender_timeout; this much longer is somebody else.
_GRACE_S = 15.0
# A client's word that is this much younger than our first look is not of one that had vanished by then.
_FRESH_S = 2.0


@dataclass(frozen=True)
class Prepared:
    """What streaming begins with. `due`: tables to read anew."""

    state: ServerState
    slot: Slot
    schemas: tuple[TableSchema, ...]
    marks: Marks
    due: dict[str, Due]


@dataclass(frozen=True)
class Look:
    """How things are at a position of the server's log: what it keeps for us, and the tables."""

    retained: Retained
    tables: dict[str, Description]
    position: int


class Preparation:
    """Over an ordinary connection, which later serves the stream's questions about the catalog."""

    def __init__(
        self, server: Server, tables: Sequence[str], slot: str, publication: str, say: Callable[[str], None]
    ) -> None:
        self._server, self._tables, self._say = server, tuple(tables), say
        self._slot, self._publication = slot, publication
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._occupied: tuple[float, float] | None = None
        self._known: set[str] = set()
        self.refused: dict[str, Halt] = {}

    def connect(self) -> ServerState:
        """Connect, and check what has to be so before a walsender can be asked for."""
        self.close()
        self._connection = self._server.session(
            statement_timeout_s=_STATEMENT_TIMEOUT_S, lock_timeout_s=_LOCK_TIMEOUT_S
        )
        self._state = state = server_state(self.query)
        check_server(state)
        self.catalog = Catalog(self._publication, state.version, checked_encoding=state.encoding != "SQL_ASCII")
        return state

    def wanted(self, name: str) -> bool:
        """Whether a table of that name is to be captured."""
        return name in self._tables and name not in self.refused

    def is_clock(self, name: str) -> bool:
        """Whether a table of that name is a replay's clock."""
        return name in self._clocks

    @property
    def _clocks(self) -> set[str]:
        return {f"{name.partition('.')[0]}.{CLOCK}" for name in self._tables}

    def prepare(self, checkpoint: Checkpoint | None, identity: ServerIdentity, stream: Stream) -> Prepared:
        """Raises Halt for what a person must decide, Retryable while another process holds the slot."""
        state = self._state
        everything = self._named({*self._tables, *self._clocks})
        self._known = set(checkpoint.tables) if checkpoint else set()
        fit = self._fit(everything)
        found = [everything[name] for name in fit]
        clocks = [everything[name] for name in self._clocks & everything.keys()]
        added = [one for one in [*found, *clocks] if not one.is_published]
        slot = self._check_slot(checkpoint)
        if checkpoint is not None:
            _check_history(checkpoint, identity, stream)
        if added:
            setup.publish(self.query, self.execute, self._publication, added)
            everything = self._named(self._tables)
            found = [everything[one.name] for one in found if one.name in everything]
        slot = slot or self._make_slot()
        marks, due = self._marks(found, checkpoint)
        schemas = tuple(self.catalog.schema(self.query, one)[0] for one in found)
        return Prepared(state, slot, schemas, marks, due)

    def _fit(self, everything: Mapping[str, Description]) -> list[str]:
        """The tables to capture. One that was captured before may go; one that never was there is a mistake."""
        gone = [name for name in self._tables if name not in everything and name in self._known]
        for name in gone:
            self._say(f"{name} is gone: captured are the others (docs/runbooks/postgresql_tables.md)")
        before = {name: f"{error}" for name, error in self.refused.items()}
        there = [name for name in self._tables if name not in gone]
        fit, self.refused = sift(there, lambda names: self._check_tables(everything, names))
        for name, error in self.refused.items():
            if before.get(name) != f"{error}":
                self._say(f"{name} is not captured, the other tables are: {error}")
        return fit

    def _check_tables(self, everything: Mapping[str, Description], names: Iterable[str]) -> None:
        """Raises Halt that lists what is wrong with them, or with what all of them need."""
        self._check_missing([name for name in names if name not in everything and name not in self._known])
        found = [everything[name] for name in (*names, *self._clocks) if name in everything]
        exists = setup.has_publication(self.query, self._publication)
        added = [one for one in found if not one.is_published]
        if exists:  # first: who may not alter the publication need not own the tables either
            setup.check_owner(self.query, self._state, self._publication, added)
        check_tables(self.query, self._state, found, [*(one.name for one in added), *([] if exists else [""])])
        check_identities(found)
        if exists:
            setup.check_publication(self.query, self._publication, found)
            setup.check_filters(self._publication, found)

    def _check_missing(self, missing: Sequence[str]) -> None:
        if missing:
            there = [name for (name,) in self.query(_NAMES_SQL, ())]
            near = {name: difflib.get_close_matches(name, there, 1) for name in missing}
            hints = [f"{name}{f' (there is {close[0]})' if close else ''}" for name, close in near.items()]
            raise Halt(
                f"{self._server.address} has no table {', '.join(hints)}",
                "Correct its name in catalog/sources, or remove it there",
                "postgresql_tables",
            )

    def _check_slot(self, checkpoint: Checkpoint | None) -> Slot | None:
        slot = setup.read_slot(self.query, self._slot, self._state.version)
        if slot is None:
            if checkpoint is not None:
                raise Halt(
                    f"slot {self._slot} is gone: changes after {_at(checkpoint)} may be lost",
                    "Capture with `--from-scratch`: the slot is made anew, and every table is read again",
                    "postgresql_slot_missing",
                )
            return None
        setup.check_slot(slot, self._slot, self._state)
        self._check_occupied(slot)
        if checkpoint is not None and slot.confirmed > int(checkpoint.resume["lsn"]):
            raise Halt(
                f"slot {self._slot} stands at {lsn_text(slot.confirmed)}, beyond what is in the log "
                f"({_at(checkpoint)}): somebody else has read it, or it was made anew, and changes are lost",
                "Let nobody else use it, and capture with `--from-scratch`: every table is read again",
                "postgresql_slot_ahead",
            )
        return slot

    def _check_occupied(self, slot: Slot) -> None:
        """Our own former process may still be dying; another one that is alive has spoken since we first looked."""
        if slot.reader_pid is None:
            self._occupied = None
            return
        now = time.monotonic()
        since, first = self._occupied = self._occupied or (now, time.time())
        alive = slot.replied_at is not None and slot.replied_at > first + _FRESH_S
        found = f"slot {self._slot} is read by process {slot.reader_pid} of the server, for {slot.reader or 'others'}"
        if alive or now - since > self._state.sender_timeout_ms / 1000 + _GRACE_S:
            raise Halt(
                found,
                "Only one connector may run for a system: stop the other one, or this one",
                "postgresql_slot_in_use",
            )
        raise Retryable(f"{found}, which may be a former run of ours that has not ended yet")

    def _make_slot(self) -> Slot:
        self._say(f"making slot {self._slot}; it waits for the transactions that are writing at the moment")
        self.execute("SET statement_timeout = 0")
        setup.create_slot(self.query, self._slot, self._state.version)
        self.execute(f"SET statement_timeout = {_STATEMENT_TIMEOUT_S * 1000}")
        slot = setup.read_slot(self.query, self._slot, self._state.version)
        if slot is None:
            raise Retryable(f"slot {self._slot} was dropped as soon as it was made")
        return slot

    def _marks(self, found: Iterable[Description], checkpoint: Checkpoint | None) -> tuple[Marks, dict[str, Due]]:
        """Tables that were captured before keep their mark until the stream has passed what happened to them since."""
        known: Marks = dict(checkpoint.resume.get("tables", {})) if checkpoint else {}
        marks: Marks = {}
        due: dict[str, Due] = {}
        for one in found:
            marks[one.name] = one.mark
            if checkpoint is None or one.name not in checkpoint.tables:
                continue
            mark = known.get(one.name)
            if mark is not None:
                marks[one.name] = remembering(mark, one.mark)
            anew = to_read_anew(mark, one, end_of_log(self.query))
            if anew is None:
                continue
            why, due[one.name] = anew
            self._say(f"{one.name}: {why}")
            del marks[one.name]
            if mark is not None:
                marks[one.name] = mark
        return marks, due

    def start(self, stream: Stream, position: int) -> None:
        """Begin to stream."""
        stream.start(self._slot, self._publication, position)
        self._occupied = None

    def own_transaction_id(self) -> int:
        """A transaction's id, in 64 bits: all that are younger begin after this."""
        ((found,),) = self.query("SELECT pg_current_xact_id()::text::int8", ())
        return int(found)

    def look(self) -> Look:
        """See how things are. Raises Halt when the slot is lost."""
        slot = setup.read_slot(self.query, self._slot, self._state.version)
        if slot is None:
            raise setup.dropped(self._slot)
        setup.check_slot(slot, self._slot, self._state)
        tables = self._named(self._tables)
        self._look_at_refused(tables)
        tables = {name: one for name, one in tables.items() if name not in self.refused}
        if setup.has_publication(self.query, self._publication):
            setup.check_publication(self.query, self._publication, list(tables.values()))
            setup.check_filters(self._publication, tables.values())
        end = end_of_log(self.query)
        return Look(measured(self.query, slot, end), tables, end)

    def looks(self, names: Collection[str]) -> tuple[Sequence[TableSchema], int]:
        """How these tables look, of those that are there, and where the log ends after that. Raises Retryable."""
        schemas = [self.catalog.schema(self.query, one)[0] for one in self._named(names).values()]
        return schemas, end_of_log(self.query)

    def _look_at_refused(self, tables: Mapping[str, Description]) -> None:
        """Raises Retryable for one that can be captured by now."""
        for name in self.refused:
            try:
                self._check_tables(tables, [name])
            except Halt as error:
                self.refused[name] = error
                continue
            raise Retryable(f"{name} can be captured now: it is taken in")

    def _named(self, names: Iterable[str]) -> dict[str, Description]:
        """As they are at one instant: a column's new version beside the files of before hides that it was rewritten."""
        self.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            return self.catalog.named(self.query, names)
        finally:
            self.execute("COMMIT")

    def query(self, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The rows of a statement; none if it has no result. Raises Retryable, Halt."""
        return self._run(statement, parameters, "read the catalog")

    def execute(self, statement: str) -> None:
        """Carry out a statement. Raises Retryable, Halt."""
        self._run(statement, (), f"carry out {statement}")

    def _run(self, statement: str, parameters: Sequence[Any], doing: str) -> list[tuple[Any, ...]]:
        assert self._connection is not None, "connect comes first"
        try:
            cursor = self._connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise self._server.problem(error, doing) from None

    def copy_out(self, select: str, schemas: Sequence[str]) -> list[bytes] | None:
        """See rows_now. Raises Retryable, Halt."""
        assert self._connection is not None, "connect comes first"
        # SQL_ASCII: as it is stored, for what is not UTF-8 would be an error.
        encoding = " (ENCODING SQL_ASCII)" if self._state.encoding == "SQL_ASCII" else ""
        statement = f"COPY ({select}) TO STDOUT{encoding}".encode()
        try:
            with self._connection.transaction() if schemas else nullcontext(), self._connection.cursor() as cursor:
                if schemas:
                    path = ", ".join(map(quoted, ("pg_catalog", *schemas)))
                    cursor.execute(f"SET LOCAL search_path = {path}".encode())
                with cursor.copy(statement) as copy:
                    return b"".join(copy).split(b"\n")[:-1]
        except (psycopg.ProgrammingError, psycopg.DataError) as error:
            if isinstance(error, psycopg.errors.InsufficientPrivilege):
                raise self._server.problem(error, "read the row of an UPDATE") from None
            return None
        except psycopg.Error as error:
            raise self._server.problem(error, "read the row of an UPDATE") from None

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


_NAMES_SQL = """
SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
"""


def _check_history(checkpoint: Checkpoint, identity: ServerIdentity, stream: Stream) -> None:
    """Raises Halt when the server's log is not the continuation of what was captured."""
    position, timeline = int(checkpoint.resume["lsn"]), int(checkpoint.resume["timeline"])
    end, found = identity.position, f"it stands at {lsn_text(identity.position)}"
    if identity.timeline != timeline:
        # A promoted standby: what the former server wrote after the switch is not part of its history.
        end = stream.switches(identity.timeline).get(timeline, 0)
        found = f"its timeline {identity.timeline} left ours ({timeline}) at {lsn_text(end)}"
    if position > end:
        raise Halt(
            f"the server does not have what was captured from it: the log has its changes up to {_at(checkpoint)}, and "
            f"{found}. It was restored from a backup, or a standby was promoted that had not received all",
            "Capture with `--from-scratch`: every table is read again",
            "postgresql_server_behind",
        )


def _at(checkpoint: Checkpoint) -> str:
    return lsn_text(int(checkpoint.resume["lsn"]))
