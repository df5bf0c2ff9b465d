"""PostgreSQL as a source of changes: the parts of this package, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from streaming.capture.checkpoint import Checkpoint
from streaming.capture.credentials import Address
from streaming.capture.errors import Halt
from streaming.capture.sink import Sink
from streaming.capture.source import Chunk, Retained
from streaming.capture.tables import TableSchema
from streaming.postgres.chunks import ChunkReader
from streaming.postgres.connect import Server
from streaming.postgres.preparation import Preparation, Prepared
from streaming.postgres.reader import StreamReader
from streaming.postgres.relations import Relations
from streaming.postgres.stream import ServerIdentity, Stream
from streaming.postgres.watch import Watch

__all__ = ["PostgresSource"]


@dataclass(frozen=True)
class _Found:
    """What `identify` found and `prepare` goes on with."""

    stream: Stream
    identity: ServerIdentity


@dataclass(frozen=True)
class _Open:
    """What is there while it streams."""

    reader: StreamReader
    chunks: ChunkReader
    watch: Watch


class PostgresSource:
    """Captures tables of one PostgreSQL database; implements `streaming.capture.source.Source`."""

    connector = "postgresql"

    def __init__(
        self,
        system: str,
        address: Address,
        tables: Sequence[str],
        *,
        say: Callable[[str], None] = lambda _: None,
        slot: str | None = None,
        publication: str | None = None,
    ) -> None:
        """`tables` as schema.table (public when no schema is given); `say` gets what a person should read."""
        self.system = system
        self._server = Server(address, f"headwater capture {system}")
        self._tables = tuple(name if "." in name else f"public.{name}" for name in tables)
        name = f"headwater_{system}"
        self._say = say
        self._preparation = Preparation(self._server, self._tables, slot or name, publication or name, say)
        self._closing = ExitStack()
        self._found: _Found | None = None
        self._prepared: Prepared | None = None
        self._streaming: _Open | None = None

    @property
    def refused(self) -> Mapping[str, Halt]:
        """Tables that cannot be captured while the others are."""
        return self._preparation.refused

    @property
    def read_bytes(self) -> int:
        """How much of the write-ahead log has gone by."""
        return self._streaming.reader.read_bytes if self._streaming else 0

    def identify(self) -> Mapping[str, str]:
        """The cluster's own number, which its standbys and its restored copies share, and the database."""
        self._closing.callback(self._preparation.close)
        state = self._preparation.connect()
        stream = Stream(self._server, encoding="SQL_ASCII" if state.encoding == "SQL_ASCII" else "UTF8")
        self._closing.callback(stream.close)
        self._found = _Found(stream, stream.identify())
        return {"system_identifier": self._found.identity.system, "database": state.database}

    def prepare(self, checkpoint: Checkpoint | None) -> Sequence[TableSchema]:
        """Check settings, rights, publication, slot and position; make what is missing."""
        assert self._found is not None, "identify comes first"
        self._prepared = self._preparation.prepare(checkpoint, self._found.identity, self._found.stream)
        return self._prepared.schemas

    def open(self, sink: Sink, checkpoint: Checkpoint | None) -> None:
        """Start streaming from the checkpoint or, without one, from now: what was before is read from the tables."""
        found, prepared, preparation = self._found, self._prepared, self._preparation
        assert found is not None, "identify comes first"
        assert prepared is not None, "prepare comes second"
        now = max(prepared.slot.confirmed, found.identity.position)
        position = int(checkpoint.resume["lsn"]) if checkpoint else now
        watch = Watch(sink, prepared.marks, prepared.due, preparation.looks, self._say)
        watch.ask(one.name for one in prepared.schemas)
        relations = Relations(
            preparation.query,
            preparation.copy_out,
            preparation.catalog,
            sink,
            watch,
            preparation.wanted,
            preparation.is_clock,
        )
        fence = preparation.own_transaction_id()
        reader = StreamReader(
            found.stream,
            sink,
            relations,
            watch,
            position=position,
            timeline=found.identity.timeline,
            near_id=fence,
        )
        chunks = ChunkReader(
            self._server,
            preparation.catalog,
            version=prepared.state.version,
            checked_encoding=prepared.state.encoding != "SQL_ASCII",
            fence=fence,
            highest=lambda: reader.highest_id,
            say=self._say,
        )
        self._closing.callback(chunks.close)
        preparation.start(found.stream, position)
        self._streaming = _Open(reader, chunks, watch)

    @property
    def _opened(self) -> _Open:
        assert self._streaming is not None, "open comes first"
        return self._streaming

    def poll(self, timeout_s: float) -> bool:
        """Hand over what has arrived."""
        return self._opened.reader.poll(timeout_s)

    def confirm(self, resume: Mapping[str, Any]) -> None:
        """Let the slot move on."""
        self._opened.reader.confirm(int(resume["lsn"]))

    def read_chunk(self, table: str, cursor: tuple[Any, ...] | None, limit: int) -> Chunk:
        """Rows in key order; see `chunks`."""
        chunk = self._opened.chunks.read(table, cursor, limit)
        self._opened.watch.was_read(table, chunk)
        return chunk

    def interrupt(self) -> None:
        """End a chunk that is being read."""
        self._opened.chunks.interrupt()

    def retained(self) -> Retained:
        """From pg_replication_slots; also looks whether the tables are still what they were."""
        look = self._preparation.look()
        self._opened.watch.compare(filter(self._preparation.wanted, self._tables), look.tables, look.position)
        return look.retained

    def close(self) -> None:
        """Give all connections back."""
        self._closing.close()
        self._found = self._prepared = self._streaming = None
