"""Faults 1 to 14: where the connector was, and what the server still has of it."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from catalog.keys import cdc_topic
from catalog.settings import load_settings
from headwater.stack.server import kill, restart, stop
from streaming.capture.checkpoint import state_topic
from streaming.capture.service import last_status
from streaming.sqlite_writer import SqliteWriter
from tests.faults.case import Case
from tests.faults.stand import SETTINGS, wait_until
from tests.faults.standby import catch_up, name_both, promote, standby_of, with_slot
from tests.integration.homes import Home
from tests.integration.stack_servers import started

Seen = Callable[[str], None]
ON_POSTGRESQL = pytest.mark.parametrize("case", ["postgresql"], indirect=True)
ON_MARIADB = pytest.mark.parametrize("case", ["mariadb"], indirect=True)
SLOT = "headwater_shop"


def captured(case: Case) -> None:
    """A table that was captured and landed; the connector is stopped."""
    case.make("t", 3)
    case.sync()


def from_scratch(case: Case) -> None:
    """What the halts name: everything is read again, in a new epoch, and it goes on from there."""
    case.sync(from_scratch=True)
    case.insert("t", 1001, 1003)
    case.sync()
    assert case.problems() != []  # nothing runs, and that is said too


@pytest.mark.representative
def test_01_killed_between_acknowledgement_and_checkpoint(case: Case, seen: Seen) -> None:
    """The connector kills itself after a flush of changes and before the checkpoint, twice; then it runs on."""
    captured(case)
    for number in (1, 2):
        case.insert("t", number * 100, number * 100 + 20)
        case.dies("before_checkpoint", "capture", "shop", "--once")
    case.sync()
    seen(f"{len(case.history('t'))} changes landed, none twice; the table equals the source")


@ON_POSTGRESQL
def test_02_killed_between_checkpoint_and_confirmation(case: Case) -> None:
    """The connector kills itself after the checkpoint and before the slot is told."""
    captured(case)
    case.insert("t", 100, 120)
    case.dies("before_confirm", "capture", "shop", "--once")
    case.sql("DELETE FROM t WHERE id < 110")
    case.dies("before_confirm", "capture", "shop", "--once")
    case.sync()


@ON_POSTGRESQL
def test_03_slot_dropped(case: Case, seen: Seen) -> None:
    """The slot is dropped while the connector is stopped, and rows change."""
    captured(case)
    case.sql(f"SELECT pg_drop_replication_slot('{SLOT}')")
    case.sql("DELETE FROM t WHERE id = 1")
    assert "--from-scratch" in case.halts("postgresql_slot_missing")
    from_scratch(case)
    seen("halt with runbook postgresql_slot_missing, also in `headwater status`; --from-scratch: equals the source")


@contextmanager
def bounded_wal(case: Case) -> Iterator[None]:
    """The server keeps at most a megabyte for slots."""
    case.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "SELECT pg_reload_conf()")
    try:
        yield
    finally:
        case.sql("ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()")


@ON_POSTGRESQL
def test_04_slot_invalidated(case: Case, seen: Seen) -> None:
    """While the connector is stopped, rows change and more is logged than max_slot_wal_keep_size (1 MB)."""
    captured(case)
    case.sql("DELETE FROM t WHERE id = 1", "UPDATE t SET v = 'unseen' WHERE id = 2")

    def given_up() -> bool:
        case.sql("CHECKPOINT; SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)), pg_switch_wal()")
        return case.sql(f"SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{SLOT}'") == [("lost",)]

    with bounded_wal(case):
        wait_until(given_up, "the server has given the slot up")
        said = case.halts("postgresql_slot_invalidated")
    remedy = re.search(r"(SELECT pg_drop_replication_slot\(.*?\)), then .*--from-scratch", said)
    assert remedy, said
    case.sql(remedy[1])
    from_scratch(case)
    seen("halt with runbook postgresql_slot_invalidated; its statement and --from-scratch: equals the source")


def nothing_is_kept(case: Case, make_busy: Callable[[str], None], seen: Seen) -> None:
    """While the connector runs, 30 MB are written next door; the slot passes them."""
    captured(case)
    with case.running("capture", "shop"):
        make_busy(
            "CREATE TABLE busy (id int, v text);"
            "INSERT INTO busy SELECT i, repeat('x', 1000) FROM generate_series(1, 30000) i; DROP TABLE busy"
        )
        ((end,),) = case.sql("SELECT pg_current_wal_flush_lsn()::text")
        slot = f"FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
        wait_until(lambda: case.sql(f"SELECT confirmed_flush_lsn >= '{end}' {slot}") == [(True,)], "confirmed")
        case.sql("CHECKPOINT")
        wait_until(lambda: case.sql(f"SELECT restart_lsn >= '{end}' {slot}") == [(True,)], "nothing is kept")
    case.sync()
    seen("confirmed_flush_lsn and restart_lsn pass the neighbour's WAL: nothing is kept")


@ON_POSTGRESQL
def test_05_table_idle_neighbour_busy(case: Case, seen: Seen) -> None:
    """The captured table is idle, another one of its database gets 30 MB."""
    with case.connect() as neighbour:
        nothing_is_kept(case, neighbour.script, seen)


@ON_POSTGRESQL
def test_06_database_idle_sibling_busy(case: Case, seen: Seen) -> None:
    """The captured database is idle, another one of its server gets 30 MB."""
    with case.admin() as sibling:
        nothing_is_kept(case, sibling.script, seen)


@ON_MARIADB
def test_07_binlog_purged(case: Case, seen: Seen) -> None:
    """The binary log's files are deleted up to beyond our position."""
    captured(case)
    case.sql("DELETE FROM t WHERE id = 1", "FLUSH BINARY LOGS", "FLUSH BINARY LOGS")
    with case.connect() as database:
        last = database.query("SHOW BINARY LOGS")[-1][0]

        def purged() -> bool:
            database.script(f"PURGE BINARY LOGS TO '{last}'")
            return len(database.query("SHOW BINARY LOGS")) == 1

        wait_until(purged, "the files are deleted")
    assert "--from-scratch" in case.halts("mariadb_binlog_purged")
    from_scratch(case)
    seen("halt with runbook mariadb_binlog_purged; --from-scratch: equals the source")


