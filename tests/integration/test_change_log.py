"""What every change log does: the embedded one and Kafka, on a real broker, read and written in every way there is."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from catalog.settings import Settings, load_settings
from headwater.stack.server import Server
from streaming.kafka_log import KafkaLog
from streaming.log import BATCH_SCHEMA, ChangeLog, TopicPartition, next_offset
from streaming.log_writer import BatchShapeError, LogWriter, OffsetOutOfRangeError, Record, UnknownTopicError
from streaming.open_log import open_log, open_writer
from streaming.record_text import to_bytes

pytest_plugins = ["kafka_broker"]

Sent = tuple[int, bytes | None, bytes | None]


@dataclass(frozen=True)
class Backend:
    """One of the logs, by its settings; topics are of this test alone."""

    settings: Settings
    topic: Callable[[str], str]

    def log(self) -> ChangeLog:
        return open_log(self.settings)

    def writer(self) -> LogWriter:
        return open_writer(self.settings)

    @property
    def is_kafka(self) -> bool:
        return bool(self.settings.log_url)


@pytest.fixture(params=["embedded", "kafka"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, fresh: Callable[[str], str]) -> Backend:
    environment = {"HEADWATER_HOME": str(tmp_path / "home")}
    if request.param == "kafka":
        server: Server = request.getfixturevalue("broker")
        environment |= {"HEADWATER_LOG_URL": server.url, "HEADWATER_LOG_PARTITIONS": "3"}
    return Backend(load_settings(environment), fresh)


@pytest.fixture
def log(backend: Backend) -> Iterator[ChangeLog]:
    with closing(backend.log()) as opened:
        yield opened


@pytest.fixture
def writer(backend: Backend) -> Iterator[LogWriter]:
    with closing(backend.writer()) as opened:
        yield opened


def numbered(count: int, start: int = 0) -> pa.Table:
    rows = range(start, start + count)
    return pa.table(
        {
            "key": [f"k{i}" for i in rows],
            "value": [f"v{i}" for i in rows],
            "timestamp_us": pa.array([i * 1_000_000 + 1_000 for i in rows], pa.int64()),
        }
    )


def everything(log: ChangeLog, topic: str, at_once: int = 7_000) -> dict[TopicPartition, list[Sent]]:
    """Every record by partition, read in steps; offsets are what they should be."""
    found: dict[TopicPartition, list[Sent]] = {}
    for source in log.partitions(topic):
        offset, found[source] = log.begin(source), []
        while (batch := log.read(source, offset, at_once)).num_rows:
            assert batch.schema == BATCH_SCHEMA
            assert batch["offset"].to_pylist() == list(range(offset, offset + batch.num_rows))
            found[source] += [(row["timestamp_us"], _raw(row["key"]), _raw(row["value"])) for row in batch.to_pylist()]
            offset = next_offset(batch, offset)
        assert offset == log.end(source) == log.ends([source])[source]
    return found


def _raw(text: str | None) -> bytes | None:
    return None if text is None else to_bytes(text)


def arbitrary(seed: int, count: int) -> list[Sent]:
    chance = random.Random(seed)
    texts = ["", "k", "é", "名前", "\0", '{"id":1}', "data:;base64,AA==", "x" * 5_000]
    raws = [None, b"\xff\xfe", *(text.encode() for text in texts)]
    return [(chance.randrange(1, 2**41) * 1_000, chance.choice(raws), chance.choice(raws)) for _ in range(count)]


def test_what_was_sent_is_read_in_its_order(backend: Backend, log: ChangeLog, writer: LogWriter) -> None:
    topic, sent = backend.topic("any"), arbitrary(1, 3_000)
    writer.ensure([topic])
    for time_us, key, value in sent:
        writer.send(topic, key, value, time_us)
    writer.flush()
    found = everything(log, topic, at_once=77)
    for source, records in found.items():
        assert records == [each for each in sent if writer.partition(topic, each[1]) == source.partition]
    assert sum(len(records) for records in found.values()) == len(sent)
    assert len(found) == writer.partitions(topic)


def test_tables_and_records_are_appended_alike(backend: Backend, log: ChangeLog, writer: LogWriter) -> None:
    one, other = backend.topic("one"), backend.topic("other")
    table = numbered(2_000)
    log.append({one: table, other: numbered(1)})
    writer.ensure([other])
    for row in table.slice(1).to_pylist():
        writer.send(other, row["key"].encode(), row["value"].encode(), row["timestamp_us"])
    writer.flush()
    same = list(everything(log, one).values())
    assert list(everything(log, other).values()) == same
    assert sum(len(records) for records in same) == 2_000


def test_a_record_goes_to_the_partition_that_is_named(backend: Backend, log: ChangeLog, writer: LogWriter) -> None:
    topic = backend.topic("truncated")
    writer.ensure([topic])
    for partition in range(writer.partitions(topic)):
        writer.send(topic, None, b"t", 1_000, partition)
    writer.flush()
    assert list(everything(log, topic).values()) == [[(1_000, None, b"t")]] * writer.partitions(topic)


def test_reads_of_any_size_go_on_where_they_stopped(backend: Backend, log: ChangeLog) -> None:
    topic = backend.topic("steps")
    log.append({topic: numbered(20_000)})
    source = max(log.partitions(topic), key=log.end)
    end, chance = log.end(source), random.Random(3)
    whole = log.read(source, 0, 1_000_000)
    assert whole.num_rows == end
    offset = 0
    while offset < end:
        size = chance.choice([1, 2, 999, 5_000])
        batch = log.read(source, offset, size)
        assert batch.equals(whole.slice(offset, size))
        offset += batch.num_rows
    assert log.read(source, 10, 5).equals(whole.slice(10, 5))
    assert log.read(source, end, 5).num_rows == 0


def test_a_reader_sees_what_came_meanwhile(backend: Backend, log: ChangeLog) -> None:
    topic = backend.topic("growing")
    log.append({topic: numbered(10)})
    before = {source: log.end(source) for source in log.partitions(topic)}
    assert [log.read(source, end, 5).num_rows for source, end in before.items()] == [0] * len(before)
    with closing(backend.log()) as other:
        other.append({topic: numbered(100, 10)})
    assert sum(log.read(source, end, 1_000).num_rows for source, end in before.items()) == 100


def test_topics_and_partitions_that_are_not_there(backend: Backend, log: ChangeLog, writer: LogWriter) -> None:
    topic = backend.topic("missing")
    assert list(log.partitions(topic)) == []
    assert log.lag("g", topic) == {}
    assert writer.tails(topic) == {}
    assert topic not in log.topics()
    log.append({topic: numbered(1)})
    assert topic in log.topics()
    for ask in (log.end, log.begin, lambda source: log.committed("g", source), lambda source: log.read(source, 0, 1)):
        with pytest.raises(UnknownTopicError):
            ask(TopicPartition(topic, 9))


def test_a_topic_that_was_made_anew_is_another_one(backend: Backend, log: ChangeLog) -> None:
    topic = backend.topic("anew")
    assert log.identity(topic) is None
    log.append({topic: numbered(5)})
    before = log.identity(topic)
    assert before is not None
    assert 0 <= before < 2**63
    log.append({topic: numbered(5)})
    with closing(backend.log()) as another:
        assert log.identity(topic) == another.identity(topic) == before
    if isinstance(log, KafkaLog):
        log._client._connections.delete_topics([topic])
    else:
        log.close()
        backend.settings.log_path.unlink()
    with closing(backend.log()) as anew:
        while anew.partitions(topic):
            time.sleep(0.05)
        anew.append({topic: numbered(20)})
        assert anew.identity(topic) not in (before, None)


def test_offsets_that_are_not_there(backend: Backend, log: ChangeLog) -> None:
    topic = backend.topic("short")
    log.append({topic: numbered(30)})
    source = TopicPartition(topic, 0)
    end = log.end(source)
    for offset in (end + 1, -1):
        with pytest.raises(OffsetOutOfRangeError, match=rf"{source}: offset {offset} asked for, .* has 0 to {end}"):
            log.read(source, offset, 1)
        with pytest.raises(OffsetOutOfRangeError):
            log.commit("g", {source: offset})


def test_a_table_of_another_shape_is_refused(backend: Backend, log: ChangeLog) -> None:
    good, bad = backend.topic("good"), backend.topic("bad")
    with pytest.raises(BatchShapeError, match=r"found columns \['value'\]"):
        log.append({good: numbered(1), bad: pa.table({"value": ["x"]})})
    assert list(log.partitions(good)) == []


def test_commits_go_forwards_and_groups_are_apart(backend: Backend, log: ChangeLog) -> None:
    topic = backend.topic("committed")
    log.append({topic: numbered(100)})
    source, group = TopicPartition(topic, 0), backend.topic("group")
    assert log.committed(group, source) == 0
    log.commit(group, {source: 7})
    log.commit(group, {source: 3})
    log.commit(group, {})
    assert log.committed(group, source) == 7
    assert log.committed(backend.topic("other"), source) == 0
    with closing(backend.log()) as again:
        assert again.committed(group, source) == 7


def test_lag_in_records_time_and_bytes(backend: Backend, log: ChangeLog) -> None:
    topic, group = backend.topic("behind"), backend.topic("group")
    log.append({topic: numbered(3_000)})
    source = TopicPartition(topic, 0)
    times = log.read(source, 0, 10_000)["timestamp_us"].to_pylist()
    whole = log.lag(group, topic)[source]
    assert (whole.begin, whole.committed, whole.end, whole.deleted) == (0, 0, len(times), 0)
    assert whole.behind_us == times[-1] - times[0]
    log.commit(group, {source: len(times) - 10})
    lag = log.lag(group, topic)[source]
    assert lag.records == 10
    assert lag.behind_us == times[-1] - times[-11]
    assert 0 < lag.behind_bytes <= whole.behind_bytes
    log.commit(group, {source: len(times)})
    done = log.lag(group, topic)[source]
    assert (done.records, done.behind_us, done.behind_bytes) == (0, 0, 0)


def test_the_ends_of_partitions(backend: Backend, writer: LogWriter) -> None:
    topic, sent = backend.topic("tail"), arbitrary(2, 50)
    writer.ensure([topic])
    assert writer.tails(topic) == {}
    for time_us, key, value in sent:
        writer.send(topic, key, value, time_us, 0)
    writer.flush()
    last = [Record(n, *each) for n, each in enumerate(sent)]
    assert writer.tails(topic) == {0: last[-2:]}
    assert writer.tails(topic, 10) == {0: last[-10:]}
    with closing(backend.writer()) as other:
        assert other.tails(topic, 1_000_000) == {0: last}


def test_a_compacted_topic_has_one_partition(backend: Backend, writer: LogWriter) -> None:
    topic = backend.topic("state")
    writer.ensure([topic], compacted=True)
    writer.ensure([topic], compacted=True)
    assert writer.partitions(topic) == 1
    for n in range(3):
        writer.send(topic, b"key", b"%d" % n, 1_000)
        writer.flush()
    assert [record.value for record in writer.tails(topic)[0]] == [b"1", b"2"]


def test_threads_share_a_log(backend: Backend, log: ChangeLog) -> None:
    topic = backend.topic("threads")
    with closing(backend.log()) as second:
        writers = [
            threading.Thread(target=lambda used=used: [used.append({topic: numbered(3)}) for _ in range(10)])
            for used in (log, log, second)
        ]
        for each in writers:
            each.start()
        for each in writers:
            each.join()
    assert sum(len(records) for records in everything(log, topic).values()) == 90


@dataclass
class Heard:
    """What a membership told its listener."""

    assigned_: list[TopicPartition] = field(default_factory=list)
    revoked_: list[TopicPartition] = field(default_factory=list)

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        self.assigned_ += sorted(partitions)

    def revoked(self, partitions: Collection[TopicPartition]) -> None:
        self.revoked_ += sorted(partitions)

    lost = revoked


def test_a_lone_member_has_everything_and_topics_that_come_later(backend: Backend, log: ChangeLog) -> None:
    first, later = backend.topic("first"), backend.topic("later")
    log.append({first: numbered(30)})
    heard = Heard()
    with closing(log.join(backend.topic("group"), [first, later], heard)) as member:
        until(lambda: member.poll(0.1) or len(member.partitions) == len(log.partitions(first)))
        assert sorted(heard.assigned_) == list(log.partitions(first))
        source = heard.assigned_[0]
        member.commit({source: 2})
        member.commit({source: 1})
        assert log.lag(member_group(member), first)[source].committed == 2
        log.append({later: numbered(30)})
        # As one polls who has records to write: no poll is as long as a join takes.
        until(lambda: member.poll(0.0) or time.sleep(0.01) or len(member.partitions) == 2 * len(log.partitions(first)))
        assert heard.revoked_ == []
    assert sorted(heard.revoked_) == sorted(heard.assigned_)
    assert member.partitions == frozenset()


def test_another_process_takes_over_when_one_leaves(backend: Backend, log: ChangeLog) -> None:
    topic, group = backend.topic("shared"), backend.topic("group")
    log.append({topic: numbered(30)})
    everyone = set(log.partitions(topic))
    one, other = Heard(), Heard()
    with closing(backend.log()) as second, closing(second.join(group, [topic], other)) as heir:
        with closing(log.join(group, [topic], one)) as member:
            until(lambda: member.poll(0.1) or member.partitions == everyone)
            until(lambda: heir.poll(0.05) or member.poll(0.05) or member.partitions | heir.partitions == everyone)
            assert not member.partitions & heir.partitions
        until(lambda: heir.poll(0.1) or heir.partitions == everyone)
    assert set(one.revoked_) == set(one.assigned_) == everyone


def member_group(member: object) -> str:
    group: str = member._group  # type: ignore[attr-defined]
    return group


def until(holds: Callable[[], object], tries: int = 300) -> None:
    """Each try waits by itself."""
    assert any(holds() for _ in range(tries))
