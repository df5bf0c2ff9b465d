"""A `LogWriter` on Kafka: librdkafka's producer (confluent-kafka), and its consumer for the ends of partitions.

This client is here for its price alone: 2 to 3 us of CPU a record where kafka-python's producer takes 16
(docs/decisions/0001-kafka-clients.md). It is small, too: a connector imports no table library.

What a partition has is always what was sent to it, in order, up to some record. A record never times out while later
ones go through; when Kafka refuses one for good the producer stops (`enable.gapless.guarantee`); and `close` throws
away what was not delivered. Were a record missing before later ones, then after the repetition that follows a failure
it would look like one that landed long ago.

A broker finds a gap by the number of the producer's last batch, and one that remembers none takes any: when it refuses
a batch for a moment (its new partition is not open yet, its leader has moved) and takes the next, which was under way
already, librdkafka concludes that it has both. Therefore the first record to a partition goes alone. And since brokers
forget a producer a day after the time of its last record, whoever writes records of other times than now has one
request under way; far from the broker that costs latency.

    https://issues.apache.org/jira/browse/KAFKA-15591   (mended in brokers later than 4.1, for empty partitions)
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException, Message, Producer, murmur2

from streaming.kafka_config import MAX_RECORD_BYTES, KafkaAddress, TopicShape, confluent_options
from streaming.kafka_refusals import LOGGER, refusal
from streaming.kafka_tails import Tails
from streaming.kafka_topics import make_missing, topic_partitions
from streaming.log_writer import LogError, Record, RecordTooLargeError, RetryableLogError

__all__ = ["KafkaWriter"]

_PATIENCE_S = 15.0
_PURGED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)
_POLL_S = 0.05
# Nothing is sent behind a record that a broker may refuse for its size until it is there. Batches of smaller records
# stay below this size.
_ALONE_BYTES = 900_000
# Well below a day, which is how long brokers remember a producer by default (producer.id.expiration.ms).
_REMEMBERED_US = 3_600_000_000
_EVERY_PARTITION = range(1 << 31)
_ALWAYS_US = 1 << 62
# lz4 takes less CPU than sending what it saves, on the broker too; zstd costs a quarter more.
_OPTIONS: Mapping[str, str | int | bool] = {
    "client.id": "headwater",
    "enable.idempotence": True,
    "enable.gapless.guarantee": True,
    "acks": "all",
    "message.timeout.ms": 0,
    "message.max.bytes": MAX_RECORD_BYTES,
    "compression.type": "lz4",
    "partitioner": "murmur2",
    "sticky.partitioning.linger.ms": 0,
    "linger.ms": 1,  # 2 take no less CPU, and each adds its time to every change
    "queue.buffering.max.messages": 50_000,
    "queue.buffering.max.kbytes": 32 << 10,
    "delivery.report.only.error": True,
    "retry.backoff.ms": 50,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 1_000,
    "socket.nagle.disable": True,
    "topic.metadata.refresh.interval.ms": 30_000,
    "topic.metadata.propagation.max.ms": 5_000,
}


class KafkaWriter:
    """One producer; it has the memory of at most 32 MiB of records that Kafka has not acknowledged yet."""

    def __init__(
        self, address: KafkaAddress, shape: TopicShape | None = None, *, patience_s: float = _PATIENCE_S
    ) -> None:
        """Connects when it is first used. `patience_s`: how long to wait for a broker that acknowledges nothing."""
        self._address = address
        self._shape = shape or TopicShape()
        self._patience_s = patience_s
        self._counts: dict[str, int] = {}
        # Partitions that have acknowledged a record, for records of these times; and those that were sent one since.
        self._known: defaultdict[str, Collection[int]] = defaultdict(frozenset)
        self._known_from_us = self._known_until_us = 0
        self._known_by_s = 0.0
        self._introduced: set[tuple[str, int]] = set()
        self._failure: LogError | None = None
        self._last_problem: KafkaError | None = None
        self._fatal: KafkaError | None = None
        self._tails: Tails | None = None
        self._producer = self._connect()
        self._produce: Callable[..., None] = self._producer.produce

    def ensure(self, topics: Sequence[str], *, compacted: bool = False) -> None:
        """Make the topics that do not exist yet, with our settings; those that exist keep theirs.

        Raises PermanentLogError when one that has to be compacted is not, RetryableLogError.
        """
        made = make_missing(self._address, self._producer, topics, self._shape, compacted, self._patience_s)
        self._counts.update(made)

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has. Raises UnknownTopicError, RetryableLogError."""
        if topic not in self._counts:
            self._counts[topic] = topic_partitions(self._producer, self._address, topic, self._patience_s)
        return self._counts[topic]

    def partition(self, topic: str, key: bytes | None) -> int:
        """Kafka's own choice for keys (murmur2, as Java's producer); records without a key all have the same."""
        chosen: int = murmur2(key or b"", self.partitions(topic))
        return chosen

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, timestamp_us: int, partition: int | None = None
    ) -> None:
        """Queue a record; waits while 32 MiB or 50,000 records are queued, and until one of a megabyte is there.

        `timestamp_us` is kept in whole milliseconds and is at least one (librdkafka takes 0 for now). Raises
        RecordTooLargeError (the record was not queued, the writer goes on), RetryableLogError, UnknownTopicError.
        """
        if partition is None:  # chosen here, so that no partition that is added meanwhile is a stranger
            partition = murmur2(key or b"", self._counts.get(topic) or self.partitions(topic))
        is_known = partition in self._known[topic] and self._known_from_us <= timestamp_us < self._known_until_us
        if not is_known:
            self._introduce(topic, partition, timestamp_us)
        try:
            self._produce(topic, value, key, partition, timestamp=timestamp_us // 1000 or 1)
        except (BufferError, KafkaException):
            self._send_patiently(topic, key, value, timestamp_us // 1000 or 1, partition)
        if not is_known:  # a record that was refused introduces nobody
            self._introduced.add((topic, partition))
        if value is not None and len(value) > _ALONE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Return when everything sent is on a majority of its brokers.

        Raises RetryableLogError when they acknowledge nothing for `patience_s`, and whatever Kafka refused.
        """
        left, until = len(self._producer), time.monotonic() + self._patience_s
        while left:
            self._serve(self._producer.flush)
            before, left = left, len(self._producer)
            if self._failure is not None:
                break
            if left < before:
                until = time.monotonic() + self._patience_s
            elif left and time.monotonic() > until:
                raise self._spent(self._away(f"{left} records that were sent are not acknowledged"))
        if self._failure is not None:
            raise self._failure
        for topic, partition in self._introduced:
            if partition not in self._known[topic]:
                self._known[topic] = frozenset((*self._known[topic], partition))
        self._introduced.clear()
        if time.monotonic() > self._known_by_s:  # times of records may stand still
            self._forget()

    def tails(self, topic: str, records: int = 2) -> Mapping[int, Sequence[Record]]:
        """The last `records` records of each partition, oldest first; no entry for an empty partition or topic.

        Raises RetryableLogError.
        """
        if self._tails is None:
            self._tails = Tails(self._address, self._patience_s)
        return self._tails.read(topic, records)

    def close(self) -> None:
        """Throw away what is not acknowledged, and disconnect."""
        self._spent(RetryableLogError(f"{self._address}: this writer is closed"))
        self._serve(self._producer.flush)
        self._producer.close()
        if self._tails is not None:
            self._tails.close()
            self._tails = None

    def _connect(self, **more: int) -> Producer:
        callbacks = {"on_delivery": self._on_delivery, "error_cb": self._on_problem}
        return Producer({**_OPTIONS, **confluent_options(self._address), **callbacks, **more}, logger=LOGGER)

    def _introduce(self, topic: str, partition: int, timestamp_us: int) -> None:
        """Before a record to a partition that may not remember this producer: wait for the one before it, if any."""
        now_us = time.time_ns() // 1000
        if abs(timestamp_us - now_us) >= _REMEMBERED_US:
            self._go_one_by_one()
        elif not self._known_from_us <= timestamp_us < self._known_until_us:
            self._forget()
            self._known_from_us, self._known_until_us = now_us - _REMEMBERED_US, now_us + _REMEMBERED_US
        if (topic, partition) in self._introduced:
            self.flush()

    def _forget(self) -> None:
        """Every partition is a stranger again."""
        self._known.clear()
        self._known_by_s = time.monotonic() + _REMEMBERED_US / 1e6

    def _go_one_by_one(self) -> None:
        """From now on with one request under way. Raises LogError."""
        self.flush()
        self._producer.close()
        self._producer = self._connect(**{"max.in.flight.requests.per.connection": 1})
        self._produce = self._producer.produce
        self._known = defaultdict(lambda: _EVERY_PARTITION)
        self._known_from_us, self._known_until_us = -_ALWAYS_US, _ALWAYS_US

    def _send_patiently(self, topic: str, key: bytes | None, value: bytes | None, time_ms: int, partition: int) -> None:
        """Again, until there is room for it; `patience_s` counts from the last acknowledgement."""
        left, until = len(self._producer), time.monotonic() + self._patience_s
        while self._failure is None:
            try:
                return self._produce(topic, value, key, partition, timestamp=time_ms)
            except KafkaException as error:
                raise self._refused_at_once(error.args[0], topic, key, value) from None
            except BufferError:
                self._serve(self._producer.poll)
            before, left = left, len(self._producer)
            if left < before:
                until = time.monotonic() + self._patience_s
            elif time.monotonic() > until:
                raise self._spent(self._away(f"no record is acknowledged while {left} wait"))
        raise self._failure

    def _refused_at_once(self, error: KafkaError, topic: str, key: bytes | None, value: bytes | None) -> LogError:
        """What librdkafka itself refuses; only a record that is too large leaves the rest as it was."""
        found = refusal(error, self._address, topic=topic, key=key, size=len(value or b"") + len(key or b""))
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return found
        self._serve(self._producer.poll)  # why it stopped, if it did
        return self._spent(found)

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        """Only for what was not delivered; the first says why, the others follow from it, and what was purged does."""
        if error is not None and self._failure is None and error.code() not in _PURGED:
            key, value = message.key(), message.value()
            size = len(key or b"") + len(value or b"")
            self._spent(refusal(error, self._address, topic=message.topic(), key=key, size=size))

    def _on_problem(self, error: KafkaError) -> None:
        """Connections that fail, which librdkafka goes on to try, and what stopped it, which it says for ever."""
        if error.fatal():
            self._fatal = error
        else:
            self._last_problem = error

    def _serve(self, wait: Callable[[float], int]) -> None:
        """Wait for news and hear it. What stopped the producer is told by the first record that it did not deliver."""
        try:
            wait(_POLL_S)
        except KafkaException as error:
            self._on_problem(error.args[0])
        if self._fatal is not None and self._failure is None:
            fatal, self._fatal = self._fatal, None
            self._producer.purge(blocking=False)
            self._serve(self._producer.flush)
            self._spent(refusal(fatal, self._address))

    def _spent(self, error: LogError) -> LogError:
        """Nothing is sent from now on."""
        if isinstance(error, RecordTooLargeError):
            error.spent = True
        if self._failure is None:
            self._failure, self._produce = error, _full
            self._producer.purge(blocking=False)
        return self._failure

    def _away(self, found: str) -> LogError:
        problem = self._last_problem
        if problem is not None:
            return refusal(problem, self._address, after=f"{found} for {self._patience_s:g} s")
        return RetryableLogError(f"{self._address}: {found} for {self._patience_s:g} s")


def _full(*record: object, timestamp: int) -> None:
    """What takes the place of a producer that is spent: `send` then looks for the reason."""
    raise BufferError
