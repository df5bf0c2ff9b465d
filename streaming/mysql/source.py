"""MariaDB (and MySQL) as a source of changes: the parts of this package, put together."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streaming.capture.checkpoint import Checkpoint
from streaming.capture.credentials import Address
from streaming.capture.errors import Halt, Retryable, sift
from streaming.capture.sink import Sink
from streaming.capture.source import Chunk, Retained
from streaming.capture.tables import TableSchema
from streaming.mysql.chunks import Chunks, snapshot_mariadb
from streaming.mysql.connect import Database
from streaming.mysql.dictionary import Described, Dictionary
from streaming.mysql.dump import Dump
from streaming.mysql.events import HEADER
from streaming.mysql.history import Start, find_start, last_transaction
from streaming.mysql.looks import Looks
from streaming.mysql.positions import Resume
from streaming.mysql.retained import measured
from streaming.mysql.server import Logs, Server, check_log, check_tables
from streaming.mysql.stream import Stream
from streaming.mysql.tables import Tables
from streaming.mysql.values import Memo

if TYPE_CHECKING:
    import pymysql

__all__ = ["MysqlSource"]

# A server that has more than it has sent sends it at once.
_STANDS_S = 5.0
# The server gives a sign of life every second.
_SILENCE_S = 30.0
# Ours among the server's replicas, unless the URL chooses: the upper half is seldom given to a server.
_FIRST_ID, _IDS = 1 << 31, 1 << 30


@dataclass
class _Session:
    """A connection to ask over, from the thread that polls."""

    connection: pymysql.Connection
    server: Server
    dictionary: Dictionary
    start: Start | None = None
    tables: Sequence[TableSchema] = ()


@dataclass
class _Streaming:
    """What is there while it streams."""

    dump: Dump
    stream: Stream
    sink: Sink
    looks: Looks
    chunks: Chunks
    heard: float = field(default_factory=time.monotonic)
    stood: tuple[int, float] | None = None

    def expect_going_on(self, logs: Logs) -> None:
        """After RESET MASTER a server goes on with signs of life, and sends nothing any more. Raises Retryable.

        Whether the log is still the one that was captured is found out when it is asked for anew.
        """
        stream = self.stream
        if logs.sizes.get(stream.file, -1) < stream.pos:
            raise Retryable(f"the binary log has no {stream.file}:{stream.pos} any more, up to which it was read")
        if logs.end <= stream.place:
            self.stood = None
        elif self.stood is None or self.stood[0] != stream.place:
            self.stood = stream.place, time.monotonic()
        elif time.monotonic() - self.stood[1] > _STANDS_S:
            raise Retryable(f"the database has more than {stream.file}:{stream.pos}, and does not send it")


class MysqlSource:
    """Captures tables of one MariaDB server; implements `streaming.capture.source.Source`."""

    connector = "mariadb"

    def __init__(
        self,
        system: str,
        address: Address,
        tables: Sequence[str],
        *,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`tables` as database.table (the URL's database when none is given); `say` gets what a person should read.

        Raises Halt when the URL cannot be used.
        """
        self.system = system
        self._database = Database(address)
        self._names = [name if "." in name else f"{address.database}.{name}" for name in tables]
        self._say = say
        self.refused: dict[str, Halt] = {}
        self._known: list[str] = []
        self._our_id = self._database.server_id or _FIRST_ID + zlib.crc32(f"headwater {system}".encode()) % _IDS
        self._memos: dict[tuple[Any, ...], Memo] = {}
        self._session: _Session | None = None
        self._streaming: _Streaming | None = None
        self._confirmed: Resume | None = None

    @property
    def read_bytes(self) -> int:
        """How much of the binary log has gone by."""
        return self._streaming.stream.read_bytes if self._streaming else 0

    def identify(self) -> Mapping[str, str]:
        """The kind of server only: whether its history is ours is asked of its binary log, by `prepare`.

        What a server says of itself (its number, its host) is the same after it was installed anew, and another one
        after a replica was promoted, whose history goes on.
        """
        session = self._connected()
        self._sole(session)
        return {"database": "mariadb" if session.server.mariadb else "mysql"}

    def _connected(self) -> _Session:
        if self._session is None:
            connection = self._database.connect()
            server = Server(self._database, connection)
            self._session = _Session(connection, server, Dictionary(self._database, connection))
        return self._session

    def _sole(self, session: _Session) -> None:
        """A second connector of our id would take the stream away from the first, and lose it again, and so on."""
        name = f"headwater capture {self._our_id}"
        query = self._database.query
        ((got, holder),) = query(session.connection, "SELECT GET_LOCK(%s, 0), IS_USED_LOCK(%s)", (name, name))
        if got != 1:
            raise Retryable(
                f"another connector ({self.system}, connection {holder} of the server) captures with server_id "
                f"{self._our_id}; stop it, or give one of them another with ?server_id=... in its URL"
            )

    def prepare(self, checkpoint: Checkpoint | None) -> Sequence[TableSchema]:
        """Check settings, rights, tables and the position. Raises Retryable, Halt."""
        session = self._connected()
        databases = sorted({name.partition(".")[0] for name in self._names})
        check_log(session.server, databases, self._our_id)
        self._known = list(checkpoint.tables) if checkpoint else []
        tables = self._check_tables(session, self._fit(session))
        if checkpoint is not None:
            session.start = find_start(self._database, session.server, Resume.read(checkpoint.resume))
        session.tables = [table.schema for table in tables]
        return session.tables

    def _fit(self, session: _Session) -> list[str]:
        """The tables to capture; why not, is said of the others."""
        before = {name: f"{error}" for name, error in self.refused.items()}
        fit, self.refused = sift(self._names, lambda names: self._check_tables(session, names))
        for name, error in self.refused.items():
            if before.get(name) != f"{error}":
                self._say(f"{name} is not captured, the other tables are: {error}")
        return fit

    def _check_tables(self, session: _Session, names: Sequence[str]) -> list[Described]:
        return check_tables(session.dictionary, session.connection, names, self._known)

    def _look_at_refused(self, session: _Session) -> None:
        """Raises Retryable for one that can be captured by now."""
        for name in self.refused:
            try:
                self._check_tables(session, [name])
            except Halt as error:
                self.refused[name] = error
                continue
            raise Retryable(f"{name} can be captured now: it is taken in")

    def open(self, sink: Sink, checkpoint: Checkpoint | None) -> None:
        """Start streaming from the checkpoint, or from the log's end. Raises Retryable, Halt."""
        session = self._connected()
        start = session.start if checkpoint is not None and session.start else Start(self._end(session))
        if start.moved:
            self._say(f"{session.server.name} continues the history of {start.resume.server}")
            sink.epoch += 1
        resume, mariadb = start.resume, session.server.mariadb
        fold = str.lower if session.server.folds_names else str
        names = [name for name in self._names if name not in self.refused]
        tables = Tables(session.dictionary, session.connection, names, self._memos, mariadb=mariadb, fold=fold)
        if start.by_gtid:
            dump = Dump(self._database, self._our_id, gtid=resume.gtid, mariadb=mariadb)
        else:
            dump = Dump(self._database, self._our_id, file=resume.file, pos=resume.pos, mariadb=mariadb)
        stream = Stream(sink, tables, resume, self._again, server=session.server.name, by_gtid=start.by_gtid)
        # No statement of the stream has this place: one that alters the table again is told from it.
        altered = {one.name: -1 for one in session.tables if sink.tables[one.name].schema != one}
        stream.alterations.pending.update(altered)
        looks = Looks(session.server, session.dictionary, session.connection)
        chunks = Chunks(self._database, self._memos, snapshot_mariadb)
        self._streaming = _Streaming(dump, stream, sink, looks, chunks)
        self._confirmed = resume
        sink.advance(0 if start.by_gtid else resume.place, resume.token())
        self._begin()

    def _end(self, session: _Session) -> Resume:
        """The end of the log, from where a capture without a checkpoint begins."""
        logs = session.server.logs()
        gtid = session.server.gtid_at(logs.file, logs.pos)
        last = last_transaction(self._database, gtid) if session.server.mariadb else None
        before, written = last or ("", int(time.time()))
        return Resume(logs.file, logs.pos, gtid, before, server=session.server.name, written=written)

    def _begin(self) -> None:
        """Read until the stream has said which file it is in, and since when there is that file."""
        deadline = time.monotonic() + _SILENCE_S
        streaming = self._following()
        while not streaming.stream.is_placed:
            if time.monotonic() > deadline:
                raise Retryable("the database does not send its binary log")
            self.poll(0.05)

    def _following(self) -> _Streaming:
        if self._streaming is None:
            raise Retryable("nothing is streamed")
        return self._streaming

    def _again(self, file: str, start: int, end: int) -> Iterator[bytes]:
        """Events of the log once more, over a connection of their own."""
        assert self._session is not None
        dump = Dump(self._database, 0, file=file, pos=start, mariadb=self._session.server.mariadb, until_end=True)
        try:
            for event in dump.all_events():
                yield event
                if HEADER.unpack_from(event, 1)[4] >= end:
                    return
        finally:
            dump.close()

    def poll(self, timeout_s: float) -> bool:
        """Hand the sink what has arrived; wait up to `timeout_s` if nothing has. Raises Retryable, Halt."""
        streaming = self._following()
        stream = streaming.stream
        if not streaming.dump.receive(timeout_s):
            if time.monotonic() - streaming.heard > _SILENCE_S:
                raise Retryable(f"the database was silent for {_SILENCE_S:.0f} s")
            return False
        streaming.heard = time.monotonic()
        if not stream.clocked:
            streaming.sink.tick()
        busy = False
        for event in streaming.dump.events():
            busy |= stream.take(event)
        if stream.alterations.pending and not stream.in_group:
            for schema in streaming.looks.learn(stream.alterations.pending, stream.place):
                streaming.sink.schema(schema)
        return busy

    def confirm(self, resume: Mapping[str, Any]) -> None:
        """The server keeps its log whoever has read it: this is only where we would have to go on."""
        self._confirmed = Resume.read(resume)

    def read_chunk(self, table: str, cursor: tuple[Any, ...] | None, limit: int) -> Chunk:
        """The rows after the cursor, as of an instant. Raises Retryable, Halt."""
        return self._following().chunks.read(table, cursor, limit)

    def interrupt(self) -> None:
        """Let a chunk that is being read end soon."""
        if self._streaming is not None:
            self._streaming.chunks.interrupt()

    def retained(self) -> Retained:
        """How much of the log is behind us. Raises Retryable, Halt."""
        session, confirmed = self._connected(), self._confirmed
        self._look_at_refused(session)
        logs = session.server.logs()
        if self._streaming is not None:
            self._streaming.expect_going_on(logs)
        return Retained(0, 0, None, logs.end) if confirmed is None else measured(session.server, logs, confirmed)

    def close(self) -> None:
        """Give back connections; safe to call at any time."""
        streaming, self._streaming = self._streaming, None
        if streaming is not None:
            streaming.dump.close()
            streaming.chunks.close()
        session, self._session = self._session, None
        if session is not None:
            session.connection._force_close()
