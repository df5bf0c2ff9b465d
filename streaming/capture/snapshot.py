"""What was in the tables before: read in chunks without a lock while the stream goes on, and merged with it exactly.

A chunk is read in a thread of its own, by one snapshot of the database, and is emitted between two transactions, once
the stream has passed all that the snapshot saw. In between, the sink notes which keys were streamed and by whom: a row
that a transaction unseen by the snapshot has changed meanwhile is old, and is left out. Watermarks bound the wait; what
a snapshot has seen is asked of the database, not inferred from the watermarks, for a transaction may be in its log for
some time before others can see it.

A table without primary key has no keys to note: its changes are kept back from the moment its one chunk is asked for,
and those that the chunk has not seen follow its rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from streaming.capture.checkpoint import TableProgress
from streaming.capture.sink import Sink, Table, Window
from streaming.capture.source import Chunk, Source

__all__ = ["Snapshotter"]

# Keys noted, or records kept back, before a chunk is given up and asked for again.
_WINDOW_LIMIT = 200_000
# Rows of a table without primary key that are emitted before the stream gets its turn.
_SLICE_ROWS = 5_000


@dataclass
class _Request:
    """A chunk that was asked for."""

    table: Table
    future: Future[Chunk]
    position: int
    resume: Mapping[str, Any]
    streamed: frozenset[int]
    """Transactions that were streamed before it was asked for."""
    emitting: Iterator[tuple[bytes | None, bytes]] | None = None


class Snapshotter:
    """Works through the tables whose progress is not `done`, one chunk at a time."""

    def __init__(
        self,
        source: Source,
        sink: Sink,
        progress: dict[str, TableProgress],
        *,
        chunk_rows: int,
        say: Callable[[str], None],
    ) -> None:
        """`progress` by table name is kept up to date in place: it goes into the checkpoint."""
        self.progress = progress
        self._source, self._sink, self._chunk_rows, self._say = source, sink, chunk_rows, say
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._request: _Request | None = None
        sink.at_boundary = self.step

    @property
    def busy(self) -> bool:
        """Whether a chunk is under way or waits to be asked for."""
        return self._request is not None or self._next() is not None

    @property
    def safe(self) -> tuple[int, Mapping[str, Any]]:
        """Up to where the source may be confirmed: not beyond the first record that is kept back."""
        request = self._request
        if request is not None and request.table.window is not None and request.table.window.held is not None:
            return request.position, request.resume
        return self._sink.position, self._sink.resume

    def step(self) -> None:
        """Go on as far as possible without waiting. Call between transactions only."""
        if self._sink.in_transaction:
            return
        while self._sink.rereads:
            self.again(*self._sink.rereads.popitem())
        if self._request is None:
            self._ask()
        elif self._request.future.done():
            self._take(self._request)

    def close(self) -> None:
        """Stop reading; what was not emitted is read again after a restart."""
        self._sink.at_boundary = None
        self._reader.shutdown(wait=True, cancel_futures=True)

    def again(self, name: str, state: str = "pending") -> None:
        """Read a table anew from its beginning, while everything streams on."""
        if self._request is not None and self._request.table.schema.name == name:
            self._sink.release(self._request.table)
            self._request = None
        known = self.progress.get(name)  # a table that was not there when the capture began has none
        emptied_first = known is not None and known.state == "void"
        self.progress[name] = TableProgress("void" if emptied_first else state)

    def _next(self) -> str | None:
        unfinished = (name for name, at in self.progress.items() if at.state != "done")
        return next((name for name in unfinished if name in self._sink.tables), None)

    def _ask(self) -> None:
        name = self._next()
        if name is None:
            return
        table, at = self._sink.tables[name], self.progress[name]
        if at.state == "void":
            self._sink.empty(table, self._sink.position)
        if at.state != "running":
            self._say(f"snapshot of {name} begins")
            self.progress[name] = replace(at, state="running")
        table.window = Window(_WINDOW_LIMIT, held=None if table.schema.key else [])
        future = self._reader.submit(self._source.read_chunk, name, at.cursor, self._chunk_rows)
        self._request = _Request(table, future, self._sink.position, self._sink.resume, frozenset(self._sink.recent))

    def _take(self, request: _Request) -> None:
        chunk, table = request.future.result(), request.table
        if request.emitting is None:
            if self._unusable(request, chunk):
                self._sink.release(table)
                self._request = None
                return
            if self._sink.position < chunk.high:
                return
        if table.schema.key:
            count = self._sink.read(table, self._fresh(table, chunk), self._sink.position, chunk.schema)
            self._finish(request, chunk, count)
        else:
            self._emit_slice(request, chunk)

    @staticmethod
    def _unusable(request: _Request, chunk: Chunk) -> bool:
        window, schema = request.table.window, request.table.schema
        rekeyed = chunk.schema is not None and chunk.schema.key != schema.key
        return window is None or window.overflowed or rekeyed or bool(chunk.in_progress & request.streamed)

    @staticmethod
    def _fresh(table: Table, chunk: Chunk) -> Iterator[tuple[bytes | None, bytes]]:
        """The chunk's rows but for those that were changed after it was read."""
        window = table.window
        assert window is not None
        if window.truncated is not None and not chunk.sees(*window.truncated):
            return
        touched = window.touched
        for row in chunk.rows:
            place = touched.get(row[0]) if row[0] is not None else None
            if place is None or chunk.sees(*place):
                yield row

    def _emit_slice(self, request: _Request, chunk: Chunk) -> None:
        """Some of the rows of a table without primary key, labelled as older than every change that was kept back."""
        if request.emitting is None:
            self._sink.empty(request.table, request.position)
            request.emitting = iter(chunk.rows)
        name, rows = request.table.schema.name, itertools.islice(request.emitting, _SLICE_ROWS)
        window = request.table.window
        request.table.window = None  # the chunk's own rows are not kept back
        count = self._sink.read(request.table, rows, request.position, chunk.schema)
        request.table.window = window
        self.progress[name] = replace(self.progress[name], rows=self.progress[name].rows + count)
        if count < _SLICE_ROWS:
            self._sink.release(request.table, chunk.sees)
            self._finish(request, chunk, 0)

    def _finish(self, request: _Request, chunk: Chunk, count: int) -> None:
        name = request.table.schema.name
        request.table.window = None
        state = "running" if chunk.cursor is not None else "done"
        rows = self.progress[name].rows + count
        self.progress[name] = TableProgress(state, chunk.cursor, rows)
        self._request = None
        if state == "done":
            self._say(f"snapshot of {name} is complete: {rows} rows")
