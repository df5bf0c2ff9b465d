"""Follows the binary log: events in, rows into the sink, one transaction after the other.

The log has committed transactions only, each in one piece, so a row can go on as soon as it is read and no transaction
is ever held in memory. Four things in it are not what they seem: a prepared XA transaction is there with its rows long
before it is known whether it is committed, and is read again then; a statement that was logged as such changes rows
that nobody can see; where engines are mixed, ROLLBACK TO follows rows that then never were; and DDL changes or moves
rows without a word. The second and third stop us, the last has the table read anew.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace

import orjson

from streaming.capture.errors import Halt, Retryable
from streaming.capture.sink import Sink, Table
from streaming.mysql import events
from streaming.mysql.alterations import Alterations
from streaming.mysql.events import BODY, HEADER, Begin
from streaming.mysql.positions import GtidState, Resume, extended, place
from streaming.mysql.rows import hand_over, set_clock
from streaming.mysql.statements import Statement, read_statement
from streaming.mysql.tables import Followed, Tables

__all__ = ["Stream"]

_NULL = b"null"
_NONE = Begin(None, "")


class Stream:
    """Where we are in the binary log, and what to do with the next event.

    `again` reads events of the log once more: (file, start, end).
    """

    def __init__(
        self,
        sink: Sink,
        tables: Tables,
        resume: Resume,
        again: Callable[[str, int, int], Iterable[bytes]],
        *,
        server: str,
        by_gtid: bool = False,
    ) -> None:
        """`by_gtid`: the log was asked for by transactions, so `resume` says nothing about where in it we are."""
        self.alterations = Alterations(sink, tables, self._begin)
        self.in_group = False
        self._sink, self._tables, self._again = sink, tables, again
        self._file, self._pos, self._born = resume.file, resume.pos, 0 if by_gtid else resume.born
        self._server = server
        self._passed = -resume.pos
        self._placed = not by_gtid
        self._state, self._before, self._written = GtidState.parse(resume.gtid), resume.before, resume.written
        self._prepared = dict(resume.prepared)
        self._checksum = False
        self._maps: dict[bytes, Followed | None] = {}
        # Of the event at hand: when it was written, by which server, where it begins.
        self._when, self._writer, self._start = 0, 0, 0
        # Of the transaction at hand.
        self._tx, self._begun, self.clocked = _NONE, False, False
        self._group_start, self._commit, self._event_us, self._rows = 0, 0, 0, 0
        self._ends_with_statement = False
        self._savepoints: dict[str, int] = {}
        self._handlers = self._by_kind()

    def _by_kind(self) -> dict[int, Callable[[bytes, int, int], None]]:
        return {
            **dict.fromkeys(events.ROWS, self._on_rows),
            events.TABLE_MAP: self._on_table_map,
            events.GTID: self._on_gtid,
            events.MYSQL_GTID: self._on_mysql_gtid,
            events.MYSQL_ANONYMOUS: self._on_mysql_gtid,
            events.XID: self._on_xid,
            events.QUERY: self._on_query,
            events.QUERY_COMPRESSED: self._on_query,
            events.XA_PREPARE: self._on_xa_prepare,
            events.ROTATE: self._on_rotate,
            events.FORMAT: self._on_format,
            events.HEARTBEAT: self._on_heartbeat,
            **dict.fromkeys((events.GTID_LIST, events.BINLOG_CHECKPOINT), self._on_passed),
            events.INCIDENT: self._on_incident,
            events.PARTIAL_UPDATE: self._on_unreadable,
            events.TRANSACTION_PAYLOAD: self._on_unreadable,
        }

    @property
    def file(self) -> str:
        """Which file of the log is read."""
        return self._file

    @property
    def pos(self) -> int:
        """How far it was read."""
        return self._pos

    @property
    def place(self) -> int:
        """How far the log was read, as the sink's positions."""
        return place(self._file, self._pos)

    @property
    def read_bytes(self) -> int:
        """How much of the log has gone by."""
        return self._passed + self._pos

    @property
    def is_placed(self) -> bool:
        """Whether it is known in which file of the log we are, and when that was begun."""
        return bool(self._born)

    def resume(self) -> Resume:
        """From where to go on after the transaction that was read last."""
        return Resume(
            self._file,
            self._pos,
            str(self._state),
            self._before,
            self._born,
            self._written,
            self._server,
            dict(self._prepared),
        )

    def take(self, event: bytes) -> bool:
        """Do what the event says. Returns whether it was of the log, and not only a sign of life."""
        self._when, kind, self._writer, size, low, flags = HEADER.unpack_from(event, 1)
        end = self._checked(event, kind, bool(flags & events.ARTIFICIAL))
        if low and not flags & events.ARTIFICIAL:
            self._pos = extended(low, self._pos)
            self._start = self._pos - size
        handler = self._handlers.get(kind)
        if handler is not None:
            handler(event, kind, end)
        return bool(kind != events.HEARTBEAT)

    def _checked(self, event: bytes, kind: int, artificial: bool) -> int:
        """Where the body ends, once its checksum is found right."""
        end = len(event) - 4
        if kind == events.FORMAT:  # it says whether the others have one, and has one itself
            self._checksum = event[end - 1] == 1
        made_up = artificial or kind == events.HEARTBEAT
        if not self._checksum and not made_up:
            return end if kind == events.FORMAT else len(event)
        if zlib.crc32(memoryview(event)[1:end]) == int.from_bytes(event[end:], "little"):
            return end
        if made_up:  # whether these have one depends on the server's version
            return len(event)
        raise Retryable(f"an event of {self._file} after {self._pos} came with a wrong checksum")

    # Files

    def _on_rotate(self, event: bytes, _: int, end: int) -> None:
        file, position = events.read_rotate(event, end)
        if (file, position) != (self._file, self._pos):
            self._passed += self._pos - position
            self._file, self._pos, self._born = file, position, 0
            self._maps.clear()
            self._moved()

    def _on_format(self, _: bytes, __: int, ___: int) -> None:
        if self._born != self._when:
            self._born = self._when
            self._moved()

    def _on_heartbeat(self, event: bytes, _: int, end: int) -> None:
        """Nothing is left to send: everything up to here was."""
        before = self._pos
        self._pos = extended(HEADER.unpack_from(event, 1)[4], before)
        if not self._placed or self._pos != before:
            self._placed = True
            self._moved()

    def _on_passed(self, _: bytes, __: int, ___: int) -> None:
        """Nothing of ours, but the log may end here."""
        self._moved()

    def _moved(self) -> None:
        if self._placed and not self.in_group:
            self._sink.advance(self.place, self.resume().token())

    def _on_incident(self, event: bytes, _: int, __: int) -> None:
        raise Halt(
            f"the server says in {self._file} at {self._start} that changes are missing from its binary log",
            "Start again with --from-scratch, which reads every table anew",
            "mariadb_binlog_gap",
        )

    def _on_unreadable(self, event: bytes, kind: int, _: int) -> None:
        raise Halt(
            f"{self._file} at {self._start} has an event of type {kind}, which cannot be read",
            "SET GLOBAL binlog_transaction_compression = OFF, binlog_row_value_options = '', and start again with "
            "--from-scratch",
            "mariadb_settings",
        )

    # Transactions

    def _on_gtid(self, event: bytes, _: int, __: int) -> None:
        self._group(events.read_gtid(event, self._writer))

    def _on_mysql_gtid(self, event: bytes, _: int, end: int) -> None:
        self._group(events.read_mysql_gtid(event, end))

    def _group(self, begin: Begin) -> None:
        self._tx, self.in_group, self._begun, self._rows = begin, True, False, 0
        self._group_start, self._commit = self._start, self.place
        self._event_us = begin.commit_us or self._when * 1_000_000
        self._ends_with_statement = begin.standalone
        self._savepoints.clear()

    def _begin(self) -> None:
        """Tell the sink, when the first thing comes that it has to know."""
        if self._begun:
            return
        self._begun = True
        gtid = self._tx.name.encode()
        source = b',"server_id":%d,"gtid":%b,"file":%b,"thread":null,"query":null' % (
            self._writer,
            b'"%b"' % gtid if gtid else _NULL,
            orjson.dumps(self._file),
        )
        name = gtid or f"file={self._file},pos={self._group_start}".encode()
        self._sink.begin(self._commit, name, self._commit, self._event_us, source)

    def _end(self) -> None:
        if self._tx.gtid is not None:
            self._before = str(self._state)
            self._state.add(self._tx.gtid)
        self._written = self._when
        self._placed = True
        self.in_group = False
        token = self.resume().token()
        if self._begun:
            self._begun = False
            self._sink.end(self.place, token)
        else:
            self._sink.advance(self.place, token)
        if self.clocked:
            self.clocked = False
            self._sink.tick()

    def _on_xid(self, _: bytes, __: int, ___: int) -> None:
        self._end()

    # Statements

    def _on_query(self, event: bytes, kind: int, end: int) -> None:
        found = events.read_query(event, end, compressed=kind == events.QUERY_COMPRESSED)
        sql = found.sql
        if sql == "COMMIT":
            self._end()
            return
        first, _, rest = sql.partition(" ")
        if first in ("BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK", "XA"):
            self._on_control(first, rest)
        else:
            statement = read_statement(sql, found.schema)
            if statement.changes:
                self._refuse_statement(statement, sql)
            self.alterations.apply(statement, self._commit, b',"pos":%d,"row":0' % self._start)
        if self._ends_with_statement:
            self._end()

    def _on_control(self, first: str, rest: str) -> None:
        if first == "BEGIN":  # MySQL's: in MariaDB the GTID event itself begins what has several statements
            self._ends_with_statement = False
        elif first == "SAVEPOINT":
            self._savepoints[rest] = self._rows
        elif first == "ROLLBACK":
            self._on_rollback(rest)
        elif first == "XA":
            verb, _, xid = rest.partition(" ")
            if verb == "START":
                self._tx, self._ends_with_statement = replace(self._tx, prepares=True), False
            elif verb in ("COMMIT", "ROLLBACK"):
                self._on_xa_end(verb, xid.upper())

    def _on_rollback(self, rest: str) -> None:
        kept = self._savepoints.get(rest.removeprefix("TO "), 0) if rest else 0
        if self._rows > kept:
            raise Halt(
                f"the transaction {self._tx.name} in {self._file} at {self._group_start} was partly rolled back after "
                "its rows were logged, which happens when it changes tables of engines with and without transactions",
                "ALTER TABLE ... ENGINE = InnoDB for the tables of other engines, and start again with --from-scratch",
                "mariadb_rolled_back",
            )
        if not rest:
            self._end()

    def _refuse_statement(self, statement: Statement, sql: str) -> None:
        """A change of rows that was logged as its text: which rows it changed, the log does not say."""
        words = {self._tables.fold(word) for word in statement.words}
        if words.isdisjoint({name.partition(".")[2] for name in self._tables.names}):
            return
        raise Halt(
            f"{self._file} at {self._start} has a change as a statement and not as rows ({sql[:80]!r}...)",
            "SET GLOBAL binlog_format = ROW, let no session set another, and start again with --from-scratch, which "
            "reads every table anew",
            "mariadb_statement",
        )

    # Prepared transactions (XA)

    def _on_xa_prepare(self, event: bytes, _: int, __: int) -> None:
        """Its rows are in the log, but whether they will ever be true is not: remember where they are."""
        rows = (self._file, self._group_start, self._pos)
        if event[BODY]:  # in one phase: it is committed
            self._tx = replace(self._tx, prepares=False)
            self._replay(*rows)
        else:
            self._prepared[events.read_xid(event)] = rows if self._rows else ("", 0, 0)
        self._end()

    def _on_xa_end(self, verb: str, xid: str) -> None:
        found = self._prepared.pop(xid, None)
        if found is None and verb == "COMMIT":  # prepared before we began: its rows are where nobody knows
            self._begin()
            for name in self._tables.names.values():
                self._sink.reread(name)
        elif found is not None and found[0] and verb == "COMMIT":
            self._replay(*found)

    def _replay(self, file: str, start: int, end: int) -> None:
        """The rows of a prepared transaction, now that it is committed, as part of this one."""
        kept = self._maps, self._checksum, self._start
        self._maps = {}
        for event in self._again(file, start, end):
            _, kind, _, size, low, flags = HEADER.unpack_from(event, 1)
            stop = self._checked(event, kind, bool(flags & events.ARTIFICIAL))
            self._start = low - size
            if kind == events.TABLE_MAP:
                self._on_table_map(event, kind, stop)
            elif kind in events.ROWS:
                self._on_rows(event, kind, stop)
        self._maps, self._checksum, self._start = kept

    # Rows

    def _on_table_map(self, event: bytes, _: int, end: int) -> None:
        found = self._maps[event[BODY : BODY + 6]] = self._tables.follow(event[BODY + 6 : end])
        if found is not None and not found.is_clock and not self._tx.prepares:
            self._look(found)

    def _look(self, found: Followed) -> Table:
        """The sink's table, told first when it looks different from before."""
        name = found.schema.name
        table = self._sink.tables.get(name)
        if table is None or (table.schema is not found.schema and table.schema != found.schema):
            self._begin()
            table = self._sink.schema(found.schema)
        found.schema = table.schema
        self.alterations.pending.pop(name, None)
        return table

    def _on_rows(self, event: bytes, kind: int, end: int) -> None:
        followed = self._maps.get(event[BODY : BODY + 6])
        if followed is None:
            return
        self._rows += 1
        if self._tx.prepares:
            return
        rows = events.read_rows(event, kind, end)
        if rows.partial:
            raise _partial(followed.schema.name, self._file, self._start)
        self._begin()
        if not followed.is_clock:
            hand_over(self._sink, followed, rows, kind, self._start)
        elif kind not in events.DELETES:
            set_clock(self._sink, followed, rows)
            self.clocked = True


def _partial(name: str, file: str, position: int) -> Halt:
    return Halt(
        f"{file} at {position} has rows of {name} with only some of their columns",
        "SET GLOBAL binlog_row_image = FULL, let no session set another, and start again with --from-scratch, which "
        "reads every table anew",
        "mariadb_settings",
    )