@ON_MARIADB
def test_08_binlog_reset(case: Case, seen: Seen) -> None:
    """RESET MASTER while the connector is stopped, and rows change."""
    captured(case)
    case.sql("RESET MASTER", "DELETE FROM t WHERE id = 1")
    assert "--from-scratch" in case.halts("mariadb_binlog_reset")
    from_scratch(case)
    seen("halt with runbook mariadb_binlog_reset; --from-scratch: equals the source")


@ON_MARIADB
def test_08_binlog_reset_while_it_streams(case: Case, seen: Seen) -> None:
    """RESET MASTER while the connector runs, and rows change; the server keeps the connection, and sends nothing."""
    case.make()
    with case.home.started("headwater", "capture", "shop") as connector, case.running("land", "--every", "0.2"):
        case.wait_for_same()
        case.sql("RESET MASTER", "DELETE FROM t WHERE id = 1")
        began = time.monotonic()
        assert connector.wait(60) == 1, case.said
        halted_s = time.monotonic() - began
    assert any("mariadb_binlog_reset" in problem for problem in case.problems())
    from_scratch(case)
    seen(
        f"halts by itself within {halted_s:.0f} s, with runbook mariadb_binlog_reset; --from-scratch: equals the source"
    )


def test_09_another_server(own_case: Case, tmp_path: Path, seen: Seen) -> None:
    """The server is stopped, and another one is installed at its address, with the same table and other rows."""
    case = own_case
    captured(case)
    case.insert("t", 4, 9)
    case.sync()
    before = case.history("t")
    stop(case.server)
    name = case.server.name
    with started(name, tmp_path / "other", port=case.server.port, settings=SETTINGS[name]) as other:
        case.move_to(other)
        with case.admin() as admin:
            admin.script("CREATE DATABASE shop")
        case.sql("CREATE TABLE t (id int PRIMARY KEY, v varchar(200))")
        case.insert("t", 3, 5)
        assert "--accept-identity" in case.halts("another_server")
        assert case.land().code == 0
        assert case.history("t") == before, "nothing was taken from it"
        case.sync(accept_identity=True)
        case.insert("t", 6, 7)
        case.sync()
        case.forget_connection()
    seen("halt with runbook another_server, nothing is captured; --accept-identity: equals the other server's table")


