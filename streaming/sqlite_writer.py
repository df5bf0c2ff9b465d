"""A `LogWriter` on the embedded log: records are kept until `flush`, which appends all of them in one transaction.

It imports nothing heavy, unless it is asked for the end of a topic that was appended to as a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from streaming.log_writer import LogError, Record, UnknownTopicError
from streaming.record_text import to_bytes, to_text
from streaming.sqlite_batches import BATCH_RECORDS, Batches, is_packed, pack, unpack

__all__ = ["SqliteWriter"]

# Flushed by itself at so much, so that a transaction of any size takes no more memory than this.
_PENDING_BYTES = 8 << 20
_RECORD_BYTES = 100

_Waiting = tuple[list[int], list[bytes | None], list[bytes | None]]


class SqliteWriter:
    """One partition for each topic; a topic exists once something was flushed to it."""

    def __init__(self, path: Path) -> None:
        """Opens the log in the file `path`, or makes it. Raises UnusableLogError."""
        self._batches = Batches(path)
        self._pending: dict[str, _Waiting] = {}
        self._pending_bytes = 0
        self._failure: LogError | None = None

    def ensure(self, topics: Sequence[str], *, compacted: bool = False) -> None:
        """Nothing to do: a topic is made by what is written to it, and nothing is ever deleted from it."""

    def partitions(self, topic: str) -> int:
        """1."""
        return 1

    def partition(self, topic: str, key: bytes | None) -> int:
        """0."""
        return 0

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, timestamp_us: int, partition: int | None = None
    ) -> None:
        """Keep a record; at 8 MiB all that are kept are flushed. Raises LogError."""
        if partition:
            raise UnknownTopicError(f"{topic}-{partition}: the embedded log has one partition, 0, for each topic")
        times, keys, values = self._pending.setdefault(topic, ([], [], []))
        times.append(timestamp_us)
        keys.append(None if key is None else to_text(key).encode())
        values.append(None if value is None else to_text(value).encode())
        self._pending_bytes += len(key or b"") + len(value or b"") + _RECORD_BYTES
        if self._pending_bytes >= _PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Append what was sent, to all topics or to none. Raises LogError, again and again: the writer is spent."""
        if self._failure is not None:
            raise self._failure
        try:
            if self._pending:
                self._batches.append({topic: list(_bodies(*waiting)) for topic, waiting in self._pending.items()})
        except LogError as error:
            self._failure = error
            raise
        self._pending, self._pending_bytes = {}, 0

    def tails(self, topic: str, records: int = 2) -> Mapping[int, Sequence[Record]]:
        """The last `records` records of the topic's partition, oldest first; empty for an empty topic."""
        end = self._batches.end(topic)
        start = max(0, end - records)
        bodies = self._batches.read(topic, start, records) if end else []
        found = [record for base, body in bodies for record in _records(base, body) if record.offset >= start]
        return {0: found} if found else {}

    def close(self) -> None:
        """Release the file; what was not flushed is lost."""
        self._batches.close()


def _bodies(
    times: Sequence[int], keys: Sequence[bytes | None], values: Sequence[bytes | None]
) -> Iterator[tuple[int, bytes]]:
    for start in range(0, len(times), BATCH_RECORDS):
        part = slice(start, start + BATCH_RECORDS)
        yield len(times[part]), pack(times[part], keys[part], values[part])


def _records(base: int, body: bytes) -> Iterator[Record]:
    if not is_packed(body):
        from streaming.sqlite_log import unpacked

        yield from (Record(*row[:2], *map(_raw, row[2:])) for row in zip(*unpacked(base, body), strict=True))
        return
    found = unpack(body)
    keys, values = _texts(found.key_sizes, found.keys), _texts(found.value_sizes, found.values)
    for offset, (time, key, value) in enumerate(zip(found.times, keys, values, strict=True), base):
        yield Record(offset, time, key, value)


def _texts(sizes: memoryview[int], texts: memoryview) -> Iterator[bytes | None]:
    at = 0
    for size in sizes:
        yield None if size < 0 else _raw(str(texts[at : at + size], "utf-8"))
        at += max(size, 0)


def _raw(text: str | None) -> bytes | None:
    return None if text is None else to_bytes(text)
