"""kafka-python's connections to a cluster, asked in our words: topics, offsets, groups, and records as they are stored.

kafka-python's consumer makes an object of each record; this asks a partition's leader for its batches as bytes instead,
for kafka_batches.py. Nothing is remembered between two requests, so nothing can be out of step with the broker.

Every method raises LogError; what passes is tried again for `patience_s`.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from streaming.kafka_config import KafkaAddress, kafka_python_options
from streaming.log import TopicPartition
from streaming.log_writer import (
    LogAddressError,
    LogError,
    OffsetOutOfRangeError,
    PermanentLogError,
    RetryableLogError,
    UnknownTopicError,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its import uses importlib.resources.read_text
    import kafka
    from kafka import errors
    from kafka.admin import KafkaAdminClient
    from kafka.net.inet import KafkaNetSocket
    from kafka.protocol.consumer import FetchRequest, IsolationLevel, OffsetSpec
    from kafka.structs import OffsetAndMetadata

__all__ = ["Fetched", "LogClient", "client_options", "error_of"]

# Our errors say what went wrong; without a handler Python would print each attempt to connect as well.
logging.getLogger("kafka").addHandler(logging.NullHandler())

_Answer = TypeVar("_Answer")
_NOT_ALLOWED = (
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.SaslAuthenticationFailedError,
    errors.UnsupportedSaslMechanismError,
)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


class _ClosedSocket(KafkaNetSocket):  # type: ignore[misc]
    """kafka-python leaves a socket that could not connect to the garbage collector, in a cycle: while a cluster was
    away a process lost one file descriptor a second. A proxy's scheme is how it lets us have sockets of our own.
    """

    SCHEMES = ("headwater",)

    async def sock_connect(self, net: Any, sock: Any, sockaddr: Any, timeout_at: float | None = None) -> Any:
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise


def client_options(address: KafkaAddress, patience_s: float) -> dict[str, Any]:
    """What all of kafka-python's clients are told."""
    return {
        "client_id": "headwater",
        "proxy_url": "headwater://",
        "bootstrap_timeout_ms": int(patience_s * 1000),
        "reconnect_backoff_max_ms": 1_000,
        **kafka_python_options(address),
    }


class Fetched(NamedTuple):
    """A partition's answer: its batches as stored, and the first offsets of aborted transactions by producer."""

    batches: bytes
    aborted: Mapping[int, Sequence[int]]


class _Connections(KafkaAdminClient):  # type: ignore[misc]
    """The administrator's client can ask everything but for records."""

    def __init__(self, **options: object) -> None:
        self._leaders: dict[TopicPartition, int] = {}
        try:
            super().__init__(**options)
        except BaseException:
            if hasattr(self, "_net"):  # else its thread would run for ever, trying to connect
                self._closed = False
                self.close()
            raise

    def fetch(self, source: TopicPartition, offset: int, max_bytes: int) -> Any:
        """The partition's part of the answer; of aborted transactions no more than what is needed to leave them out."""
        partition = FetchRequest.FetchTopic.FetchPartition(
            partition=source.partition,
            current_leader_epoch=-1,
            fetch_offset=offset,
            last_fetched_epoch=-1,
            partition_max_bytes=max_bytes,
        )
        request = FetchRequest(
            max_wait_ms=0,
            min_bytes=0,
            max_bytes=max_bytes,
            isolation_level=int(IsolationLevel.READ_COMMITTED),
            session_id=0,
            session_epoch=-1,
            topics=[FetchRequest.FetchTopic(topic=source.topic, partitions=[partition])],
            forgotten_topics_data=[],
            rack_id="",
            min_version=4,
            max_version=12,  # from 13 on topics go by id
        )

        async def ask() -> Any:
            leader = self._leaders.pop(source, None)  # put back if it is the one
            if leader is None:
                leader = next(iter(await self._async_get_leader_for_partitions([kafka.TopicPartition(*source)])))
            answer = await self._manager.send(request, node_id=leader)
            found = answer.responses[0].partitions[0]
            if not found.error_code:
                self._leaders[source] = leader
            return found

        return self._manager.run(ask)


