"""Faults 39 to 44: the change log away or full, records that are none, landers that fail, clocks that are wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import dagster as dg
import pytest

from catalog.keys import cdc_topic
from catalog.load import load_catalog
from headwater.stack.server import Server, find_server, kill, restart
from sensors.lag import build_lag_sensor
from streaming.sqlite_writer import SqliteWriter
from tests.faults.case import Case
from tests.faults.stand import wait_until
from tests.integration.stack_servers import started

Seen = Callable[[str], None]
OUTAGE_S = 600
WITHIN_S = 60
# It looks every ten seconds (minimum_interval_seconds), but wakes up every five only.
DAEMON_EVERY_S = 15


def everybody_says_so(case: Case) -> None:
    """Connector and lander go on trying, and who asks is told what is wrong; so are those who do not ask."""
    wait_until(lambda: "; trying again in" in case.said, "the connector says that it waits")
    wait_until(lambda: "the change log is away" in case.said, "the lander says that it waits")
    done = case.home.headwater("status")
    assert done.code == 1, done
    assert case.home.settings["HEADWATER_LOG_URL"] in done.err, done
    sensor = Sensor(case)
    wait_until(lambda: sensor.checks() == {"t": False}, "the table's check is red", WITHIN_S)


@pytest.mark.timeout(OUTAGE_S + 600)
def test_39_kafka_away(case: Case, broker: Server, request: pytest.FixtureRequest, seen: Seen) -> None:
    """`kill -9` of the only broker; rows are written while it is away, ten minutes with --real-outage."""
    real = request.config.getoption("--real-outage")
    case.log_to(broker)
    case.make("t", 1000)
    with case.running("capture", "shop") as connector, case.running("land", "--every", "0.2") as lander:
        case.wait_for_same()
        kill(broker)
        began = time.monotonic()
        case.insert("t", 2001, 4000)
        case.sql("DELETE FROM t WHERE id < 500")
        everybody_says_so(case)
        while real and time.monotonic() < began + OUTAGE_S:
            case.sql("UPDATE t SET v = md5(v) WHERE id < 510")
            time.sleep(1)
        restart(broker)
        back = time.monotonic()
        case.wait_for_same()
        assert connector.poll() is lander.poll() is None
    seen(
        f"connector, lander and status say so; both go on by themselves: {time.monotonic() - back:.0f} s after the "
        f"broker, which was away for {back - began:.0f} s, was back, the lake equals the source"
    )


@contextmanager
def small_disk(at: Path, megabytes: int) -> Iterator[Path]:
    """A file system of that size, which only who may mount can make."""
    become = [] if os.geteuid() == 0 else ["sudo", "-n"]
    at.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m,mode=1777", "tmpfs", str(at)]
    done = subprocess.run(["/bin/sh", "-c", '"$@"', "sh", *become, "mount", *options], capture_output=True, text=True)
    if done.returncode:
        said = f"a disk that can be filled takes the right to mount a tmpfs: {done.stderr.strip()}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(said)
    try:
        yield at
    finally:
        subprocess.run([*become, "umount", str(at)], check=True)


def fill(disk: Path) -> Path:
    """Something else takes all the room that is left."""
    ballast = disk / "ballast"
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={ballast}", "bs=64K"], capture_output=True, check=False
    )  # until it fails
    assert not shutil.disk_usage(disk).free
    return ballast


def test_40_disk_full(case: Case, tmp_path: Path, seen: Seen) -> None:
    """The broker's disk is filled while rows are written; then there is room again, and the broker is started again."""
    with (
        small_disk(tmp_path / "disk", 64) as disk,
        started("kafka", tmp_path / "kafka", settings={"log.dirs": str(disk / "data")}) as broker,
    ):
        case.log_to(broker)
        case.make("t", 1000)
        with case.running("capture", "shop"), case.running("land", "--every", "0.2"):
            case.wait_for_same()
            ballast = fill(disk)
            case.insert("t", 2001, 60_000)
            everybody_says_so(case)
            stopped = find_server(broker.kind, broker.directory) is None
            ballast.unlink()
            restart(broker)
            case.wait_for_same()
        assert "No space left on device" in broker.log.read_text(errors="replace")
    seen(
        f"the broker {'stops' if stopped else 'refuses records'} with `No space left on device`, connector, lander and "
        "status say that it is away; started again with room, all goes on by itself and equals the source"
    )


