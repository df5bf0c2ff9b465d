"""Reads tables as of an instant whose place in the binary log is known exactly.

START TRANSACTION WITH CONSISTENT SNAPSHOT stops MariaDB's commits for a moment to open the snapshot and to note the
place that the log has reached: every transaction up to it is in the snapshot, none after it is. The rows are asked for
in the order of the primary key, which is the order in which the server compares it, whatever its collation; where to
go on is kept as the key's raw bytes, and put into the next query as such.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from streaming.capture.errors import CaptureError, Halt, Retryable
from streaming.capture.source import Chunk
from streaming.capture.tables import TableSchema
from streaming.mysql.connect import Database
from streaming.mysql.decoders import Column, TextRows
from streaming.mysql.dictionary import Described, Dictionary, identifier, quoted
from streaming.mysql.packets import Packets
from streaming.mysql.positions import place
from streaming.mysql.table_map import LogColumn
from streaming.mysql.types import BINARIES, TEXTS, ColumnType
from streaming.mysql.values import Memo

if TYPE_CHECKING:
    import pymysql

__all__ = ["Chunks", "literal", "snapshot_mariadb"]

_COM_QUERY = 3
# A chunk ends early once its rows are this large together.
_MOST_BYTES = 32 << 20
_STALL_S = 300.0
_NUMBER = re.compile(rb"-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?")
_WORDS = ("date", "datetime", "timestamp", "time", "uuid", "inet4", "inet6")
# No privilege for the table, or for a column.
_NO_RIGHT = (1142, 1143)

Row = tuple[bytes | None, bytes]


class Chunks:
    """Chunks of tables, each by a snapshot of its own, over a connection that lasts. Belongs to the reading thread."""

    def __init__(
        self,
        database: Database,
        memos: dict[tuple[Any, ...], Memo],
        snapshot: Callable[[Database, pymysql.Connection], int],
    ) -> None:
        """`snapshot` opens a snapshot on a connection, and says which place in the log it is of."""
        self._database, self._memos, self._snapshot = database, memos, snapshot
        self._lock = threading.Lock()
        self._connection: pymysql.Connection | None = None
        self._dictionary: Dictionary | None = None
        self._interrupted = False
        self._unread = False

    def read(self, name: str, cursor: tuple[Any, ...] | None, limit: int) -> Chunk:
        """As Source.read_chunk; a table that is not there has no rows."""
        connection, dictionary = self._connected()
        try:
            with self._database.errors():
                return self._read(connection, dictionary, name, cursor, limit)
        except CaptureError:
            self.close()
            raise

    def _read(
        self, connection: pymysql.Connection, dictionary: Dictionary, name: str, cursor: Any, limit: int
    ) -> Chunk:
        high = self._snapshot(self._database, connection)
        described = dictionary.describe_held(connection, name) if dictionary.hold(connection, name) else None
        if described is None:
            connection.commit()
            return _chunk([], None, high, None)
        query = _Query(described, dictionary, self._memos)
        if not described.schema.key:
            self._unread = True
            return _chunk(self._stream(connection, query), None, high, described.schema)
        rows, cursor = self._rows(connection, query, query.after(cursor), limit)
        return _chunk(rows, cursor, high, described.schema)

    def _rows(
        self, connection: pymysql.Connection, query: _Query, where: str, limit: int
    ) -> tuple[list[Row], tuple[Any, ...] | None]:
        """At most `limit` rows, and where to go on."""
        found: list[Row] = []
        last: tuple[bytes, ...] = ()
        size = 0
        for key, row, last in query.rows(self._packets(connection, query.sql(where, limit))):
            found.append((key, row))
            size += len(row)
            if size > _MOST_BYTES:
                self.close()  # what else was asked for is not wanted
                return found, query.cursor(last)
        connection.commit()  # or nobody could alter the table until the next chunk is asked for
        return found, query.cursor(last) if len(found) == limit else None

    def _stream(self, connection: pymysql.Connection, query: _Query) -> Iterator[Row]:
        """All rows of a table without key, as whoever emits them asks for them."""
        with self._database.errors():
            for _, row, _ in query.rows(self._packets(connection, query.sql("", None))):
                yield None, row
            connection.commit()
        self._unread = False

    def _packets(self, connection: pymysql.Connection, sql: str) -> Iterator[bytes]:
        """The rows' packets of a query's result: the columns and the rows each end with a packet that says so."""
        connection._execute_command(_COM_QUERY, sql)
        packets = Packets(connection, _STALL_S)
        ended = 0
        while packets.receive(_STALL_S):
            for packet in packets.ready():
                if packet[0] == 0xFF:
                    raise self._failed(packet)
                if packet[0] == 0xFE and len(packet) < 9:
                    ended += 1
                    if ended == 2:
                        return
                elif ended == 1:
                    yield packet
        raise Retryable("the database stopped sending rows half-way")

    def _failed(self, packet: bytes) -> CaptureError:
        code, said = int.from_bytes(packet[1:3], "little"), packet[9:].decode(errors="replace")
        if code in _NO_RIGHT:
            return self._database.no_right(said)
        return Retryable(f"reading a table failed, and is done again: {said} (error {code})")

    def _connected(self) -> tuple[pymysql.Connection, Dictionary]:
        """A connection with nothing left to read."""
        if self._unread:
            self.close()
        with self._lock:
            if self._interrupted:
                raise Retryable("reading was interrupted")
            if self._connection is not None and self._dictionary is not None:
                return self._connection, self._dictionary
        connection = self._database.connect(raw=True)
        self._database.query(connection, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        dictionary = Dictionary(self._database, connection)
        with self._lock:
            self._connection, self._dictionary = connection, dictionary
        return connection, dictionary

    def interrupt(self) -> None:
        """Let what is being read end soon; from any thread. Nothing can be read afterwards."""
        with self._lock:
            self._interrupted = True
            if self._connection is not None and self._connection._sock is not None:
                with suppress(OSError):
                    self._connection._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the connection back."""
        with self._lock:
            connection, self._connection, self._unread = self._connection, None, False
        if connection is not None:
            connection._force_close()


