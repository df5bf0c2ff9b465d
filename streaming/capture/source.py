"""What a database must offer to be captured: a stream in commit order, and chunks of its tables as of an instant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from streaming.capture.checkpoint import Checkpoint
from streaming.capture.errors import Halt
from streaming.capture.tables import TableSchema

if TYPE_CHECKING:
    from streaming.capture.sink import Sink

__all__ = ["Chunk", "Retained", "Source"]


@dataclass(frozen=True)
class Chunk:
    """Rows of a table as one snapshot of the database saw them.

    `rows`: (key, row) as compact JSON, the same bytes that the stream would make of them; key None for a table without
    primary key. `cursor`: where the next chunk begins (JSON values), None at the table's end. `high`: the position that
    the stream must have passed before the rows may be emitted: then everything that `sees` has been streamed.
    `sees(tx, commit)`: whether the snapshot saw that transaction (as given to `Sink.begin`). `in_progress`:
    transactions that had not ended, as the snapshot found it; one of them that was streamed before the chunk was asked
    for makes the chunk unusable. `schema`: what the table looked like to the snapshot; None: as the stream knows it.
    """

    rows: Iterable[tuple[bytes | None, bytes]]
    cursor: tuple[Any, ...] | None
    high: int
    sees: Callable[[int, int], bool]
    in_progress: frozenset[int] = frozenset()
    schema: TableSchema | None = None


@dataclass(frozen=True)
class Retained:
    """What the server keeps for us: bytes behind its end, and the bound at which it would stop (None: not known).

    `bounded`: whether there is such a bound; without one a connector that is away fills the server's disk.
    `end`: the position at which its history ends by now; a stream that stands there has seen all of it.
    """

    behind_bytes: int
    retained_bytes: int
    limit_bytes: int | None
    end: int = 0
    bounded: bool = True


class Source(Protocol):
    """A database to capture from. `read_chunk` is called from another thread than the rest and has its own connection.

    Every method raises Retryable when the server is away, Halt when a person must decide.
    """

    system: str
    connector: str

    @property
    def refused(self) -> Mapping[str, Halt]:
        """Declared tables that cannot be captured, and why: those of the last `prepare`, or found since.

        The others are captured. One that can be by now makes `retained` raise Retryable, so that `prepare` takes it.
        """

    @property
    def read_bytes(self) -> int:
        """How much of the server's log has gone by since `open`, whosever changes are in it."""

    def identify(self) -> Mapping[str, str]:
        """What tells this server's history from any other's; compared with the checkpoint's."""

    def prepare(self, checkpoint: Checkpoint | None) -> Sequence[TableSchema]:
        """Check privileges and settings, make what is missing (publication, slot); the tables to capture.

        A table that is not fit is left out, and `refused`. Raises Halt when none is fit, or when the checkpoint's
        position is no longer available.
        """

    def open(self, sink: Sink, checkpoint: Checkpoint | None) -> None:
        """Start streaming into the sink, from the checkpoint or, without one, from now.

        A table that the sink knows otherwise than `prepare` has found it was altered meanwhile: the sink is told where
        the stream comes to it, whether rows follow or not.
        """

    def poll(self, timeout_s: float) -> bool:
        """Hand the sink what has arrived (a few milliseconds of work); wait up to `timeout_s` if nothing has.

        Returns whether anything was handed over.
        """

    def confirm(self, resume: Mapping[str, Any]) -> None:
        """Everything up to this resume token is safe in the log: the server may forget it."""

    def read_chunk(self, table: str, cursor: tuple[Any, ...] | None, limit: int) -> Chunk:
        """The rows after the cursor, in key order, at most `limit` (all of them for a table without primary key)."""

    def interrupt(self) -> None:
        """Let a `read_chunk` that is under way end soon, with any CaptureError; its chunk is not wanted any more."""

    def retained(self) -> Retained:
        """How much the server keeps for us; asked every few seconds."""

    def close(self) -> None:
        """Give back connections; safe to call at any time, from the thread that polls."""