def test_41_poison_message(case: Case, seen: Seen) -> None:
    """Records that are no JSON, no envelope, of a wrong type, and empty lie in the topic before good ones."""
    case.make("t", 3)
    case.sync()
    with closing(SqliteWriter(case.home.path / "log.db")) as writer:
        for value in (b"{", b"\xff\xfe", b"[]", b'{"op":"c","after":{"id":"x"}}', b"null", b'{"after":1}'):
            writer.send(cdc_topic("shop", "t"), b'{"id":1}', value, 1_700_000_000_000_000, 0)
        writer.flush()
    case.insert("t", 10, 20)
    for done in (case.capture(), case.land()):
        assert done.code == 0, done
    (found,) = case.verdicts()
    assert (found.lost, found.duplicates) == (0, 0)
    assert found.quarantined == 6
    seen("all six in quarantine, each with its reason and whole; what follows them lands, equals the source")


@pytest.mark.parametrize(
    ("point", "fate"), [("before_landing", "killed"), ("before_landing", "stalled"), ("after_landing", "stalled")]
)
def test_42_rebalance_in_a_batch(case: Case, broker: Server, point: str, fate: str, seen: Seen) -> None:
    """Of two landers one is killed, or stopped and later goes on, before its batch is in the table, or just after."""
    case.log_to(broker)
    case.make("t", 2000)
    assert case.capture().code == 0
    other_log = case.home.path / "python.log"
    with case.running("land", "--every", "0.2"), case.doomed(f"{point}:{fate}", "land", "--every", "0.2") as other:
        wait_until(lambda: other_log.exists() and '"cdc.shop.t-' in other_log.read_text(), "it has partitions")
        case.insert("t", 2001, 4000)
        case.sql("UPDATE t SET v = 'changed' WHERE id < 1000")
        assert case.capture().code == 0
        wait_until(lambda: is_out(other, fate), "it has come to it")
        case.wait_for_same()
        case.insert("t", 4001, 5000)
        assert case.capture().code == 0
        if fate == "stalled":
            other.send_signal(signal.SIGCONT)
            wait_until(lambda: "partitions revoked" in other_log.read_text(), "it hears that it was taken for dead")
        case.wait_for_same()
        if fate == "stalled":
            other.send_signal(signal.SIGTERM)
            assert other.wait(60) == 0, other_log.read_text()
    case.same()
    seen("the other one takes over its partitions; what it had begun is there once, equals the source")


def is_out(process: subprocess.Popen[str], fate: str) -> bool:
    """Ended by SIGKILL, or stopped."""
    if fate == "killed":
        return process.poll() == -signal.SIGKILL
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


class Sensor:
    """The sensor that watches the stream, as a daemon would ask it."""

    def __init__(self, case: Case) -> None:
        settings, self._cursor = case.settings, None
        sensor = build_lag_sensor(load_catalog(case.catalog), settings)

        @dg.asset(key=["raw", "shop", "t"])
        def table() -> None:
            """Only its key matters."""

        self._repository = dg.Definitions(assets=[table], sensors=[sensor]).get_repository_def()

    def checks(self) -> dict[str, bool]:
        """What has changed since the last time: whether the check of a table passes."""
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(instance, self._cursor, repository_def=self._repository)
            found = self._repository.get_sensor_def("lag").evaluate_tick(context)
        self._cursor = found.cursor
        return {event.asset_key.path[-1]: event.passed for event in found.asset_events}