@pytest.mark.parametrize("damage", ["corrupt", "truncated"])
def test_10_checkpoint_damaged(case: Case, damage: str, seen: Seen) -> None:
    """The last record of the connector's checkpoints is altered; is cut in half."""
    captured(case)
    with closing(SqliteWriter(case.home.path / "log.db")) as writer:
        (last,) = writer.tails(state_topic("shop"), 1)[0]
        assert last.value
        broken = last.value.replace(b"epoch", b"epocj") if damage == "corrupt" else last.value[: len(last.value) // 2]
        writer.send(state_topic("shop"), last.key, broken, last.timestamp_us, 0)
        writer.flush()
    case.sql("DELETE FROM t WHERE id = 1")
    assert "--from-scratch" in case.halts("checkpoint_corrupt")
    from_scratch(case)
    seen("halt with runbook checkpoint_corrupt; --from-scratch: equals the source")


def copy_stopped(case: Case, source: Path, target: Path) -> None:
    """All files of the server, while it is stopped."""
    case.forget_connection()
    stop(case.server)
    for command in (["rm", "-rf", target], ["cp", "-a", source, target]):
        subprocess.run(command, check=True)
    case.server = restart(case.server)


def test_11_offset_ahead_of_the_server(own_case: Case, tmp_path: Path, seen: Seen) -> None:
    """The server is restored from a backup, older than what was captured and landed, and goes on from there."""
    case, data = own_case, own_case.server.home / "data"
    captured(case)
    copy_stopped(case, data, tmp_path / "backup")
    case.sql("DELETE FROM t WHERE id = 1")
    case.insert("t", 1000, 9000)
    case.sync()
    copy_stopped(case, tmp_path / "backup", data)
    case.insert("t", 2000, 2002)
    runbook = case.either("postgresql_server_behind", "mariadb_binlog_reset")
    assert "--from-scratch" in case.halts(runbook)
    from_scratch(case)
    seen(f"halt with runbook {runbook}; --from-scratch: rows that the server has lost go from the lake too, equal")


def test_12_a_second_connector(case: Case, tmp_path: Path, seen: Seen) -> None:
    """A connector runs; a second one is started in the same home, and one in another home; then the first is killed."""
    captured(case)
    other_home = replace(case.home, path=tmp_path / "other")
    with case.running("capture", "shop") as first:
        wait_until(lambda: _streams(case.home, first), "it runs")
        same_home = case.capture()
        assert same_home.code == 1
        assert "already runs" in same_home.err
        if case.is_postgresql:
            done = other_home.headwater("capture", "shop", "--once")
            assert done.code == 1
            assert "postgresql_slot_in_use" in done.err
        case.insert("t", 100, 120)
    case.sync()
    with case.home.started("headwater", "capture", "shop") as first:
        wait_until(lambda: _streams(case.home, first), "it runs")
        first.send_signal(signal.SIGSTOP)  # or PostgreSQL would say that it lives
        with other_home.started("headwater", "capture", "shop") as second:
            said, why = other_home.path / "headwater.log", case.either("may be a former run", "another connector")
            wait_until(lambda: why in said.read_text(), "the second says why it waits")
            first.kill()
            wait_until(lambda: _streams(other_home, second), "it takes over")
    refused = "same home: refused at once; other home: waits"
    if case.is_postgresql:
        case.halts("postgresql_slot_ahead")
        seen(
            f"{refused}, halts with runbook postgresql_slot_in_use when it sees that the first one lives, takes over "
            "when that is gone; the first home then halts with runbook postgresql_slot_ahead"
        )
    else:
        case.sync()
        seen(f"{refused}, takes over when the first one is gone; the first home goes on, equals the source")


def _streams(home: Home, process: subprocess.Popen[str]) -> bool:
    """Whether that very process says so."""
    found = last_status(load_settings(home.environment), "shop")
    return found is not None and (found["pid"], found["state"]) == (process.pid, "streaming")


@pytest.mark.representative
def test_13_part_of_the_log_again(case: Case, seen: Seen) -> None:
    """The last half of the log's records are appended to it once more, and then all of them."""
    captured(case)
    case.sql("UPDATE t SET v = 'changed'", "DELETE FROM t WHERE id = 2")
    case.insert("t", 100, 120)
    case.sync()
    before = case.history("t")
    with closing(SqliteWriter(case.home.path / "log.db")) as writer:
        topic = cdc_topic("shop", "t")
        kept = [each for each in writer.tails(topic, 1000)[0] if each.value is None or b'"op":"r"' not in each.value]
        for records in (kept[len(kept) // 2 :], kept):
            for record in records:
                writer.send(topic, record.key, record.value, record.timestamp_us, 0)
            writer.flush()
            assert case.land().code == 0
    assert case.history("t") == before
    case.same()
    seen("the repeated changes are counted and left out; the raw table is as before")


def test_14_standby_promoted(own_case: Case, tmp_path: Path, seen: Seen) -> None:
    """Connector and lander run, with both servers in the URL; `kill -9` of the primary, its standby is promoted
    (PostgreSQL's has the slot, synchronised from 17 on, else carried there before).
    """
    case, primary = own_case, own_case.server
    with standby_of(case, tmp_path / "standby") as standby:
        captured(case)
        if case.is_postgresql:
            standby = with_slot(case, standby, SLOT)
        name_both(case, standby)
        with case.running("capture", "shop"), case.running("land", "--every", "0.2"):
            case.insert("t", 10, 20)
            case.wait_for_same()
            case.insert("t", 30, 40)
            catch_up(case, standby)
            case.forget_connection()
            kill(primary)
            said = case.either("trying again", "continues the history of")
            wait_until(lambda: said in case.said, "it is said")
            promote(case, standby)
            case.server = standby
            case.sql("UPDATE t SET v = 'on the former standby' WHERE id IN (1, 35)")
            case.wait_for_same()
        assert [op for op, _, _ in case.history("t")].count("r") == 3, "nothing was read again"
        case.forget_connection()
    seen("it goes on with the former standby where it was, nothing is read again; equals the source")


def test_14_standby_promoted_before_anything_was_streamed(own_case: Case, tmp_path: Path, seen: Seen) -> None:
    """A capture that began at the end of the log and has seen no change since; then as above."""
    case, primary = own_case, own_case.server
    with standby_of(case, tmp_path / "standby") as standby:
        captured(case)
        if case.is_postgresql:
            standby = with_slot(case, standby, SLOT)
        catch_up(case, standby)
        kill(primary)
        promote(case, standby)
        case.move_to(standby)
        case.sql("UPDATE t SET v = 'on the former standby' WHERE id = 1")
        case.sync()
        assert [op for op, _, _ in case.history("t")].count("r") == 3, "nothing was read again"
        case.forget_connection()
    seen("it goes on with the former standby where it began, nothing is read again; equals the source")


def test_14_standby_without_our_place(own_case: Case, tmp_path: Path, seen: Seen) -> None:
    """The connector is pointed at a standby that is then promoted and has no slot (MariaDB: that lacks a transaction
    that was captured).
    """
    case, primary = own_case, own_case.server
    with standby_of(case, tmp_path / "standby") as standby:
        captured(case)
        catch_up(case, standby)
        if not case.is_postgresql:
            promote(case, standby)
            case.sql("DELETE FROM t WHERE id = 1")
            case.sync()
        kill(primary)
        case.move_to(standby)
        if case.is_postgresql:
            with case.home.started("headwater", "capture", "shop") as process:
                wait_until(lambda: "waiting for it to be promoted" in case.said, "it waits")
                promote(case, standby)
                assert process.wait(60) == 1, case.said
        case.insert("t", 10, 20)
        runbook = case.either("postgresql_slot_missing", "another_server")
        remedy = case.either("--from-scratch", "--accept-identity")
        assert remedy in case.halts(runbook)
        case.sync(**{remedy.removeprefix("--").replace("-", "_"): True})
        case.insert("t", 30, 40)
        case.sync()
        case.forget_connection()
    seen(f"halt with runbook {runbook}; {remedy}: equals the former standby")
