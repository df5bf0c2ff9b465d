"""Which topics a Kafka cluster has, and making those that are missing; by confluent-kafka, for the writer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException, Producer

from streaming.kafka_config import KafkaAddress, TopicShape, topic_options
from streaming.kafka_refusals import LOGGER, refusal
from streaming.log_writer import LogError, PermanentLogError, RetryableLogError, UnknownTopicError

__all__ = ["make_missing", "topic_partitions"]

_LOOK_EVERY_S = 0.02


def topic_partitions(producer: Producer, address: KafkaAddress, topic: str, patience_s: float) -> int:
    """How many partitions the topic has. Raises UnknownTopicError, RetryableLogError."""
    found = _existing(producer, address, patience_s)
    if topic not in found:
        raise UnknownTopicError(f"{address}: there is no topic {topic}")
    return found[topic]


def make_missing(
    address: KafkaAddress,
    producer: Producer,
    topics: Sequence[str],
    shape: TopicShape,
    compacted: bool,
    patience_s: float,
) -> Mapping[str, int]:
    """How many partitions each of the topics has, once all of them exist. Raises LogError."""
    existing = _existing(producer, address, patience_s)
    missing = [topic for topic in topics if topic not in existing]
    if compacted and len(missing) < len(topics):
        _expect_compacted(address, [topic for topic in topics if topic in existing], patience_s)
    if missing:
        _make(address, missing, shape, compacted, patience_s)
        existing = _await(producer, address, missing, patience_s)
    return {topic: existing[topic] for topic in topics}


def _existing(producer: Producer, address: KafkaAddress, patience_s: float) -> dict[str, int]:
    """Every topic whose partitions all have a leader, and how many they are."""
    try:
        found = producer.list_topics(timeout=patience_s)  # all: asking for one can make it
    except KafkaException as error:
        raise refusal(error.args[0], address, after=f"tried to list its topics for {patience_s:g} s") from None
    return {
        name: len(topic.partitions)
        for name, topic in found.topics.items()
        if topic.error is None and topic.partitions and all(p.leader >= 0 for p in topic.partitions.values())
    }


def _await(producer: Producer, address: KafkaAddress, topics: Sequence[str], patience_s: float) -> dict[str, int]:
    """Brokers learn of a topic some milliseconds after the controller has made it."""
    until = time.monotonic() + patience_s
    while not set(topics) <= (existing := _existing(producer, address, patience_s)).keys():
        if time.monotonic() > until:
            raise RetryableLogError(f"{address}: {', '.join(topics)} have no leader {patience_s:g} s after being made")
        time.sleep(_LOOK_EVERY_S)
    return existing


def _make(address: KafkaAddress, topics: Sequence[str], shape: TopicShape, compacted: bool, patience_s: float) -> None:
    from confluent_kafka.admin import NewTopic

    partitions = 1 if compacted else shape.partitions
    options = topic_options(shape, compacted=compacted)
    wanted = [NewTopic(topic, partitions, shape.replication, config=options) for topic in topics]
    admin = _admin(address)  # its answers need it
    for topic, made in admin.create_topics(wanted, request_timeout=patience_s).items():
        try:
            made.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was faster
                raise _not_made(error.args[0], address, topic, shape) from None


def _not_made(error: KafkaError, address: KafkaAddress, topic: str, shape: TopicShape) -> LogError:
    if error.code() == KafkaError.INVALID_REPLICATION_FACTOR:
        return PermanentLogError(
            f"{address}: tried to make topic {topic} with replication {shape.replication}, found: {error.str()} Set "
            "HEADWATER_LOG_REPLICATION to at most the number of brokers"
        )
    return refusal(error, address, topic=topic, after="tried to make it")


def _expect_compacted(address: KafkaAddress, topics: Sequence[str], patience_s: float) -> None:
    """A checkpoint in a topic that somebody made with Kafka's defaults would be deleted after a week."""
    from confluent_kafka.admin import ConfigResource, ResourceType

    wanted = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]
    admin = _admin(address)
    for resource, described in admin.describe_configs(wanted, request_timeout=patience_s).items():
        try:
            policy = described.result()["cleanup.policy"].value
        except KafkaException as error:
            raise refusal(error.args[0], address, topic=resource.name, after="tried to read its settings") from None
        if policy != "compact":
            raise PermanentLogError(
                f"{address}: topic {resource.name} has cleanup.policy={policy}, which deletes what has to be kept: set "
                "it to compact"
            )


def _admin(address: KafkaAddress):  # type: ignore[no-untyped-def]
    from confluent_kafka.admin import AdminClient

    from streaming.kafka_config import confluent_options

    return AdminClient(confluent_options(address), logger=LOGGER)
