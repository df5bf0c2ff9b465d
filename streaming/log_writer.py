"""The hot way into the change log: record by record, from a process that holds no table. Implementations: see log.py.

This module imports nothing heavy: a connector starts within a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

__all__ = ["LogError", "LogWriter", "Record"]


class LogError(RuntimeError):
    """The log refused: an unknown topic, an offset that is out of range, a batch of the wrong shape."""


class Record(NamedTuple):
    """One record as a writer finds it at the end of a partition; `value` None is a tombstone."""

    offset: int
    timestamp_us: int
    key: bytes | None
    value: bytes | None


class LogWriter(Protocol):
    """The hot way into the log: record by record, durable after `flush`. One writer belongs to one thread."""

    def ensure(self, topics: Sequence[str], *, compacted: bool = False) -> None:
        """Make the topics that do not exist yet. Raises LogError."""

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has."""

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
