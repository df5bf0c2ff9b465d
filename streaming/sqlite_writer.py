"""A `LogWriter` on the embedded log: records are kept until `flush`, which appends all of them in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from streaming.log import BATCH_SCHEMA, TopicPartition
from streaming.log_writer import LogError, Record, UnknownTopicError
from streaming.record_text import to_bytes, to_text
from streaming.sqlite_log import SqliteLog

__all__ = ["SqliteWriter"]

_BODY_SCHEMA = pa.schema([BATCH_SCHEMA.field(name) for name in ("timestamp_us", "key", "value")])
# Flushed by itself at so much, so that a transaction of any size takes no more memory than this.
_PENDING_BYTES = 8 << 20
_RECORD_BYTES = 100

_Waiting = tuple[list[int], list[str | None], list[str | None]]


class SqliteWriter:
    """One partition for each topic; a topic exists once something was flushed to it."""

    def __init__(self, path: Path) -> None:
        """Opens the log in the file `path`, or makes it. Raises UnusableLogError."""
        self._log = SqliteLog(path)
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
        keys.append(None if key is None else to_text(key))
        values.append(None if value is None else to_text(value))
        self._pending_bytes += len(key or b"") + len(value or b"") + _RECORD_BYTES
        if self._pending_bytes >= _PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Append what was sent, to all topics or to none. Raises LogError, again and again: the writer is spent."""
        if self._failure is not None:
            raise self._failure
        try:
            if self._pending:
                self._log.append({topic: pa.table(list(w), schema=_BODY_SCHEMA) for topic, w in self._pending.items()})
        except LogError as error:
            self._failure = error
            raise
        self._pending, self._pending_bytes = {}, 0

    def tails(self, topic: str, records: int = 2) -> Mapping[int, Sequence[Record]]:
        """The last `records` records of the topic's partition, oldest first; empty for an empty topic."""
        if not self._log.partitions(topic):
            return {}
        source = TopicPartition(topic, 0)
        end = self._log.end(source)
        rows = self._log.read(source, max(0, end - records), records)
        columns = (rows[name].to_pylist() for name in BATCH_SCHEMA.names)
        return {
            0: [Record(offset, time, _raw(key), _raw(value)) for offset, time, key, value in zip(*columns, strict=True)]
        }

    def close(self) -> None:
        """Release the file; what was not flushed is lost."""
        self._log.close()


def _raw(text: str | None) -> bytes | None:
    return None if text is None else to_bytes(text)
