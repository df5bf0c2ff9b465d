"""The change log's protocol: append, read, commit, lag. Implementations live beside this file.

The protocol is Kafka's in small: a topic has partitions; a partition is a sequence of records whose offsets start at 0
and grow by one; a group's committed offset is the next one that it will read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import pyarrow as pa

from streaming.log_writer import LogError

__all__ = ["BATCH_SCHEMA", "ChangeLog", "Lag", "LogError", "TopicPartition"]

# Columns of a batch. `timestamp_us` is the record's own time in microseconds since 1970 UTC, set by who appends it: the
# instant at which the change became known to us (a replay stamps its own clock). `value` null is a tombstone.
BATCH_SCHEMA = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("timestamp_us", pa.int64(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("value", pa.string()),
    ]
)


class TopicPartition(NamedTuple):
    """One partition of one topic; as text `topic-0`, which is also its application id in a Delta transaction."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"


@dataclass(frozen=True)
class Lag:
    """How far a group is behind on one partition, in records and in microseconds of record time."""

    committed: int
    end: int
    behind_us: int

    @property
    def records(self) -> int:
        return self.end - self.committed


class ChangeLog(Protocol):
    """An ordered, durable log of changes."""

    def partitions(self, topic: str) -> Sequence[TopicPartition]:
        """The topic's partitions; empty when nothing was ever appended to it."""

    def append(self, batches: Mapping[str, pa.Table]) -> None:
        """Append to several topics at once, all or nothing; a table has columns key, value, timestamp_us.

        Kafka cannot append to several topics atomically without transactions: callers must not rely on it for
        correctness, only resume from `end`.
        """

    def read(self, source: TopicPartition, offset: int, max_records: int) -> pa.Table:
        """Up to `max_records` records from `offset` on, in order, as BATCH_SCHEMA; empty at the end of the log."""

    def end(self, source: TopicPartition) -> int:
        """The offset that the next record will get."""

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Record the next offset that `group` will read of each partition; never moves backwards."""

    def committed(self, group: str, source: TopicPartition) -> int:
        """The next offset that `group` will read; 0 before its first commit."""

    def lag(self, group: str, topic: str) -> Mapping[TopicPartition, Lag]:
        """How far `group` is behind on each partition of `topic`."""