def test_43_consumer_stalled(case: Case, seen: Seen) -> None:
    """The only lander falls silent (SIGSTOP), and rows come; the sensor is asked as seldom as a daemon ever does."""
    case.make("t", 3)
    sensor = Sensor(case)
    with case.running("capture", "shop"), case.running("land", "--every", "0.2") as lander:
        case.wait_for_same()
        wait_until(lambda: sensor.checks() == {"t": True}, "the group has heard that all has landed")
        lander.send_signal(signal.SIGSTOP)
        case.insert("t", 100, 120)
        began = time.monotonic()
        said_s = found_s = 0.0
        while not (said_s and found_s):
            assert time.monotonic() < began + WITHIN_S
            time.sleep(DAEMON_EVERY_S)
            if not said_s and any("landing of cdc.shop.t: the first of" in problem for problem in case.problems()):
                said_s = time.monotonic() - began
            if not found_s and sensor.checks().get("t") is False:
                found_s = time.monotonic() - began
        lander.send_signal(signal.SIGCONT)
        case.wait_for_same()
        wait_until(lambda: case.problems() == [], "nothing is wrong any more")
        assert sensor.checks() == {"t": True}
    seen(
        f"`headwater status` says so within {said_s:.0f} s, the table's lag check is red within {found_s:.0f} s; both "
        "are well again when it goes on; equals the source"
    )


def test_44_clock_an_hour_off(case: Case, seen: Seen) -> None:
    """Transactions dated (headwater_clock) an hour ahead, an hour back, and out of order update the same rows."""
    case.make("t", 5)
    stamp = case.either("timestamp", "datetime(6)")
    clock = f"CREATE TABLE headwater_clock (id int PRIMARY KEY, event_at {stamp}, landed_at {stamp})"
    case.sql(clock, "INSERT INTO headwater_clock VALUES (1, '2024-01-01 00:00:00', '2024-01-01 00:00:00')")
    case.sync()
    for number, at in enumerate(("13:00:00", "11:00:00", "12:00:00", "10:59:59", "13:00:01")):
        dated = f"UPDATE headwater_clock SET event_at = '2024-01-02 {at}', landed_at = '2024-01-02 {at}'"
        case.sql("BEGIN", dated, f"UPDATE t SET v = 'number {number}' WHERE id <= 3", "COMMIT")
        case.sync()
    streamed = [v for op, key, v in case.history("t") if op == "u" and key == 1]
    assert streamed == [f"number {number}" for number in range(5)]
    seen("the order of commits decides, not the clock: the last commit is in force, equals the source")


def test_44_late_and_out_of_order(case: Case, seen: Seen) -> None:
    """A row's creation is refused; the row is changed; then the creation comes, behind the change, as a dead letter.

    It is dated (headwater_clock) a year before what has landed, and its declaration is mended in between.
    """
    case.make("t", 3)
    declared = case.catalog / "sources" / "t.yaml"
    mended = declared.read_text()
    declared.write_text(mended.replace("nullable: true", "nullable: false"))
    stamp = case.either("timestamp", "datetime(6)")
    case.sql(f"CREATE TABLE headwater_clock (id int PRIMARY KEY, event_at {stamp}, landed_at {stamp})")
    case.sql("INSERT INTO headwater_clock VALUES (1, '2024-01-01 00:00:00', '2024-01-01 00:00:00')")
    case.sync()
    late = "UPDATE headwater_clock SET event_at = '2023-01-01 00:00:00', landed_at = '2024-01-02 00:00:00'"
    case.sql("BEGIN", late, "INSERT INTO t VALUES (10, NULL), (11, NULL)", "COMMIT")
    case.sql("UPDATE t SET v = 'changed' WHERE id = 10", "DELETE FROM t WHERE id = 11")
    for done in (case.capture(), case.land()):
        assert done.code == 0, done
    assert len(case.quarantined("t")) == 2
    declared.write_text(mended)
    case.home.succeeds("dlq", "replay", "shop", "--quarantine", "--table", "t", "--all", "--yes")
    assert case.land().code == 0
    arrived = case.history("t", "log_offset, change_op, id")
    (found,) = case.verdicts()
    assert (found.lost, found.duplicates) == (0, 0)
    dated = case.history("t", "event_at::VARCHAR, id, change_op")
    assert [(id, op) for at, id, op in dated if at.startswith("2023")] == [(10, "c"), (11, "c")]
    assert [op for _, op, key in sorted(arrived) if key == 10] == ["u", "c"]
    assert [op for op, key, _ in case.history("t") if key == 10] == ["c", "u"]
    seen("in the log it lies behind what followed it, in the history before it, with its own date; equals the source")
