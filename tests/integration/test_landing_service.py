"""`headwater land`: several processes share a topic on a real broker, one is killed, one is stopped; nothing twice."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from catalog.keys import Key, cdc_topic, raw
from catalog.load import load_catalog
from catalog.spec import Source
from headwater.cli import cli
from headwater.stack.server import Server
from lake.tables import Lake
from streaming.kafka_config import KafkaAddress, TopicShape, parse_log_url
from streaming.kafka_log import KafkaLog
from streaming.kafka_writer import KafkaWriter
from streaming.landing import contract_of
from streaming.landing_batches import PartitionLanding, make_tables, refusal
from streaming.landing_service import Lander, Options, land_once
from streaming.log import TopicPartition
from streaming.log_writer import RetryableLogError
from streaming.sqlite_log import SqliteLog
from streaming.sqlite_writer import SqliteWriter

pytest_plugins = ["kafka_broker"]

DECLARED = """\
system: {system}
table: things
description: Things that several processes land.
owner: team:data
domain: sales
columns:
  - {{name: id, type: int64, nullable: false, description: The key.}}
  - {{name: v, type: int64, description: A value.}}
gate:
  key: [id]
  event_time: id
  freshness_days: 1.0
"""
_systems = (f"landing{n}" for n in itertools.count())
US = 1_700_000_000_000_000


class Shop:
    """A connector's writing end: each change gets the next place."""

    def __init__(self, system: str, writer: Any) -> None:
        self.topic, self.writer, self.sent = cdc_topic(system, "things"), writer, 0
        writer.ensure([self.topic])

    def changes(self, count: int, *, again: int = 0) -> None:
        """Send `count` changes, the last `again` of those before once more first: a connector came back."""
        for number in range(self.sent - again, self.sent + count):
            after = {"id": number % 97, "v": number}
            source = {"ts_us": US, "headwater": {"epoch": 1, "commit": number, "order": 1}}
            value = json.dumps({"before": None, "after": after, "source": source, "op": "u"}).encode()
            self.writer.send(self.topic, json.dumps({"id": number % 97}).encode(), value, US)
        self.writer.flush()
        self.sent += count


@pytest.fixture
def system() -> str:
    return next(_systems)


@pytest.fixture
def catalog(system: str, tmp_path: Path) -> Path:
    for folder in ("sources", "models", "gates"):
        (tmp_path / "catalog" / folder).mkdir(parents=True)
    (tmp_path / "catalog" / "sources" / "things.yaml").write_text(DECLARED.format(system=system))
    return tmp_path / "catalog"


def assert_each_once(home: Path, table: Key, sent: int) -> None:
    rows = Lake(home / "lake").read(table, ["v", "log_partition", "log_offset"])
    assert sorted(rows["v"].to_pylist()) == list(range(sent))


