"""What Kafka does not take for its size: the connector goes on, and puts it through when it is taken; topics' ends."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from postgres_capture import QUICK, SETTINGS, Database
from stack_servers import started

from catalog.settings import Settings, load_settings
from catalog.spec import Column, Gate, Source
from headwater.stack.server import Server
from lake import Lake
from lake.query import query
from streaming import kafka_tails
from streaming.capture.engine import Capture
from streaming.dead_letters import letters, replay, whole
from streaming.landing import land
from streaming.log_writer import PermanentLogError, RecordTooLargeError
from streaming.open_log import open_log, open_writer
from streaming.postgres.source import PostgresSource

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its import uses importlib.resources.read_text
    from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, NewTopic

pytest_plugins = ["kafka_broker"]

# lz4 makes little of it.
RANDOM = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, {}))"
THINGS = Source(
    system="shop",
    table="things",
    description="Things with a text.",
    owner="team:data",
    domain="sales",
    columns=(
        Column(name="id", type="int64", description="The key.", nullable=False),
        Column(name="v", type="string", description="A text."),
    ),
    gate=Gate(key=("id",), event_time="id", freshness_days=1.0),
)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with started("postgresql", tmp_path / "postgresql", settings=SETTINGS) as server, Database(server, "big") as found:
        found("CREATE TABLE things (id int PRIMARY KEY, v text)")
        yield found


@pytest.fixture
def settings(broker: Server, tmp_path: Path) -> Settings:
    return load_settings({"HEADWATER_HOME": str(tmp_path / "home"), "HEADWATER_LOG_URL": broker.url})


@pytest.fixture
def admin(broker: Server) -> Iterator[KafkaAdminClient]:
    with closing(KafkaAdminClient(bootstrap_servers=broker.url.removeprefix("kafka://"))) as client:
        yield client


@pytest.fixture
def system(fresh: Callable[[str], str]) -> str:
    return fresh("big").replace(".", "_")


def capture_once(db: Database, settings: Settings, system: str) -> list[str]:
    said: list[str] = []
    source = PostgresSource(system, db.address, ["public.things"], say=said.append)
    capture = Capture(
        source,
        partial(open_writer, settings),
        QUICK,
        topic=lambda _: f"cdc.{system}.things",
        database=db.name,
        say=said.append,
    )
    capture.run(threading.Event(), once=True)
    return said


def test_rows_that_are_too_large_are_dead_letters_until_they_fit(
    db: Database, admin: KafkaAdminClient, settings: Settings, system: str
) -> None:
    topic = f"cdc.{system}.things"
    admin.create_topics([NewTopic(topic, 2, 1, topic_configs={"max.message.bytes": "1200000"})])
    db("INSERT INTO things SELECT i, 'small' FROM generate_series(1, 50) i")
    db(f"UPDATE things SET v = {RANDOM.format(60_000)} WHERE id = 7")  # 2 MB, for the snapshot
    capture_once(db, settings, system)
    db(f"UPDATE things SET v = {RANDOM.format(60_000)} WHERE id = 8")  # for the stream
    db("UPDATE things SET v = repeat('x', 18000000) WHERE id = 9")  # more than we send at all
    db(f"UPDATE things SET v = {RANDOM.format(60_000)} WHERE id = 10")
    db("UPDATE things SET v = 'new' WHERE id = 10")
    said = capture_once(db, settings, system)
    assert sum("too large" in line and "headwater dlq list" in line for line in said) >= 3
    with closing(open_log(settings)) as log, closing(open_writer(settings)) as writer:
        found = whole(letters(log, system), log)
        assert sorted(letter.content.key or b"" for letter in found if letter.content) == [
            b'{"id":%d}' % n for n in (10, 7, 8, 9)
        ]
        lake, things = Lake(settings.lake_dir), THINGS.model_copy(update={"system": system})
        land(things, log, lake, 10_000)
        assert _current(lake, system) == [(n, "new" if n == 10 else "small") for n in range(1, 51) if n != 7]
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "17000000"})])
        fitting = [letter for letter in found if letter.size < 16 << 20]
        assert replay(fitting, log, writer, 9).sent == 3
        with pytest.raises(PermanentLogError, match="has 18"):
            replay([letter for letter in found if letter not in fitting], log, writer, 9)
        land(things, log, lake, 10_000)
        rows = db("SELECT id, v FROM things WHERE id <> 9 ORDER BY id")
        assert [row for row in _current(lake, system) if row[0] != 9] == rows


def test_nothing_passes_after_the_first_record_of_a_writer_when_the_broker_refuses_it(
    admin: KafkaAdminClient, settings: Settings, system: str
) -> None:
    topic = f"cdc.{system}.first"
    admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"max.message.bytes": "1000000"})])

    def send_all() -> None:  # a broker that has not heard of a writer takes its second batch as its first
        with closing(open_writer(settings)) as writer:
            for n in range(200):
                writer.send(topic, b"%d" % n, random.Random(n).randbytes(1_200_000 if n == 0 else 20_000), 1_000)
            writer.flush()

    with pytest.raises(RecordTooLargeError) as refused:
        send_all()
    assert (refused.value.spent, refused.value.topic, refused.value.key) == (True, topic, b"0")
    with closing(open_log(settings)) as log:
        assert list(log.ends(log.partitions(topic)).values()) == [0]


@pytest.mark.timeout(60)
def test_the_end_of_a_topic_is_read_without_waiting_for_more(
    settings: Settings, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_tails, "_WAIT_S", 3600)  # for the first record; who waits it out for others hangs
    with closing(open_writer(settings)) as writer:
        writer.ensure([system])
        for n in range(30):
            writer.send(system, b"%d" % n, b"v", 1_000)
        writer.flush()
        assert sum(len(tail) for tail in writer.tails(system, 1_000).values()) == 30


def _current(lake: Lake, system: str) -> list[tuple[int, str]]:
    """The state that staging makes: of each key the change with the highest place."""
    order = "source_epoch, source_position, source_order, log_offset"
    asked = f"SELECT id, arg_max(v, ({order})) AS v FROM raw.{system}.things GROUP BY id ORDER BY id"
    return [(row["id"], row["v"]) for row in query(lake, asked).to_pylist()]
