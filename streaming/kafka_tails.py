"""The last records of a topic's partitions, by confluent-kafka: what a connector reads when it starts."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from streaming.kafka_config import MAX_RECORD_BYTES, KafkaAddress, confluent_options
from streaming.kafka_refusals import LOGGER, refusal
from streaming.log_writer import Record, RetryableLogError

__all__ = ["Tails"]

_OPTIONS = {
    "client.id": "headwater",
    "group.id": "headwater-tails",  # librdkafka wants a name; the group is never joined
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,  # else the end of an empty partition is reported after half a second
    "fetch.message.max.bytes": 1 << 20,
    "receive.message.max.bytes": MAX_RECORD_BYTES * 4,
    "queued.max.messages.kbytes": 16 << 10,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 1_000,
}
_AT_ONCE = 10_000
_WIDER = 8
_PAUSE_S = 0.05
_WAIT_S = 0.5


class Tails:
    """One consumer, kept for the next topic. It joins no group, so nobody has to wait for it."""

    def __init__(self, address: KafkaAddress, patience_s: float) -> None:
        self._address = address
        self._patience_s = patience_s
        self._consumer = Consumer({**_OPTIONS, **confluent_options(address)}, logger=LOGGER)

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def read(self, topic: str, records: int) -> Mapping[int, Sequence[Record]]:
        """The last `records` records of each partition that has any, oldest first.

        What passes (the topic was just made, a leader moves) is tried again. Raises LogError.
        """
        until = time.monotonic() + self._patience_s
        while True:
            try:
                return self._read(topic, records)
            except KafkaException as error:
                found = refusal(error.args[0], self._address, topic=topic, after="tried to read its end")
                if not isinstance(found, RetryableLogError) or time.monotonic() > until:
                    raise found from None
            time.sleep(_PAUSE_S)

    def _read(self, topic: str, records: int) -> Mapping[int, Sequence[Record]]:
        bounds = self._bounds(topic)
        tails: dict[int, Sequence[Record]] = {}
        back = records
        while bounds:
            # Compaction leaves fewer records than offsets: what was too short is read again from further back.
            found = self._read_from(topic, {p: max(low, high - back) for p, (low, high) in bounds.items()}, records)
            done = {p for p, (low, high) in bounds.items() if len(found[p]) >= records or high - back <= low}
            tails |= {p: list(found[p]) for p in done if found[p]}
            bounds = {p: each for p, each in bounds.items() if p not in done}
            back *= _WIDER
        return tails

    def _bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """First and next offset of each partition that is not empty."""
        found = self._consumer.list_topics(timeout=self._patience_s).topics.get(topic)
        if found is None or found.error is not None:
            return {}
        bounds = {
            p: self._consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=self._patience_s)
            for p in found.partitions
        }
        return {p: (low, high) for p, (low, high) in bounds.items() if low < high}

    def _read_from(self, topic: str, starts: Mapping[int, int], records: int) -> Mapping[int, deque[Record]]:
        """The last records between there and each partition's end."""
        kept: defaultdict[int, deque[Record]] = defaultdict(lambda: deque(maxlen=records))
        unread, until = set(starts), time.monotonic() + self._patience_s
        self._consumer.assign([TopicPartition(topic, p, start) for p, start in starts.items()])
        while unread:
            for message in self._arrived():
                until = time.monotonic() + self._patience_s
                if (problem := message.error()) is None:
                    kept[message.partition()].append(_record(message))
                elif problem.code() == KafkaError._PARTITION_EOF:
                    unread.discard(message.partition())
                elif not problem.retriable() and problem.code() != KafkaError._ALL_BROKERS_DOWN:
                    raise KafkaException(problem)
            if time.monotonic() > until:
                raise RetryableLogError(f"{self._address}: tried to read the end of {topic} for {self._patience_s:g} s")
        self._consumer.unassign()
        return kept

    def _arrived(self) -> list[Message]:
        """What has come by now, or what comes next: `consume` alone waits for as much as it is asked for."""
        first = self._consumer.poll(_WAIT_S)
        return [] if first is None else [first, *self._consumer.consume(_AT_ONCE, timeout=0)]


def _record(message: Message) -> Record:
    offset, (_, time_ms) = message.offset(), message.timestamp()
    assert offset is not None
    return Record(offset, time_ms * 1000, message.key(), message.value())
