"""The stream of committed transactions, turned into calls of the sink: the hot loop.

A transaction is labelled with the position of its commit record: labels grow from one to the next. The position that
the sink is given between transactions is that of the last byte before which everything was handed over, so it is below
the label of whatever comes next, even of a commit that follows without a gap.

Transaction ids are 32 bits wide in the stream and 64 in snapshots: they are widened by the distance to the last one
seen, for PostgreSQL never lets two that matter be further apart than half the range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streaming.capture.sink import Sink
from streaming.postgres import pgoutput
from streaming.postgres.relations import Relations
from streaming.postgres.stream import Stream
from streaming.postgres.watch import Watch

__all__ = ["StreamReader", "widened"]

_HALF_OF_IDS = 1 << 31
_NULL = b"null"
_INSERT, _UPDATE = pgoutput.INSERT, pgoutput.UPDATE
_ROWS = (pgoutput.INSERT, pgoutput.UPDATE, pgoutput.DELETE)


def widened(xid: int, near: int) -> int:
    """The 64-bit transaction id that ends in these 32 bits and is nearest to another one."""
    return near + (xid - near + _HALF_OF_IDS) % (2 * _HALF_OF_IDS) - _HALF_OF_IDS


class StreamReader:
    """Hands over what arrives, and tells the server how far we are. Belongs to the thread that polls."""

    def __init__(
        self,
        stream: Stream,
        sink: Sink,
        relations: Relations,
        watch: Watch,
        *,
        position: int,
        timeline: int,
        near_id: int,
    ) -> None:
        """`position`: where the stream begins; `near_id`: any recent transaction's id, in 64 bits."""
        self._stream, self._sink, self._relations, self._watch = stream, sink, relations, watch
        self._timeline, self._last_id = timeline, near_id
        self._received = self._confirmed = self._last_commit = self._begun = position
        self.highest_id = self._xid = 0
        self._clocked = False
        self._row_source = b""
        sink.advance(position - 1, self._resume(position))

    @property
    def read_bytes(self) -> int:
        """How much of the write-ahead log has gone by."""
        return self._received - self._begun

    def poll(self, timeout_s: float) -> bool:
        """Hand over what has arrived; waits up to `timeout_s` if nothing has. Returns whether anything had."""
        messages = self._stream.batch(timeout_s)
        if not self._clocked:
            self._sink.tick()
        self._take(messages)
        if self._watch.waits and not self._sink.in_transaction:
            self._advance(self._received)
        self._stream.keep_up(self._received, self._confirmed)
        return bool(messages)

    def confirm(self, position: int) -> None:
        """Everything before the position is safe: let the slot move on."""
        self._confirmed = max(self._confirmed, position)
        self._stream.tell(self._received, self._confirmed)

    def _take(self, messages: Sequence[bytes]) -> None:
        row, targets, header = self._sink.row, self._relations.targets, pgoutput.HEADER
        start = pgoutput.ROW_START
        for d in messages:
            if d[0] == pgoutput.KEEPALIVE:
                self._keepalive(d)
                continue
            position, kind, oid = header(d)
            if kind not in _ROWS:
                self._other(d, kind)
                continue
            target = targets.get(oid)
            if target is None:
                self._clocked = self._relations.set_clock(oid, d, kind) or self._clocked
            elif kind == _INSERT:
                key, after, _ = target.decoder.image(d, start)
                row(target.table, b"c", key, _NULL, after, self._row_source % (position, position))
            elif kind == _UPDATE:
                target.update(self._sink, d, self._row_source % (position, position), self._xid)
            else:
                target.delete(self._sink, d, self._row_source % (position, position))

    def _other(self, d: bytes, kind: int) -> None:
        """Everything that is not a row."""
        if kind == pgoutput.BEGIN:
            self._begin(pgoutput.begin(d))
        elif kind == pgoutput.COMMIT:
            self._commit(pgoutput.commit(d))
        elif kind == pgoutput.RELATION:
            self._relations.learn(pgoutput.relation(d))
        elif kind == pgoutput.TRUNCATE:
            self._truncate(d)

    def _begin(self, found: pgoutput.Begin) -> None:
        self._xid, self._last_id = found.xid, widened(found.xid, self._last_id)
        self.highest_id = max(self.highest_id, self._last_id)
        # As in Debezium: the end of the transaction before, and the row's own position.
        self._row_source = b',"lsn":%%d,"sequence":"[\\"%d\\",\\"%%d\\"]"' % self._last_commit
        self._sink.begin(
            self._last_id,
            b"%d:%d" % (found.xid, found.commit),
            found.commit,
            found.event_us,
            b',"txId":%d,"xmin":null' % found.xid,
        )

    def _commit(self, position: int) -> None:
        self._last_commit = position
        if self._clocked:
            self._clocked = False
            self._sink.tick()
        self._reach(position)
        self._sink.end(position - 1, self._resume(position))

    def _truncate(self, d: bytes) -> None:
        position, _, _ = pgoutput.HEADER(d)
        for oid in pgoutput.truncated(d):
            target = self._relations.targets.get(oid)
            if target is not None:
                self._sink.truncate(target.table, self._row_source % (position, position))

    def _keepalive(self, d: bytes) -> None:
        position, asked = pgoutput.keepalive(d)
        if position > self._received and not self._sink.in_transaction:
            self._advance(position)
        if asked:
            self._stream.tell(self._received, self._confirmed)

    def _advance(self, position: int) -> None:
        self._reach(position)
        self._sink.advance(position - 1, self._resume(position))

    def _reach(self, position: int) -> None:
        self._received = position
        self._watch.reach(position)

    def _resume(self, position: int) -> Mapping[str, Any]:
        return {"lsn": position, "timeline": self._timeline, **self._watch.resume}
