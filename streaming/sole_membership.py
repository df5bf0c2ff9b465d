"""A group of which one process has everything: how readers of a log share it that cannot tell its partitions apart."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from streaming.log import ChangeLog, Listener, TopicPartition

__all__ = ["SoleMembership"]

_TRY_EVERY_S = 0.05


class SoleMembership:
    """A `Membership`: whoever holds the lock file has all partitions, the others none until it ends, however it ends.

    One object is one member, also within a process.
    """

    def __init__(
        self,
        log: ChangeLog,
        lock: Path,
        group: str,
        topics: Sequence[str],
        listener: Listener,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._log = log
        self._group = group
        self._topics = tuple(topics)
        self._listener = listener
        self._sleep = sleep
        self._file: IO[str] | None = lock.open("a")
        self._holds = False
        self._partitions: frozenset[TopicPartition] = frozenset()

    @property
    def partitions(self) -> frozenset[TopicPartition]:
        """Every partition of the topics, or none."""
        return self._partitions

    def poll(self, wait_s: float = 0.0) -> None:
        """Take the lock if it is free, and see whether topics were made meanwhile."""
        until = time.monotonic() + wait_s
        while not self._refresh() and (left := until - time.monotonic()) > 0:
            self._sleep(min(left, _TRY_EVERY_S))

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """As the log's own."""
        self._log.commit(self._group, offsets)

    def close(self) -> None:
        """Let go of the lock."""
        if self._file is None:
            return
        if self._partitions:
            self._listener.revoked(self._partitions)
        self._partitions = frozenset()
        self._file.close()
        self._file = None

    def _refresh(self) -> bool:
        """Whether there was news."""
        if not self._locked():
            return False
        new = {each for topic in self._topics for each in self._log.partitions(topic)} - self._partitions
        if new:
            self._partitions |= new
            self._listener.assigned(new)
        return bool(new)

    def _locked(self) -> bool:
        if not self._holds and self._file is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._holds = True
        return self._holds
