"""The change log's protocol: append, read, commit, lag, share. Implementations live beside this file.

The protocol is Kafka's in small: a topic has partitions; a partition is a sequence of records whose offsets start at 0
and grow, by one unless Kafka has compacted records away or keeps marks of its own between them: what follows a batch is
`next_offset` of it. A group's committed offset is the next one that it will read. Old records may be deleted, so a
partition begins where it begins.

    sqlite_log.py, sqlite_writer.py    the embedded log: one file (sqlite_batches.py), one partition for each topic
    kafka_log.py, kafka_writer.py      Kafka
    open_log.py                        which of them, by HEADWATER_LOG_URL
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import pyarrow as pa

from streaming.log_writer import LogError

__all__ = ["BATCH_SCHEMA", "ChangeLog", "Lag", "Listener", "LogError", "Membership", "TopicPartition", "next_offset"]

# Columns of a batch. `timestamp_us` is the record's own time in microseconds since 1970 UTC, set by who appends it: the
# instant at which the change became known to us (a replay stamps its own clock); Kafka keeps whole milliseconds of it.
# `value` null is a tombstone. What is not UTF-8 stands there as streaming.record_text has it.
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
    """How far a group is behind on one partition: in records, in microseconds of record time, in stored bytes.

    `begin` is the first record that is still there. On Kafka `behind_bytes` is estimated from the partition's size.
    """

    committed: int
    end: int
    behind_us: int
    begin: int = 0
    behind_bytes: int = 0

    @property
    def records(self) -> int:
        return self.end - self.committed

    @property
    def deleted(self) -> int:
        """Records that retention deleted before the group read them."""
        return max(0, self.begin - self.committed)


class Listener(Protocol):
    """Told by a membership which partitions come and go, while its `poll` or `close` runs; has to be quick."""

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        """These are ours from now on, beside those that we have."""

    def revoked(self, partitions: Collection[TopicPartition]) -> None:
        """These go to another process as soon as this returns."""

    def lost(self, partitions: Collection[TopicPartition]) -> None:
        """These were given to another process already: it took us for dead. What is written to them now is too late."""


class Membership(Protocol):
    """One process's part in a group whose processes share the partitions of some topics: each has one owner.

    An owner that falls silent can be taken for dead while it lives, so a write by offset has to be fenced by whatever
    keeps the offset; this only says who should read what.
    """

    @property
    def partitions(self) -> frozenset[TopicPartition]:
        """Ours, as of the last `poll`."""

    def poll(self, wait_s: float = 0.0) -> None:
        """Stay in the group, and tell the listener what comes and goes; waits up to so long for news.

        To be called at least every five minutes. Raises RetryableLogError.
        """

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """As ChangeLog.commit, by a member: while a group has members Kafka takes no other's. Raises LogError."""

    def close(self) -> None:
        """Leave: the others get our partitions at once, and not only when we are taken for dead."""


class ChangeLog(Protocol):
    """An ordered, durable log of changes. Safe to share between threads. Every method raises LogError."""

    def topics(self) -> Sequence[str]:
        """Every topic, by name."""

    def partitions(self, topic: str) -> Sequence[TopicPartition]:
        """The topic's partitions; empty when there is no such topic."""

    def identity(self, topic: str) -> int | None:
        """63 bits, others once the topic is made anew; None when there is no such topic or the log cannot say."""

    def append(self, batches: Mapping[str, pa.Table]) -> None:
        """Append to several topics at once, all or nothing; a table has columns key, value, timestamp_us.

        Kafka cannot append to several topics atomically without transactions: callers must not rely on it for
        correctness, only resume from `end`.
        """

    def read(self, source: TopicPartition, offset: int, max_records: int) -> pa.Table:
        """Up to `max_records` records from `offset` on, in order, as BATCH_SCHEMA; empty at the end of the log.

        Raises OffsetDeletedError where retention has deleted records from `offset` on: never passed over silently.
        """

    def begin(self, source: TopicPartition) -> int:
        """The offset of the first record that is still there; `end` when there is none."""

    def end(self, source: TopicPartition) -> int:
        """The offset that the next record will get."""

    def ends(self, sources: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """`end` of many at the price of one: what a reader that waits for news asks."""

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Record the next offset that `group` will read of each partition; never moves backwards."""

    def committed(self, group: str, source: TopicPartition) -> int:
        """The next offset that `group` will read; 0 before its first commit."""

    def lag(self, group: str, topic: str) -> Mapping[TopicPartition, Lag]:
        """How far `group` is behind on each partition of `topic`."""

    def join(self, group: str, topics: Sequence[str], listener: Listener) -> Membership:
        """Become one of the processes that share the topics' partitions; topics may be made later."""

    def close(self) -> None:
        """Release what is held; the log cannot be used afterwards."""


def next_offset(batch: pa.Table, offset: int) -> int:
    """Where to read on after `batch`, which was read from `offset`."""
    return int(batch["offset"][-1].as_py()) + 1 if batch.num_rows else offset