def _chunk(
    rows: Sequence[Row] | Iterator[Row], cursor: tuple[Any, ...] | None, high: int, schema: TableSchema | None
) -> Chunk:
    return Chunk(rows=rows, cursor=cursor, high=high, sees=lambda _, commit: commit <= high, schema=schema)


class _Query:
    """How a table is asked for, and how its rows are read."""

    def __init__(self, described: Described, dictionary: Dictionary, memos: dict[tuple[Any, ...], Memo]) -> None:
        schema = described.schema
        self._schema, self._types, self._index = schema, described.by_name, described.key_index
        names = [column.name for column in schema.columns]
        key = [names.index(name) for name in schema.key]
        columns = [
            Column(LogColumn(name, 0, 0, True), kind, dictionary.charsets.decoder(kind.charset or "utf8mb4"))
            for name, kind in zip(names, described.types, strict=True)
        ]
        # An enum is ordered by its number, and compared by it only with a number.
        numbers = [place for place in key if described.types[place].kind in ("enum", "set")]
        self._decode = TextRows(columns, key, numbers, memos).read

    def sql(self, where: str, limit: int | None) -> str:
        return _chunk_query(self._schema, self._types, self._index, where, limit)

    def rows(self, packets: Iterator[bytes]) -> Iterator[tuple[bytes | None, bytes, tuple[bytes, ...]]]:
        return map(self._decode, packets)

    def cursor(self, last: tuple[bytes, ...]) -> tuple[Any, ...]:
        """The key's columns, and their raw bytes in hexadecimal digits."""
        return (",".join(self._schema.key), *(raw.hex() for raw in last))

    def after(self, cursor: tuple[Any, ...] | None) -> str:
        """The condition for rows behind the cursor; none when the table had another primary key then."""
        if cursor is None or cursor[0] != ",".join(self._schema.key):
            return ""
        key = self._schema.key
        values = [literal(self._types[name], bytes.fromhex(text)) for name, text in zip(key, cursor[1:], strict=True)]
        return _behind([identifier(name) for name in key], values)


def _behind(names: Sequence[str], values: Sequence[str]) -> str:
    """(a > 1) OR (a = 1 AND b > 2) OR ...: the server reads this as ranges of the key."""
    steps = []
    for place_ in range(len(names)):
        same = [f"{name} = {value}" for name, value in zip(names[:place_], values, strict=False)]
        steps.append("(" + " AND ".join([*same, f"{names[place_]} > {values[place_]}"]) + ")")
    return " OR ".join(steps)


def _chunk_query(
    table: TableSchema, types: Mapping[str, ColumnType], index: str | None, where: str, limit: int | None
) -> str:
    """The SELECT of a chunk: the columns in their order, then the numbers of enums in the key; by the key's `index`."""
    asked = [f"CAST({identifier(n)} AS DOUBLE)" if kind.kind == "float" else identifier(n) for n, kind in types.items()]
    asked += [f"{identifier(n)} + 0" for n in table.key if types[n].kind in ("enum", "set")]
    sql = f"SELECT {', '.join(asked)} FROM {quoted(table.name)}"
    if index is not None:
        sql += f" FORCE INDEX ({identifier(index)})"
    if where:
        sql += f" WHERE {where}"
    if table.key:
        sql += f" ORDER BY {', '.join(identifier(n) for n in table.key)}"
    return f"{sql} LIMIT {limit}" if limit is not None else sql


def literal(kind: ColumnType, raw: bytes) -> str:
    """The value as SQL that compares with a column of this type as the column's values do with each other."""
    if kind.kind in TEXTS:
        return f"_{kind.charset} X'{raw.hex()}'"
    if kind.kind in BINARIES:
        return f"X'{raw.hex()}'"
    if kind.kind == "bit":
        return str(int.from_bytes(raw, "big"))
    if kind.kind in _WORDS:
        return "'" + raw.decode("ascii").replace("'", "''") + "'"
    if not _NUMBER.fullmatch(raw):
        raise Halt(f"a key of type {kind} has the value {raw!r}", "Leave the table out", "mariadb_unreadable_column")
    return raw.decode("ascii")


def snapshot_mariadb(database: Database, connection: pymysql.Connection) -> int:
    """Open a snapshot. Returns the place in the binary log that it is of. Raises Retryable, Halt."""
    database.query(connection, "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
    found = database.query(connection, "SHOW STATUS LIKE 'binlog_snapshot_%'")
    status = {bytes(name).decode().lower(): bytes(value).decode() for name, value in found}
    if "binlog_snapshot_file" not in status:
        raise Halt(
            "the server does not say of which place in its binary log a snapshot is (MySQL does not, MariaDB does)",
            "Capture from MariaDB 10.5 at least",
            "mariadb_settings",
        )
    return place(status["binlog_snapshot_file"], int(status["binlog_snapshot_position"]))
