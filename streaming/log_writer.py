"""The hot way into the change log: record by record, from a process that holds no table. Implementations: see log.py.

This module imports nothing heavy: a connector starts within a second.

Errors: LogError
          ├─ RetryableLogError           the log cannot be reached or is not ready: the same may succeed later
          └─ PermanentLogError           the same would be refused again
               ├─ LogAddressError        HEADWATER_LOG_URL is not what it should be, or its credentials are refused
               ├─ UnknownTopicError      there is no such topic, or the topic has no such partition
               ├─ OffsetOutOfRangeError  the partition has no record there, and never had
               │    └─ OffsetDeletedError  it had: retention has deleted it
               ├─ RecordTooLargeError    the log does not take a record of that size
               ├─ BatchShapeError        not a table of key, value, timestamp_us
               └─ UnusableLogError       what is there is not a change log, or cannot be used
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

__all__ = [
    "BatchShapeError",
    "LogAddressError",
    "LogError",
    "LogWriter",
    "OffsetDeletedError",
    "OffsetOutOfRangeError",
    "PermanentLogError",
    "Record",
    "RecordTooLargeError",
    "RetryableLogError",
    "UnknownTopicError",
    "UnusableLogError",
]


class LogError(RuntimeError):
    """The log did not do what was asked."""


class RetryableLogError(LogError):
    """The log cannot be reached or is not ready. Open it again and repeat from what is known to be durable."""


class PermanentLogError(LogError):
    """The same would be refused again."""


class LogAddressError(PermanentLogError):
    """HEADWATER_LOG_URL is not what it should be, or its credentials are refused."""


class UnknownTopicError(PermanentLogError):
    """There is no such topic, or the topic has no such partition."""


class OffsetOutOfRangeError(PermanentLogError):
    """The offset is below 0 or beyond the end of the partition."""


class OffsetDeletedError(OffsetOutOfRangeError):
    """Retention has deleted the record: what was not read of it is lost to the reader."""


class RecordTooLargeError(PermanentLogError):
    """The log does not take a record of that size; the message names its key.

    `size` in bytes, of key and value. `spent`: it was found out after it was queued, and the writer is spent; else the
    record was not queued, and the writer goes on.
    """

    def __init__(self, message: str, *, topic: str, key: bytes | None, size: int) -> None:
        super().__init__(message)
        self.topic, self.key, self.size = topic, key, size
        self.spent = False


class BatchShapeError(PermanentLogError):
    """What was to be appended is not a table of key, value, timestamp_us."""


class UnusableLogError(PermanentLogError):
    """What is there is not a change log, or it cannot be read or written."""


class Record(NamedTuple):
    """One record as a writer finds it at the end of a partition; `value` None is a tombstone."""

    offset: int
    timestamp_us: int
    key: bytes | None
    value: bytes | None


class LogWriter(Protocol):
    """The hot way into the log: record by record, durable after `flush`. One writer belongs to one thread.

    A writer that raised RetryableLogError is spent: close it, open another, and repeat what was not flushed. Until it
    is closed it lets nothing pass any more, so that a partition never has a record without those sent before it.
    """

    def ensure(self, topics: Sequence[str], *, compacted: bool = False) -> None:
        """Make the topics that do not exist yet; a compacted one keeps each key's last record, in one partition.

        Raises LogError.
        """

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has. Raises UnknownTopicError."""

    def partition(self, topic: str, key: bytes | None) -> int:
        """The partition that `send` chooses for this key: the same in every process."""

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, timestamp_us: int, partition: int | None = None
    ) -> None:
        """Queue a record; order within a partition is kept. May block while too much is queued. Raises LogError."""

    def flush(self) -> None:
        """Return when everything sent is durable. Raises LogError: what was sent since the last flush may be lost."""

    def tails(self, topic: str, records: int = 2) -> Mapping[int, Sequence[Record]]:
        """The last `records` records of each partition, oldest first; no entry for an empty partition."""

    def close(self) -> None:
        """Release what is held; what was not flushed may be lost."""
