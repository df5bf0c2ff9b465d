"""What only Kafka does: partitions, topics, retention, compaction, transactions and codecs, as we use and meet them."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing

import pyarrow as pa
import pytest
from confluent_kafka import Producer

from headwater.stack.server import Server
from streaming.kafka_config import MAX_RECORD_BYTES, TopicShape, parse_log_url
from streaming.kafka_log import KafkaLog
from streaming.kafka_writer import KafkaWriter
from streaming.log import TopicPartition, next_offset
from streaming.log_writer import (
    OffsetDeletedError,
    PermanentLogError,
    RecordTooLargeError,
    RetryableLogError,
    UnknownTopicError,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its import uses importlib.resources.read_text
    import kafka
    from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
    from kafka.partitioner.default import murmur2

pytest_plugins = ["kafka_broker"]

Name = Callable[[str], str]


@pytest.fixture
def log(broker: Server) -> Iterator[KafkaLog]:
    with KafkaLog(parse_log_url(broker.url), TopicShape(partitions=3)) as opened:
        yield opened


@pytest.fixture
def writer(broker: Server) -> Iterator[KafkaWriter]:
    with closing(KafkaWriter(parse_log_url(broker.url), TopicShape(partitions=3))) as opened:
        yield opened


@pytest.fixture(scope="module")
def admin(broker: Server) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=f"127.0.0.1:{broker.port}")
    yield client
    client.close()


def make(admin: KafkaAdminClient, topic: str, **options: str) -> None:
    """As an operator would, with settings of his own."""
    configs = {name.replace("_", "."): value for name, value in options.items()}
    admin.create_topics(
        {topic: {"num_partitions": 1, "replication_factor": 1, "configs": configs}}, wait_for_metadata=True
    )


def values(log: KafkaLog, topic: str, partition: int = 0) -> list[str]:
    source = TopicPartition(topic, partition)
    found, offset = [], log.begin(source)
    while (batch := log.read(source, offset, 100)).num_rows:
        found += batch["value"].to_pylist()
        offset = next_offset(batch, offset)
    return found


def table(*rows: str) -> pa.Table:
    return pa.table({"key": ["k"] * len(rows), "value": list(rows), "timestamp_us": [1_000] * len(rows)})


def test_keys_go_where_java_s_producer_sends_them(broker: Server, log: KafkaLog, fresh: Name) -> None:
    chance, topic, partitions = random.Random(5), fresh("keys"), 7
    keys = [bytes(chance.randrange(256) for _ in range(chance.randrange(24))) for _ in range(3_000)]
    keys += ["".join(chance.choice('aé名😀{}":1') for _ in range(n % 40)).encode() for n in range(3_000)]
    with closing(KafkaWriter(parse_log_url(broker.url), TopicShape(partitions))) as writer:
        writer.ensure([topic])
        for n, key in enumerate(keys):
            writer.send(topic, key, b"%d" % n, 1_000)
        writer.send(topic, None, b"null", 1_000)
        writer.flush()
        went = {value: p for p in range(partitions) for value in values(log, topic, p)}
        assert went.pop("null") == writer.partition(topic, None)
        assert went == {str(n): writer.partition(topic, key) for n, key in enumerate(keys)}
    assert went == {str(n): (murmur2(key) & 0x7FFFFFFF) % partitions for n, key in enumerate(keys)}
    assert set(went.values()) == set(range(partitions))


def settings_of(admin: KafkaAdminClient, topic: str) -> dict[str, str]:
    found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")
    return {name: each["value"] for name, each in found["topic"][topic].items()}


def test_topics_are_made_as_they_should_be(broker: Server, admin: KafkaAdminClient, fresh: Name) -> None:
    changes, state = fresh("changes"), fresh("state")
    with closing(KafkaWriter(parse_log_url(broker.url), TopicShape(5, 1, 86_400_000))) as writer:
        writer.ensure([changes])
        writer.ensure([state], compacted=True)
        assert (writer.partitions(changes), writer.partitions(state)) == (5, 1)
    made = settings_of(admin, changes)
    assert (made["cleanup.policy"], made["retention.ms"]) == ("delete", "86400000")
    assert (made["min.insync.replicas"], made["unclean.leader.election.enable"]) == ("1", "false")
    assert settings_of(admin, state)["cleanup.policy"] == "compact"


def test_topics_that_exist_keep_what_they_have(writer: KafkaWriter, admin: KafkaAdminClient, fresh: Name) -> None:
    topic = fresh("operators")
    make(admin, topic, retention_ms="123456")
    writer.ensure([topic])
    assert writer.partitions(topic) == 1
    assert settings_of(admin, topic)["retention.ms"] == "123456"
    with pytest.raises(PermanentLogError, match=rf"{topic} has cleanup\.policy=delete.*set it to compact"):
        writer.ensure([topic], compacted=True)


def test_more_replicas_than_brokers_say_what_to_set(broker: Server, fresh: Name) -> None:
    with (
        closing(KafkaWriter(parse_log_url(broker.url), TopicShape(1, 3))) as writer,
        pytest.raises(PermanentLogError, match="HEADWATER_LOG_REPLICATION to at most the number of brokers"),
    ):
        writer.ensure([fresh("replicated")])


def test_a_topic_is_not_made_by_being_written_to(writer: KafkaWriter, log: KafkaLog, fresh: Name) -> None:
    topic = fresh("unmade")
    with pytest.raises(UnknownTopicError):
        writer.partition(topic, b"k")
    with pytest.raises(UnknownTopicError):
        writer.send(topic, b"k", b"v", 1_000)
    writer.send(topic, b"k", b"v", 1_000, 0)
    with pytest.raises((UnknownTopicError, RetryableLogError)):
        writer.flush()
    assert topic not in log.topics()


def test_deleted_records_are_an_error_and_never_passed_over(
    log: KafkaLog, admin: KafkaAdminClient, fresh: Name
) -> None:
    topic, group = fresh("expiring"), fresh("group")
    make(admin, topic)
    source = TopicPartition(topic, 0)
    log.append({topic: table(*"abcdefghij")})
    log.commit(group, {source: 3})
    admin.delete_records({kafka.TopicPartition(*source): 6})
    assert (log.begin(source), log.end(source)) == (6, 10)
    with pytest.raises(
        OffsetDeletedError, match=r"offset 3 asked for, .* has 6 to 10: retention has deleted 3 records"
    ):
        log.read(source, log.committed(group, source), 100)
    lag = log.lag(group, topic)[source]
    assert (lag.records, lag.deleted, lag.begin) == (7, 3, 6)
    assert values(log, topic) == list("ghij")


def test_a_record_that_is_too_large_for_us_is_refused_and_the_rest_goes_on(
    writer: KafkaWriter, log: KafkaLog, fresh: Name
) -> None:
    topic = fresh("large")
    writer.ensure([topic])
    writer.send(topic, b"k", b"before", 1_000)
    with pytest.raises(RecordTooLargeError, match=r'record with key \{"id":7\} has \d+ bytes.*Allowed are'):
        writer.send(topic, b'{"id":7}', bytes(MAX_RECORD_BYTES + 1), 1_000)
    writer.send(topic, b"k", b"after", 1_000)
    writer.send(topic, b"k", random.Random(1).randbytes(MAX_RECORD_BYTES - 1_000), 1_000)
    writer.flush()
    found = values(log, topic, writer.partition(topic, b"k"))
    assert found[:2] == ["before", "after"]
    assert len(found) == 3


def test_nothing_passes_after_a_record_that_the_broker_refuses(
    writer: KafkaWriter, log: KafkaLog, admin: KafkaAdminClient, fresh: Name
) -> None:
    topic = fresh("small")
    make(admin, topic, max_message_bytes="2000")
    writer.send(topic, b"a", b"before", 1_000)
    writer.flush()
    writer.send(topic, b'{"id":8}', random.Random(1).randbytes(10_000), 1_000)
    try:
        for n in range(20_000):
            writer.send(topic, b"b", b"%d" % n, 1_000)
    except RecordTooLargeError:
        pass  # found out while sending
    for _ in range(2):
        with pytest.raises(RecordTooLargeError, match=r'\{"id":8\}.*max\.message\.bytes'):
            writer.flush()
    with pytest.raises(RecordTooLargeError):
        writer.send(topic, b"b", b"more", 1_000)
    assert values(log, topic) == ["before"]


def test_aborted_and_open_transactions_are_not_read(
    broker: Server, log: KafkaLog, admin: KafkaAdminClient, fresh: Name
) -> None:
    topic = fresh("transactions")
    make(admin, topic)
    source = TopicPartition(topic, 0)
    servers = f"127.0.0.1:{broker.port}"
    producer = Producer({"bootstrap.servers": servers, "transactional.id": topic, "linger.ms": 0})
    producer.init_transactions(10)
    for value, commits in (("one", True), ("two", False), ("three", True), ("four", False)):
        producer.begin_transaction()
        producer.produce(topic, value)
        producer.flush()
        (producer.commit_transaction if commits else producer.abort_transaction)(10)
    producer.begin_transaction()
    producer.produce(topic, "open")
    producer.flush()
    log.append({topic: table("behind it")})
    assert values(log, topic) == ["one", "three"]
    assert log.end(source) == 8
    producer.commit_transaction(10)
    assert values(log, topic) == ["one", "three", "open", "behind it"]
    batch = log.read(source, 0, 2)
    assert batch["offset"].to_pylist() == [0, 4]
    assert log.read(source, next_offset(batch, 0), 2)["value"].to_pylist() == ["open", "behind it"]


def test_what_compaction_leaves_is_read_in_order(
    writer: KafkaWriter, log: KafkaLog, admin: KafkaAdminClient, fresh: Name
) -> None:
    topic = fresh("compacted")
    # A segment for each record, by its own time.
    make(admin, topic, cleanup_policy="compact", segment_ms="1", min_cleanable_dirty_ratio="0.01")
    source = TopicPartition(topic, 0)
    for n in range(40):
        writer.send(topic, b"once" if n in (3, 20) else b"again", b"%d" % n, (n + 1) * 1_000_000, 0)
        writer.flush()
    assert _eventually(lambda: log.read(source, 0, 100).num_rows <= 4)
    assert log.end(source) == 40
    kept = log.read(source, 0, 100)
    assert kept["value"].to_pylist()[-1] == "39"
    assert kept["offset"].to_pylist() == [int(value) for value in kept["value"].to_pylist()]
    assert log.read(source, 5, 1)["offset"].to_pylist() == [n for n in kept["offset"].to_pylist() if n >= 5][:1]

    def the_tail_is_what_is_read() -> bool:  # once compaction has come to its end
        offsets = log.read(source, 0, 100)["offset"].to_pylist()
        return [record.offset for record in writer.tails(topic, len(offsets))[0]] == offsets

    assert _eventually(the_tail_is_what_is_read)


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_other_producers_may_compress_as_they_like(
    broker: Server, log: KafkaLog, admin: KafkaAdminClient, fresh: Name, codec: str
) -> None:
    topic = fresh(codec)
    make(admin, topic)
    producer = Producer({"bootstrap.servers": f"127.0.0.1:{broker.port}", "compression.type": codec})
    sent = [f"{n} {'x' * (n % 50)}" for n in range(2_000)]
    for value in sent:
        producer.produce(topic, value, headers={"some": b"header"})
    producer.flush()
    assert values(log, topic) == sent


def _eventually(holds: Callable[[], bool], tries: int = 400) -> bool:
    from time import sleep

    return any(holds() or sleep(0.05) for _ in range(tries))
