"""What was in the tables before: rows of one database snapshot, in the order of the key, as COPY's text.

The order is the key's own index's, in the collation of its columns: rows after the last key that was read are found
with the very comparison that ordered them, whatever the collation thinks of case and accents, and at the cost of the
rows alone. An order that the server's next version of a collation changes would pass over rows: the cursor knows the
version, and with another one the table is begun again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import pq

from streaming.capture.errors import Retryable
from streaming.capture.source import Chunk
from streaming.capture.tables import TableSchema
from streaming.postgres.catalog import Catalog, Description
from streaming.postgres.checks import quoted
from streaming.postgres.connect import Server, result_error, wait_readable, wait_writable
from streaming.postgres.decoders import Decoder, compile_decoder, unescaped
from streaming.postgres.pgoutput import parse_lsn
from streaming.postgres.types import ColumnType

__all__ = ["ChunkReader", "literal"]

_STATEMENT_TIMEOUT_S, _LOCK_TIMEOUT_S = 900, 600
_SILENCE_S = 900.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 1.0
# How long transactions may keep the first chunk waiting until that is said.
_SAY_AFTER_S = 10.0

_SNAPSHOT_SQL = """
SELECT pg_snapshot_xmin(s)::text::int8, pg_snapshot_xmax(s)::text::int8,
  ARRAY(SELECT x::text::int8 FROM pg_snapshot_xip(s) AS x)
