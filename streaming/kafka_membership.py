"""A member of a Kafka consumer group that only learns which partitions are its own; it reads nothing by itself.

kafka-python's consumer does the membership (heartbeats go on in a thread of its own between two polls); its partitions
are paused, and records are read through KafkaLog, from the offset that whoever writes them has kept.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from streaming.kafka_client import client_options, error_of
from streaming.log import Listener, TopicPartition
from streaming.log_writer import RetryableLogError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its import uses importlib.resources.read_text
    import kafka
    from kafka import errors
    from kafka.consumer.subscription_state import ConsumerRebalanceListener
    from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
    from kafka.coordinator.base import MemberState
    from kafka.structs import OffsetAndMetadata

if TYPE_CHECKING:
    from streaming.kafka_log import KafkaLog

__all__ = ["KafkaMembership"]

_HEARTBEATS = 5
_BETWEEN_POLLS_MS = 300_000
_NEW_TOPICS_MS = 5_000
# How long `poll` stays at most while the group changes, and in which steps.
_JOINING_S = 0.5
_JOINING_STEP_MS = 100
_GONE = (
    errors.UnknownMemberIdError,
    errors.IllegalGenerationError,
    errors.RebalanceInProgressError,
    errors.CommitFailedError,
)


class KafkaMembership:
    """A `Membership`. Partitions move one by one: what stays ours is not given up while the group changes."""

    def __init__(
        self, log: KafkaLog, group: str, topics: Sequence[str], listener: Listener, patience_s: float, silence_s: float
    ) -> None:
        """Joins at the first `poll`. Taken for dead after `silence_s`. Raises LogError when no broker answers."""
        self._log = log
        self._group = group
        self._member_id = ""
        self._own = _Own(listener, lambda partitions: self._consumer.pause(*partitions))
        options = {
            "group_id": group,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",  # of a position that nothing is read from
            "allow_auto_create_topics": False,
            "session_timeout_ms": int(silence_s * 1000),
            "heartbeat_interval_ms": int(silence_s * 1000 / _HEARTBEATS),
            "max_poll_interval_ms": _BETWEEN_POLLS_MS,
            "metadata_max_age_ms": _NEW_TOPICS_MS,
            "partition_assignment_strategy": [CooperativeStickyAssignor],
            "metrics_enabled": False,
            **client_options(log.address, patience_s),
        }
        try:
            self._consumer = kafka.KafkaConsumer(**options)
            self._consumer.subscribe(topics=list(topics), listener=self._own)
        except (errors.KafkaError, OSError, ValueError) as error:
            raise error_of(error, log.address, f"tried to join group {group}") from None

    @property
    def partitions(self) -> frozenset[TopicPartition]:
        """Ours, as of the last `poll`."""
        return frozenset(self._own.partitions)

    def poll(self, wait_s: float = 0.0) -> None:
        """Stay in the group. What the listener raises comes out here. Raises RetryableLogError.

        A join that ends between two polls is never applied by kafka-python 3.0 where the reason for it was a new topic:
        the member sends no heartbeat any more, has nothing of the group's, and does not know it. So none is left to
        itself, and one that was cut off is asked for again.
        """
        try:
            self._consumer.poll(timeout_ms=int(wait_s * 1000))
            until = time.monotonic() + _JOINING_S
            while self._consumer.group_metadata().state is MemberState.REBALANCING and time.monotonic() < until:
                self._consumer._coordinator.request_rejoin()
                self._consumer.poll(timeout_ms=_JOINING_STEP_MS)
            self._look_who_we_are()
        except (errors.KafkaError, OSError) as error:
            raise self._raised(error, "tried to stay in") from error.__cause__

    def _look_who_we_are(self) -> None:
        """Who was taken for dead while it joined is a new member; kafka-python does not say that it had lost all."""
        member_id = self._consumer.group_metadata().member_id
        if member_id and member_id != self._member_id:
            if self._member_id:
                self._own.lose_unless_told()
            self._member_id, self._own.told = member_id, False

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Never moves backwards. Raises RetryableLogError when a partition is not ours any more."""
        ahead = self._log._ahead_of(self._group, offsets)
        wanted = {kafka.TopicPartition(*at): OffsetAndMetadata(offset, "", -1) for at, offset in ahead.items()}
        try:
            if wanted:
                self._consumer.commit(wanted)
        except _GONE as error:
            raise RetryableLogError(
                f"{self._log.address}: tried to commit offsets of group {self._group}, found that it "
                f"is changing, or took us for dead ({type(error).__name__})"
            ) from None
        except (errors.KafkaError, OSError) as error:
            raise error_of(error, self._log.address, f"tried to commit offsets of group {self._group}") from None

    def close(self) -> None:
        """Leave."""
        try:
            self._consumer.close(autocommit=False, timeout_ms=5_000)
        except (errors.KafkaError, OSError) as error:
            raise self._raised(error, "tried to leave") from error.__cause__

    def _raised(self, error: Exception, tried: str) -> BaseException:
        """kafka-python wraps what a listener raises."""
        return error.__cause__ or error_of(error, self._log.address, f"{tried} group {self._group}")


class _Own(ConsumerRebalanceListener):  # type: ignore[misc]
    """Which partitions are ours, in our words."""

    def __init__(self, listener: Listener, pause: Callable[[Collection[tuple[str, int]]], None]) -> None:
        self.partitions: set[TopicPartition] = set()
        self.told = False
        self._listener = listener
        self._pause = pause

    def on_partitions_assigned(self, assigned: Collection[tuple[str, int]]) -> None:
        self._pause(assigned)
        new = {TopicPartition(*each) for each in assigned} - self.partitions
        self.partitions |= new
        if new:
            self._listener.assigned(new)

    def on_partitions_revoked(self, revoked: Collection[tuple[str, int]]) -> None:
        gone = {TopicPartition(*each) for each in revoked} & self.partitions
        self.partitions -= gone
        if gone:
            self._listener.revoked(gone)

    def lose_unless_told(self) -> None:
        """What is ours was lost, and is ours again."""
        if self.partitions and not self.told:
            self._listener.lost(frozenset(self.partitions))
            self._listener.assigned(frozenset(self.partitions))

    def on_partitions_lost(self, lost: Collection[tuple[str, int]]) -> None:
        self.told = True
        gone = {TopicPartition(*each) for each in lost} & self.partitions
        self.partitions -= gone
        if gone:
            self._listener.lost(gone)