class LogClient:
    """A cluster's topics, offsets, groups and stored records. Safe to share between threads."""

    def __init__(self, address: KafkaAddress, patience_s: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """Connects. Raises RetryableLogError, LogAddressError."""
        self._address = address
        self._patience_s = patience_s
        self._sleep = sleep
        options = {
            "request_timeout_ms": int(patience_s * 1000),
            "receive_message_max_bytes": 1 << 30,
            **client_options(address, patience_s),
        }
        try:
            self._connections = _Connections(**options)
        except (errors.KafkaError, OSError, ValueError) as error:
            raise error_of(error, address, "tried to connect") from None

    def close(self) -> None:
        """Disconnect."""
        self._connections.close()

    def topics(self) -> list[str]:
        """Every topic but Kafka's own, by name."""
        names = self._patiently("tried to list its topics", self._connections.list_topics)
        return sorted(name for name in names if not name.startswith("__"))

    def partitions(self, topic: str) -> list[TopicPartition]:
        """The topic's partitions in their order; empty when there is no such topic."""

        found = self._described(topic)["partitions"]
        return [TopicPartition(topic, n) for n in sorted(p["partition_index"] for p in found)]

    def identity(self, topic: str) -> int | None:
        """63 bits of the topic's id; None when there is no such topic, or its broker gives it none."""
        found = self._described(topic).get("topic_id")
        number = 0 if found is None else UUID(str(found)).int
        return number >> 65 if number else None

    def begins(self, sources: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The first offset that is still there, of each."""
        return self._offsets(sources, OffsetSpec.EARLIEST)

    def ends(self, sources: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset up to which each can be read: behind it there are only open transactions."""
        return self._offsets(sources, OffsetSpec.LATEST)

    def fetch(self, source: TopicPartition, offset: int, max_bytes: int) -> Fetched:
        """Stored batches from the one that has `offset` on; the first one whole, whatever its size.

        Raises OffsetOutOfRangeError.
        """

        def ask() -> Fetched:
            answer = self._connections.fetch(source, offset, max_bytes)
            if answer.error_code:
                raise errors.for_code(answer.error_code)(str(source))
            aborted: dict[int, list[int]] = {}
            for each in answer.aborted_transactions or ():
                aborted.setdefault(each.producer_id, []).append(each.first_offset)
            return Fetched(answer.records or b"", aborted)

        return self._patiently(f"tried to read {source} from offset {offset}", ask)

    def committed(self, group: str, sources: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The next offset that the group will read of each; 0 before its first commit."""
        wanted = {group: [kafka.TopicPartition(*source) for source in sources]}
        found = self._patiently(
            f"tried to read the offsets of group {group}", self._connections.list_group_offsets, wanted
        )
        return {TopicPartition(*at): max(each.offset, 0) for at, each in found[group].items()}

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Set them, whatever they were; Kafka refuses while the group has members."""
        wanted = {kafka.TopicPartition(*at): OffsetAndMetadata(offset, "", -1) for at, offset in offsets.items()}

        def ask() -> None:
            for at, kind in self._connections.alter_group_offsets(group, wanted).items():
                if kind is not errors.NoError:
                    raise kind(f"{at.topic}-{at.partition}")

        self._patiently(f"tried to commit offsets of group {group}", ask)

    def sizes(self, topic: str) -> dict[TopicPartition, int]:
        """Bytes that each partition of the topic takes on the disk of a broker."""
        found = self._patiently(f"tried to measure {topic}", self._connections.describe_log_dirs, [topic])
        return {
            TopicPartition(topic, p["partition_index"]): p["partition_size"]
            for broker in found
            for folder in broker["log_dirs"]
            for each in folder["topics"]
            for p in each["partitions"]
        }

    def _described(self, topic: str) -> Mapping[str, Any]:
        """Its metadata; without partitions when there is no such topic."""

        def ask() -> Mapping[str, Any]:
            (found,) = self._connections.describe_topics([topic])
            kind = errors.for_code(found["error_code"])
            if kind not in (errors.NoError, errors.UnknownTopicOrPartitionError):
                raise kind(topic)
            return dict(found)

        return self._patiently(f"tried to look at topic {topic}", ask)

    def _offsets(self, sources: Collection[TopicPartition], which: Any) -> dict[TopicPartition, int]:
        if not sources:
            return {}
        wanted = {kafka.TopicPartition(*source): which for source in sources}
        found = self._patiently(
            f"tried to find the ends of {', '.join(str(source) for source in sources)}",
            self._connections.list_partition_offsets,
            wanted,
            IsolationLevel.READ_COMMITTED,
        )
        return {TopicPartition(*at): each.offset for at, each in found.items()}

    def _patiently(self, tried: str, ask: Callable[..., _Answer], *arguments: object) -> _Answer:
        """Again while the cluster is not ready: leaders move, brokers start. Raises what remains as LogError."""
        until, pause_s = time.monotonic() + self._patience_s, _FIRST_PAUSE_S
        while True:
            try:
                return ask(*arguments)
            except (errors.KafkaError, OSError) as error:
                found = error_of(error, self._address, tried)
                if not isinstance(found, RetryableLogError) or time.monotonic() > until:
                    raise found from None
            self._sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def error_of(error: Exception, address: KafkaAddress, tried: str) -> LogError:
    """What kafka-python says, as an error of ours."""
    said = f"{address}: {tried}, found {type(error).__name__}: {error}"
    if isinstance(error, errors.UnknownTopicOrPartitionError | errors.InvalidTopicError):
        return UnknownTopicError(said)
    if isinstance(error, errors.OffsetOutOfRangeError):
        return OffsetOutOfRangeError(said)
    if isinstance(error, _NOT_ALLOWED):
        return LogAddressError(f"{said}. Check user, password, tls and ca in HEADWATER_LOG_URL, and our rights")
    if isinstance(
        error, errors.IncompatibleBrokerVersion | errors.UnsupportedVersionError | errors.KafkaConfigurationError
    ):
        return PermanentLogError(said)
    return RetryableLogError(said)