@contextmanager
def lander(home: Path, catalog: Path, log_url: str) -> Iterator[tuple[subprocess.Popen[str], Callable[..., Any]]]:
    """A running `headwater land`, and what waits for a line of its."""
    environment = os.environ | {"HEADWATER_HOME": str(home), "HEADWATER_CATALOG": str(catalog)}
    command = [sys.executable, "-m", "headwater.cli", "land", "--every", "0.1"]
    with subprocess.Popen(
        command, env=environment | {"HEADWATER_LOG_URL": log_url}, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = process.stderr

        def said(event: str) -> dict[str, Any]:
            for line in lines:
                found: dict[str, Any] = json.loads(line)
                if found["event"] == event:
                    return found
            raise AssertionError(f"it ended without saying {event!r}")

        timer = threading.Timer(90, process.kill)
        timer.start()
        try:
            yield process, said
        finally:
            timer.cancel()
            process.kill()


def test_two_share_a_topic_and_one_is_killed(broker: Server, system: str, catalog: Path, tmp_path: Path) -> None:
    home, table, address = tmp_path / "home", raw(system, "things"), parse_log_url(broker.url)
    with closing(KafkaWriter(address, TopicShape(partitions=4))) as writer, KafkaLog(address) as log:
        shop = Shop(system, writer)
        shop.changes(300)
        with lander(home, catalog, broker.url) as (first, first_said):
            first_said("landed")
            with lander(home, catalog, broker.url) as (second, second_said):
                assert second_said("partitions assigned")["partitions"]
                shop.changes(300, again=50)
                first_said("landed")
                shop.changes(300, again=50)
                first.kill()
                shop.changes(300, again=50)
                while Lake(home / "lake").rows(table) < shop.sent:
                    second_said("landed")
                second.send_signal(signal.SIGTERM)
                assert second_said("landing has stopped")["refused"] == []
                assert second.wait() == 0
        partitions = log.partitions(shop.topic)
        assert {log.committed("landing", one) - log.end(one) for one in partitions} == {0}
    assert_each_once(home, table, shop.sent)


def test_a_topic_that_is_deleted_ends_the_landing_of_its_table_only(
    broker: Server, system: str, catalog: Path, tmp_path: Path
) -> None:
    declared = (catalog / "sources" / "things.yaml").read_text()
    (catalog / "sources" / "more.yaml").write_text(declared.replace("table: things", "table: more"))
    home, address, lost = tmp_path / "home", parse_log_url(broker.url), cdc_topic(system, "more")
    with closing(KafkaWriter(address, TopicShape(partitions=1))) as writer, KafkaLog(address) as log:
        shop = Shop(system, writer)
        writer.ensure([lost])
        writer.send(lost, b"{}", b"{}", US)
        shop.changes(10)
        with lander(home, catalog, broker.url) as (process, said):
            assert {said("landed")["table"], said("landed")["table"]} == {f"raw.{system}.things", f"raw.{system}.more"}
            log._client._connections.delete_topics([lost])
            assert said("refused")["runbook"] == "landing_lost_log"
            shop.changes(10)
            assert said("landed")["table"] == f"raw.{system}.things"
            process.send_signal(signal.SIGTERM)
            assert said("landing has stopped")["refused"] == [f"raw.{system}.more"]
    assert_each_once(home, raw(system, "things"), shop.sent)


def landed(home: Path, catalog: Path, log_url: str, *options: str) -> tuple[int, list[str]]:
    """The exit code of `headwater land --once`, and what it said of the table."""
    environment = {"HEADWATER_HOME": str(home), "HEADWATER_CATALOG": str(catalog), "HEADWATER_LOG_URL": log_url}
    ours = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    done = CliRunner().invoke(cli, ["land", "--once", *options], env=environment)
    for number, handler in ours.items():
        signal.signal(number, handler)
    said = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return done.exit_code, [line["event"] for line in said if "table" in line]


def gone(address: KafkaAddress, topic: str) -> None:
    """Delete the topic; its name can be used again when this returns."""
    with KafkaLog(address) as log:
        log._client._connections.delete_topics([topic])
        while log.partitions(topic):
            time.sleep(0.05)


def test_a_topic_made_anew_is_not_landed_behind_the_former_ones_offset_until_it_is_accepted(
    broker: Server, system: str, catalog: Path, tmp_path: Path
) -> None:
    home, address, table = tmp_path / "home", parse_log_url(broker.url), raw(system, "things")
    with closing(KafkaWriter(address, TopicShape(partitions=1))) as writer:
        shop = Shop(system, writer)
        shop.changes(10)
    assert landed(home, catalog, broker.url) == (0, ["landed"])
    gone(address, shop.topic)
    assert landed(home, catalog, broker.url, "--accept-log", "things") == (1, [])  # there is none to go on in
    with closing(KafkaWriter(address, TopicShape(partitions=1))) as writer:
        shop = Shop(system, writer)
        shop.changes(25)
    assert landed(home, catalog, broker.url) == (1, ["refused"])
    with KafkaLog(address) as log:
        found = refusal(contract_of(load_catalog(catalog).sources[0]), log, Lake(home / "lake"))
    assert "made anew" in str(found)  # what status shows
    assert Lake(home / "lake").rows(table) == 10
    assert landed(home, catalog, broker.url, "--accept-log", "nothing") == (2, [])
    assert landed(home, catalog, broker.url, "--accept-log", "things") == (0, ["log accepted", "landed"])
    assert landed(home, catalog, broker.url) == (0, ["landed"])
    assert_each_once(home, table, 25)


def test_one_goes_on_until_it_is_told_to_stop(system: str, catalog: Path, tmp_path: Path) -> None:
    """On the embedded log, in this process; another lands once beside it."""
    stop, said, lake = threading.Event(), [], Lake(tmp_path / "lake")
    sources = load_catalog(catalog).sources
    with SqliteLog(tmp_path / "log.db") as log, closing(SqliteWriter(tmp_path / "log.db")) as writer:
        shop = Shop(system, writer)
        shop.changes(10)

        def say(event: str, **more: Any) -> None:
            said.append(event)
            if event == "landed" and said.count("landed") < 4:
                shop.changes(10, again=5)
                land_once(sources, log, lake, Options(3), lambda event, **more: None)
                shop.changes(1)
            elif event == "landed":
                stop.set()

        assert Lander(lambda: sources, log, lake, Options(every_s=0.0), say).run(stop) == {}
        assert log.committed("landing", TopicPartition(shop.topic, 0)) == log.end(TopicPartition(shop.topic, 0))
    assert_each_once(tmp_path, raw(system, "things"), shop.sent)
    assert said[0] == "partitions assigned"
    assert said[-1] == "partitions revoked"


def test_while_nothing_changes_the_lake_is_not_looked_at(system: str, catalog: Path, tmp_path: Path) -> None:
    """Shown by a lake that is not there for some rounds. Asking its tables took half a core."""
    stop, said, lake, away = threading.Event(), [], Lake(tmp_path / "lake"), tmp_path / "away"
    sources, rounds = load_catalog(catalog).sources, itertools.count()

    def declared() -> Any:
        if "landed" in said and next(rounds) == 0:
            lake.root.rename(away)
        elif away.exists() and next(rounds) > 5:
            away.rename(lake.root)
            shop.changes(10, again=5)
        if said.count("landed") == 2:
            stop.set()
        return sources

    with SqliteLog(tmp_path / "log.db") as log, closing(SqliteWriter(tmp_path / "log.db")) as writer:
        shop = Shop(system, writer)
        shop.changes(10)
        lander = Lander(declared, log, lake, Options(every_s=0.0), lambda event, **more: said.append(event))
        assert lander.run(stop) == {}
    assert_each_once(tmp_path, raw(system, "things"), 20)


def test_a_table_that_is_refused_does_not_keep_the_others_from_landing(catalog: Path, tmp_path: Path) -> None:
    declared = (catalog / "sources" / "things.yaml").read_text()
    system = load_catalog(catalog).sources[0].system
    (catalog / "sources" / "more.yaml").write_text(declared.replace("table: things", "table: more"))
    stop, said, lake = threading.Event(), [], Lake(tmp_path / "lake")
    sources = load_catalog(catalog).sources
    with SqliteLog(tmp_path / "log.db") as log, closing(SqliteWriter(tmp_path / "log.db")) as writer:
        shop = Shop(system, writer)
        shop.changes(10)
        lost = cdc_topic(system, "more")
        writer.ensure([lost])
        writer.send(lost, b"{}", b"{}", US)
        writer.flush()
        land_once(sources, log, lake, Options(), lambda event, **more: None)
        table = raw(system, "more")
        lake.append(table, lake.read(table), {f"{lost}-0": 7})  # as if it had been landed from another log
        shop.changes(10)

        def say(event: str, **more: Any) -> None:
            said.append((event, more.get("runbook")))
            if {event for event, _ in said} >= {"landed", "refused"}:
                stop.set()

        refused = Lander(lambda: sources, log, lake, Options(every_s=0.0), say).run(stop)
    assert list(refused) == [table]
    assert "landed up to offset 7" in refused[table]
    assert ("refused", "landing_lost_log") in said
    assert_each_once(tmp_path, raw(system, "things"), 20)


class Changing(SqliteLog):
    """Takes no commit as often as `refusals` says, as Kafka while a group changes."""

    refusals = 2

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise RetryableLogError("the group is changing")
        super().commit(group, offsets)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("landed_by", ["this one, as the group changed", "one that was killed before it said so"])
def test_the_group_hears_of_what_has_landed_though_nothing_comes_after_it(
    landed_by: str, system: str, catalog: Path, tmp_path: Path
) -> None:
    (source,) = sources = load_catalog(catalog).sources
    lake, partition, said = Lake(tmp_path / "lake"), TopicPartition(cdc_topic(system, "things"), 0), []
    with Changing(tmp_path / "log.db") as log, closing(SqliteWriter(tmp_path / "log.db")) as writer:
        shop = Shop(system, writer)
        shop.changes(10)
        if landed_by.startswith("one that was killed"):
            make_tables(contract_of(source), [partition], lake)
            assert PartitionLanding(contract_of(source), partition, log, lake).step(100)
        stop = threading.Event()

        def until_told() -> Sequence[Source]:
            if log.committed("landing", partition) == 10:
                stop.set()
            return sources

        lander = Lander(until_told, log, lake, Options(every_s=0.0), lambda event, **more: said.append(event))
        assert lander.run(stop) == {}
        assert log.committed("landing", partition) == 10
    assert said.count("offsets not committed") == 1
    assert_each_once(tmp_path, raw(system, "things"), 10)