FROM pg_current_snapshot() AS s
"""
_COLLATIONS_SQL = """
SELECT a.attname::text, CASE c.collprovider
    WHEN 'd' THEN (SELECT {actual} FROM pg_catalog.pg_database d WHERE d.datname = current_database())
    ELSE pg_collation_actual_version(c.oid) END
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation
WHERE a.attrelid = %s AND a.attname = ANY(%s)
"""
_WATERMARK_SQL = "SELECT pg_catalog.pg_logical_emit_message(true, 'headwater', '')::text"
_OLDEST_SQL = """
SELECT string_agg(format('pid %s (%s, since %s)', pid, usename, xact_start), ', ' ORDER BY xact_start)
FROM pg_catalog.pg_stat_activity WHERE backend_xid::text::int8 < (%s::int8 & 4294967295)
"""


@dataclass(frozen=True)
class _Sees:
    """Whether a snapshot saw a transaction."""

    xmin: int
    xmax: int
    running: frozenset[int]

    def __call__(self, tx: int, _: int) -> bool:
        return tx < self.xmin or (tx < self.xmax and tx not in self.running)


class ChunkReader:
    """Reads chunks over a connection of its own. `read` is called from one thread, `interrupt` from any."""

    def __init__(
        self,
        server: Server,
        catalog: Catalog,
        *,
        version: int,
        checked_encoding: bool,
        fence: int,
        highest: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        """`fence`: a transaction id; the first chunk waits until every older one has ended. `highest`: the highest id
        of a transaction that was streamed so far.
        """
        self._server, self._catalog, self._highest, self._say = server, catalog, highest, say
        self._version, self._checked_encoding = version, checked_encoding
        self._fence: int | None = fence
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._interrupted = threading.Event()
        self._last: tuple[str, tuple[Any, ...] | None] | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._decoders: dict[TableSchema, Decoder] = {}

    def read(self, name: str, cursor: tuple[Any, ...] | None, limit: int) -> Chunk:
        """The rows after the cursor; none when the table is gone. Raises Retryable, Halt."""
        try:
            self._pause((name, cursor))
            return self._read(self._ready(), name, cursor, limit)
        except psycopg.Error as error:
            if self._interrupted.is_set():
                raise Retryable("reading the snapshot was interrupted") from None
            raise self._server.problem(error, f"read a snapshot of {name}") from None

    def interrupt(self) -> None:
        """Let a `read` that is under way fail soon."""
        self._interrupted.set()
        connection = self._connection
        if connection is not None and not connection.closed:
            try:
                connection.cancel_safe(timeout=5)
            except psycopg.Error:
                return  # it ends with its connection, or by its timeout

    def close(self) -> None:
        """Give the connection back; from the thread that polls, when nothing is being read."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _pause(self, asked: tuple[str, tuple[Any, ...] | None]) -> None:
        """A chunk that is asked for again was of no use: somebody has committed and is not seen to have yet, which may
        last while a synchronous standby is away.
        """
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S) if asked == self._last else _FIRST_PAUSE_S
        if asked == self._last:
            self._interrupted.wait(self._pause_s)
        self._last = asked

    def _ready(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection in which nothing is under way: the rows of an earlier chunk may have been left unread."""
        if self._interrupted.is_set():
            raise Retryable("reading the snapshot was interrupted")
        idle = pq.TransactionStatus.IDLE
        if self._connection is None or self._connection.pgconn.transaction_status != idle:
            self.close()
            self._connection = self._server.session(
                statement_timeout_s=_STATEMENT_TIMEOUT_S, lock_timeout_s=_LOCK_TIMEOUT_S
            )
        return self._connection

    def _read(
        self, connection: psycopg.Connection[tuple[Any, ...]], name: str, cursor: tuple[Any, ...] | None, limit: int
    ) -> Chunk:
        self._wait_for_the_fence(connection)
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # The lock before the snapshot: a table that is rewritten in between looks empty to an older snapshot.
        found = self._locked(connection, name)
        ((xmin, xmax, running),) = connection.execute(_SNAPSHOT_SQL).fetchall()
        chunk = Chunk([], None, 0, _Sees(xmin, xmax, frozenset(running)), self._in_progress(xmax, running))
        if found is None:
            self._say(f"{name} is gone: nothing is left to read of it")
            connection.execute("COMMIT")
            return replace(chunk, high=self._watermark(connection))
        schema, kinds = self._catalog.schema(self._query, found)
        chunk = replace(chunk, schema=schema)
        decoder = self._decoder(schema, kinds)
        if not schema.key:
            connection.execute("SET LOCAL statement_timeout = 0")  # it takes as long as the log takes its rows
            # They are read while they are emitted; this connection is free for the watermark only afterwards.
            arriving = self._arriving(connection, self._statement(found, None, 0), decoder)
            with self._server.session(statement_timeout_s=60) as other:
                return replace(chunk, rows=arriving, high=self._watermark(other))
        versions = self._collations(found)
        after = cursor[1:] if cursor and cursor[0] == versions else None
        statement = self._statement(found, after, limit)
        if schemas := self._catalog.compared_by(self._query, found):
            connection.execute(f"SET LOCAL search_path = pg_catalog, {', '.join(map(quoted, schemas))}".encode())
        lines = list(self._lines(connection, statement))
        connection.execute("COMMIT")
        last = (versions, *self._last_key(lines[-1], found)) if len(lines) == limit else None
        rows = [decoder.copied(line) for line in lines]
        return replace(chunk, rows=rows, cursor=last, high=self._watermark(connection))

    def _decoder(self, schema: TableSchema, kinds: Sequence[ColumnType]) -> Decoder:
        found = self._decoders.get(schema)
        if found is None:
            columns = [(column.name, kind) for column, kind in zip(schema.columns, kinds, strict=True)]
            found = self._decoders[schema] = compile_decoder(columns, schema.key)
        return found

    def _in_progress(self, xmax: int, running: Sequence[int]) -> frozenset[int]:
        """Transactions that had not ended for the snapshot.

        A transaction is streamed a moment before it counts as ended, and until then the snapshot's xmax may lie below
        it: from there up all that were streamed are in progress.
        """
        return frozenset(running) | frozenset(range(xmax, self._highest() + 1))

    def _query(self, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        assert self._connection is not None
        return self._connection.execute(statement, parameters).fetchall()

    def _wait_for_the_fence(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """A transaction that began before the stream was opened may have been streamed without being visible yet, or
        have changed a table before it was published: neither is known to the stream, so wait until it has ended.
        """
        since, said = time.monotonic(), False
        while self._fence is not None:
            ((xmin, _, _),) = connection.execute(_SNAPSHOT_SQL).fetchall()
            if xmin >= self._fence:
                self._fence = None
            elif self._interrupted.wait(0.02 if time.monotonic() - since < 1 else 0.5):
                raise Retryable("reading the snapshot was interrupted")
            elif time.monotonic() - since > _SAY_AFTER_S and not said:
                ((who,),) = connection.execute(_OLDEST_SQL, (self._fence,)).fetchall()
                self._say(f"the snapshot waits for transactions that began before it: {who or 'prepared ones'}")
                said = True

    def _locked(self, connection: psycopg.Connection[tuple[Any, ...]], name: str) -> Description | None:
        schema, _, table = name.partition(".")
        try:
            connection.execute(f"LOCK TABLE {quoted(schema, table)} IN ACCESS SHARE MODE".encode())
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            connection.execute("ROLLBACK")
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return None
        return self._catalog.named(self._query, [name]).get(name)

    def _collations(self, found: Description) -> str:
        actual = "pg_database_collation_actual_version(d.oid)" if self._version >= 150_000 else "NULL::text"
        rows = self._query(_COLLATIONS_SQL.format(actual=actual), (found.oid, list(found.key)))
        return ",".join(sorted(f"{name}={version or ''}" for name, version in rows))

    def _statement(self, found: Description, after: Sequence[str] | None, limit: int) -> bytes:
        """COPY of the columns, in the key's order and after the given key when there is one."""
        select = f"SELECT {', '.join(quoted(column.name) for column in found.columns)} FROM "
        select += f"{'' if found.kind == 'p' else 'ONLY '}{quoted(found.schema, found.table)}"
        if found.key:
            key = ", ".join(quoted(name) for name in found.key)
            if after is not None:
                types = self._catalog.key_types(self._query, found)
                values = (literal(value, kind) for value, kind in zip(after, types, strict=True))
                select += f" WHERE ({key}) > ({', '.join(values)})"
            select += f" ORDER BY {key} LIMIT {limit}"
        # SQL_ASCII: as it is stored, for what is not UTF-8 would be an error.
        return f"COPY ({select}) TO STDOUT{'' if self._checked_encoding else ' (ENCODING SQL_ASCII)'}".encode()

    @staticmethod
    def _last_key(line: bytes, found: Description) -> tuple[str, ...]:
        fields = line.split(b"\t")
        names = [column.name for column in found.columns]
        return tuple(
            (unescaped(fields[names.index(name)]) or b"").decode(errors="surrogateescape") for name in found.key
        )

    def _arriving(
        self, connection: psycopg.Connection[tuple[Any, ...]], statement: bytes, decoder: Decoder
    ) -> Iterator[tuple[bytes | None, bytes]]:
        """Rows of a whole table as they arrive. What is left unread is given up with the connection."""
        try:
            for line in self._lines(connection, statement):
                yield decoder.copied(line)
            connection.execute("COMMIT")
        except psycopg.Error as error:
            raise self._server.problem(error, "read the rows of a table without primary key") from None

    def _lines(self, connection: psycopg.Connection[tuple[Any, ...]], statement: bytes) -> Iterator[bytes]:
        """Lines of COPY's text without their line feed.

        libpq is waited for with select and not inside itself, where it would hold every other thread.
        """
        pgconn = connection.pgconn
        pgconn.send_query(statement)
        wait_writable(connection, _SILENCE_S)
        result = self._result(connection)
        if result is None or result.status != pq.ExecStatus.COPY_OUT:
            self._drain(connection)
            raise psycopg.OperationalError("no answer") if result is None else result_error(result)
        while True:
            count, data = pgconn.get_copy_data(1)
            if count > 0:
                yield bytes(data[: count - 1])
            elif count == 0:
                self._wait(connection)
            else:
                break
        result = self._result(connection)
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            self._drain(connection)
            raise result_error(result)
        self._drain(connection)

    def _result(self, connection: psycopg.Connection[tuple[Any, ...]]) -> pq.abc.PGresult | None:
        while connection.pgconn.is_busy():
            self._wait(connection)
        return connection.pgconn.get_result()

    def _drain(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        while self._result(connection) is not None:
            pass

    @staticmethod
    def _wait(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        if not wait_readable(connection, _SILENCE_S):
            raise psycopg.OperationalError(f"the server has said nothing for {_SILENCE_S:.0f} s")
        connection.pgconn.consume_input()

    def _watermark(self, connection: psycopg.Connection[tuple[Any, ...]]) -> int:
        """A position after the snapshot that the stream will reach; of its last byte, as the sink's (see `reader`)."""
        try:
            ((position,),) = connection.execute(_WATERMARK_SQL).fetchall()
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction):
            ((position,),) = connection.execute("SELECT pg_catalog.pg_current_wal_insert_lsn()::text").fetchall()
        return parse_lsn(position) - 1


def literal(value: str, kind: str) -> str:
    """A key's value for a statement. What is not UTF-8 came as single surrogates, and goes as bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        text = f"convert_from('\\x{value.encode(errors='surrogateescape').hex()}', 'SQL_ASCII')"
    else:
        text = "'" + value.replace("'", "''") + "'"
    return f"{text}::{kind}"
