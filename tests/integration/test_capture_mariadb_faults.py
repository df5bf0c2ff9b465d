"""What can be wrong with a MariaDB server: capturing goes on where that is safe, and else stops with the remedy."""

from __future__ import annotations

import re
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from homes import wait_for
from mariadb_capture import (
    FAST,
    PATIENCE_S,
    RELAXED,
    Shop,
    address,
    capture,
    capture_once,
    capturing,
    fresh_database,
    run_once,
    topic,
)
from memory_writer import Log, MemoryWriter, changes, fold, places
from stack_servers import started

from headwater.stack.server import Server, kill, restart
from streaming.capture.checkpoint import Checkpoint
from streaming.capture.errors import Halt, Retryable
from streaming.mysql.connect import Database
from streaming.mysql.history import last_transaction
from streaming.mysql.positions import Resume
from streaming.mysql.retained import ask_retained
from streaming.mysql.source import MysqlSource

ORDERS = "CREATE TABLE orders (id int PRIMARY KEY, v varchar(20), n int DEFAULT 0)"
FROM_SCRATCH = replace(FAST, from_scratch=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started("mariadb", tmp_path_factory.mktemp("mariadb") / "server", settings=RELAXED) as running:
        yield running


@pytest.fixture
def shop(server: Server) -> Iterator[Shop]:
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS, "INSERT INTO orders (id) VALUES (1)"])
        yield shop


def ids(log: Log) -> list[int]:
    return sorted(row["id"] for row in fold(log, topic("shop.orders")).values())


def snapshots(log: Log) -> int:
    return sum(change["op"] == "r" for _, _, change in changes(log, topic("shop.orders")))


def purge_but_the_last_file(shop: Shop) -> str:
    """That file, when the others are deleted."""
    last = str(shop.one("SHOW MASTER STATUS"))

    def purge() -> bool | None:
        """A file that is still sent to somebody, who went away a second ago, is not deleted."""
        shop.run(f"PURGE BINARY LOGS TO '{last}'")
        return len(shop.run("SHOW BINARY LOGS")) == 1 or None

    wait_for("purged log", purge, within_s=PATIENCE_S, every_s=0.1)
    return last


def begins_again_from_scratch(server: Server, log: Log) -> None:
    """In a new epoch, so that what was landed before is not taken for newer."""
    capture_once(server, log, "orders", options=FROM_SCRATCH)
    with Shop(server) as shop:
        assert ids(log) == [row[0] for row in shop.run("SELECT id FROM shop.orders ORDER BY id")]
        shop.run("USE shop", "INSERT INTO orders (id) VALUES (1000)")
        capture_once(server, log, "orders")
        shop.run("DELETE FROM orders WHERE id = 1000")
    found = [place for _, place in places(log, topic("shop.orders"))]
    assert found[-1][0] == 2
    assert len(found) == len(set(found))


# The position


def test_a_binary_log_that_was_purged_stops_the_capture(server: Server, shop: Shop) -> None:
    log: Log = {}
    capture_once(server, log, "orders")
    shop.run("INSERT INTO orders (id) VALUES (2)", "FLUSH BINARY LOGS", "DELETE FROM orders WHERE id = 1")
    shop.run("FLUSH BINARY LOGS")
    last = purge_but_the_last_file(shop)
    saved = Checkpoint.load("shop", MemoryWriter(log))
    assert saved is not None
    with pytest.raises(Halt, match=r"deleted before it was read.*binlog_purged"):
        ask_retained(address(server), Resume.read(saved.resume), 2)
    with pytest.raises(Halt, match=r"deleted before it was read.*binlog_expire_logs_seconds.*binlog_purged") as found:
        capture_once(server, log, "orders")
    assert last in found.value.found
    begins_again_from_scratch(server, log)


def test_a_binary_log_that_was_reset_stops_the_capture(server: Server, shop: Shop) -> None:
    """Whether or not the place that we were at exists in the new one, and whether or not it streams meanwhile."""
    log: Log = {}
    capture_once(server, log, "orders")
    shop.run("RESET MASTER", "INSERT INTO orders (id) VALUES (2)")
    with pytest.raises(Halt, match=r"reset.*--from-scratch.*binlog_reset"):
        capture_once(server, log, "orders")
    begins_again_from_scratch(server, log)


@pytest.mark.parametrize("longer", [False, True])
def test_a_binary_log_that_is_reset_while_it_streams_stops_the_capture(
    server: Server, shop: Shop, longer: bool
) -> None:
    """The server keeps the connection, and sends signs of life for ever; the new log may be longer than the old one."""
    log: Log = {}
    running, stop = capture(server, log, "orders", options=replace(FAST, look_s=0.2), said=[]), threading.Event()

    def reset() -> None:
        wait_for("orders", lambda: ids(log) == [1] or None, PATIENCE_S, 0.05)
        shop.run("RESET MASTER")
        shop.run(*(f"INSERT INTO orders (id, v) VALUES ({n}, 'x')" for n in range(2, 200 if longer else 3)))
        stop.wait(PATIENCE_S)
        stop.set()

    resetting = threading.Thread(target=reset)
    resetting.start()
    try:
        with pytest.raises(Halt, match=r"reset.*--from-scratch.*binlog_reset"):
            running.run(stop)
    finally:
        stop.set()
        resetting.join()
    begins_again_from_scratch(server, log)


def test_it_goes_on_over_files_that_were_flushed(server: Server, shop: Shop) -> None:
    log: Log = {}
    capture_once(server, log, "orders")
    for number in range(2, 6):
        shop.run(f"INSERT INTO orders (id) VALUES ({number})", "FLUSH BINARY LOGS")
    capture_once(server, log, "orders")
    assert (ids(log), snapshots(log)) == ([1, 2, 3, 4, 5], 1)


def test_gaps_and_domains_of_gtids_lose_nothing(server: Server, shop: Shop) -> None:
    log: Log = {}
    capture_once(server, log, "orders")
    last = int(str(shop.one("SELECT @@gtid_binlog_pos")).split(",")[0].rpartition("-")[2])
    shop.run(f"SET gtid_seq_no = {last + 1_000_000}", "INSERT INTO orders (id) VALUES (2)")
    shop.run("SET gtid_domain_id = 7", "INSERT INTO orders (id) VALUES (3)", "SET server_id = 77")
    shop.run("INSERT INTO orders (id) VALUES (4)", "SET gtid_domain_id = 0, server_id = 1")
    capture_once(server, log, "orders")
    shop.run("INSERT INTO orders (id) VALUES (5)")
    capture_once(server, log, "orders")
    assert (ids(log), snapshots(log)) == ([1, 2, 3, 4, 5], 1)
    gtids = {c["after"]["id"]: c["source"]["gtid"] for _, _, c in changes(log, topic("shop.orders")) if c["op"] == "c"}
    assert gtids[2] == f"0-1-{last + 1_000_000}"
    assert gtids[4] == "7-77-2"


def test_the_last_transaction_is_found_in_the_log_or_nothing_is_claimed(server: Server, shop: Shop) -> None:
    def last() -> tuple[str, int] | None:
        return last_transaction(Database(address(server)), str(shop.one("SELECT @@gtid_binlog_pos")))

    shop.run("RESET MASTER", "CREATE TABLE t (id int)")
    assert last() == (
        "",
        shop.one("SELECT unix_timestamp(create_time) FROM information_schema.tables WHERE table_name = 't'"),
    )
    shop.run("SET timestamp = 1000000000", "INSERT INTO t VALUES (1)", "FLUSH BINARY LOGS")
    assert last() == ("0-1-1", 1_000_000_000)
    shop.run("SET timestamp = 1000000001, gtid_domain_id = 7, gtid_seq_no = 5", "INSERT INTO t VALUES (2)")
    assert last() == ("0-1-1,7-1-5", 1_000_000_000)  # of domain 7 there is no 7-1-4
    shop.run("SET timestamp = DEFAULT, gtid_domain_id = 0, gtid_seq_no = 9", "INSERT INTO t VALUES (3)")
    assert last() is None
    shop.run("INSERT INTO t VALUES (4)")
    assert last() is not None
    shop.run("FLUSH BINARY LOGS")
    purge_but_the_last_file(shop)
    assert last() is None


# The server


@pytest.mark.parametrize("stop", [restart, kill])
def test_a_restart_is_waited_for(server: Server, shop: Shop, stop: Callable[[Server], object]) -> None:
    log: Log = {}
    with capturing(server, log, "orders"):
        shop.run("INSERT INTO orders (id) VALUES (2)")
        stop(server)
        restart(server)
        with Shop(server, database="shop") as again:
            again.run("INSERT INTO orders (id) VALUES (3)")
    capture_once(server, log, "orders")
    assert ids(log) == [1, 2, 3]
    found = [place for _, place in places(log, topic("shop.orders"))]
    assert len(found) == len(set(found))


def test_another_server_id_does_not_matter(server: Server, shop: Shop) -> None:
    """What is followed is the history; its number is only a name of the server."""
    log: Log = {}
    capture_once(server, log, "orders")
    shop.run("SET GLOBAL server_id = 9", "INSERT INTO orders (id) VALUES (2)")
    capture_once(server, log, "orders")
    shop.run("SET GLOBAL server_id = 1", "INSERT INTO orders (id) VALUES (3)")
    capture_once(server, log, "orders")
    assert (ids(log), snapshots(log)) == ([1, 2, 3], 1)


def test_two_connectors_of_one_id_do_not_take_the_stream_from_each_other(server: Server, shop: Shop) -> None:
    log: Log = {}
    with capturing(server, log, "orders") as _:
        shop.run("INSERT INTO orders (id) VALUES (2)")
        wait_until_captured(log)
        second = MysqlSource("shop", address(server), ["orders"])
        with pytest.raises(Retryable, match=r"another connector.*server_id"):
            second.identify()
        second.close()
    capture_once(server, log, "orders")
    assert ids(log) == [1, 2]


def wait_until_captured(log: Log) -> None:
    wait_for("captured row", lambda: ids(log) == [1, 2] or None, within_s=PATIENCE_S, every_s=0.02)


# Settings and privileges


@pytest.mark.parametrize(
    ("setting", "wrong", "right"),
    [
        ("binlog_row_image", "MINIMAL", "FULL"),
        ("binlog_row_metadata", "MINIMAL", "FULL"),
        ("binlog_format", "STATEMENT", "ROW"),
    ],
)
def test_a_setting_that_hides_changes_is_refused(
    server: Server, shop: Shop, setting: str, wrong: str, right: str
) -> None:
    shop.run(f"SET GLOBAL {setting} = {wrong}")
    try:
        with pytest.raises(Halt, match=rf"{setting} is {wrong}.*SET GLOBAL {setting} = '{right}'.*mariadb_settings"):
            capture_once(server, {}, "orders")
    finally:
        shop.run(f"SET GLOBAL {setting} = {right}")


def test_a_session_that_logs_only_some_columns_stops_the_capture(server: Server, shop: Shop) -> None:
    log: Log = {}
    capture_once(server, log, "orders")
    shop.run("SET SESSION binlog_row_image = MINIMAL", "UPDATE orders SET n = 5 WHERE id = 1")
    with pytest.raises(Halt, match=r"only some of their columns.*binlog_row_image = FULL.*mariadb_settings"):
        capture_once(server, log, "orders")
    begins_again_from_scratch(server, log)


def test_every_missing_privilege_is_named(server: Server, shop: Shop) -> None:
    """One after the other is granted, and the next one is asked for; with all of them it captures."""
    shop.run("CREATE OR REPLACE USER reader@'127.0.0.1' IDENTIFIED BY 'secret-7'")
    reader = address(server, "reader", "secret-7")
    shop.run("GRANT CREATE TEMPORARY TABLES ON shop.* TO reader@'127.0.0.1'")  # or the database itself is closed to it
    needed = [("BINLOG MONITOR", "*.*"), ("SELECT", "shop.*"), ("REPLICATION SLAVE", "*.*")]
    log: Log = {}
    for privilege, where in needed:
        with pytest.raises(Halt, match=rf"lacks a privilege.*{privilege}.*GRANT.*mariadb_privileges") as found:
            run_once(capture(server, log, "orders", at=reader), [])
        assert "secret-7" not in str(found.value)
        shop.run(f"GRANT {privilege} ON {where} TO reader@'127.0.0.1'")
    run_once(capture(server, log, "orders", at=reader), [])
    assert ids(log) == [1]
    shop.run("DROP USER reader@'127.0.0.1'")


def test_the_others_go_on_without_a_table_that_is_unfit_until_it_is_mended(server: Server, shop: Shop) -> None:
    shop.run("CREATE TABLE notes (v int) ENGINE = MyISAM", "INSERT INTO notes VALUES (7)")
    shop.run("CREATE VIEW seen AS SELECT * FROM orders")
    log: Log = {}
    said: list[str] = []
    with capturing(server, log, "orders", "notes", "seen", "later", options=replace(FAST, look_s=0.1), said=said):
        wait_for("orders", lambda: ids(log) == [1] or None, PATIENCE_S, 0.05)
        refused = [line for line in said if "is not captured, the other tables are" in line]
        assert [line.partition(" ")[0] for line in refused] == ["shop.notes", "shop.seen", "shop.later"]
        assert all("docs/runbooks/mariadb_tables.md" in line for line in refused)
        shop.run("ALTER TABLE notes ENGINE = InnoDB", "CREATE TABLE later (id int PRIMARY KEY)")
        shop.run("INSERT INTO later VALUES (5)", "INSERT INTO orders (id) VALUES (2)")
        wait_for("later", lambda: fold(log, topic("shop.later")) or None, PATIENCE_S, 0.05)
        wait_for("notes", lambda: list(changes(log, topic("shop.notes"))) or None, PATIENCE_S, 0.05)
        wait_for("orders", lambda: ids(log) == [1, 2] or None, PATIENCE_S, 0.05)


def test_what_is_kept_for_a_connector_that_is_away_is_asked_of_the_server(server: Server, shop: Shop) -> None:
    log: Log = {}
    capture_once(server, log, "orders")
    saved = Checkpoint.load("shop", MemoryWriter(log))
    assert saved is not None
    place = Resume.read(saved.resume)
    before = ask_retained(address(server), place, 2)
    shop.run("INSERT INTO orders (id, v) VALUES (2, REPEAT('x', 20))")
    after = ask_retained(address(server), place, 2)
    assert before is not None
    assert after is not None
    assert after.retained_bytes > before.retained_bytes
    assert ask_retained(address(server, "nobody", "wrong"), place, 2) is None


def test_the_how_tos_statements_suffice(server: Server, shop: Shop) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "how_to" / "capture_mariadb.md").read_text()
    for block in re.findall(r"```sql\n(.*?)```", text, flags=re.DOTALL):
        shop.run(*[statement for statement in block.split(";") if statement.strip()])
    log: Log = {}
    run_once(capture(server, log, "orders", at=address(server, "headwater", "a-long-secret")), [])
    assert ids(log) == [1]
    settings = dict(re.findall(r"^(\w+) = (\w+)$", text, flags=re.MULTILINE))
    found = dict(shop.run("SHOW GLOBAL VARIABLES"))
    assert {name: found[name] for name in settings if name != "log_bin"} == {
        name: value for name, value in settings.items() if name != "log_bin"
    }
    shop.run("DROP USER headwater@'%'")


# Large transactions


class Forgetful(MemoryWriter):
    """Keeps nothing of what it is sent but the connector's own topics."""

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, timestamp_us: int, partition: int | None = None
    ) -> None:
        if topic.startswith("capture."):
            super().send(topic, key, value, timestamp_us, partition)


def test_a_transaction_is_never_held_in_memory(server: Server, shop: Shop) -> None:
    """50,000 rows with 30 MB of values in one transaction."""
    log: Log = {}
    shop.run("ALTER TABLE orders MODIFY v varchar(1000)")
    capture_once(server, log, "orders")
    shop.run("INSERT INTO orders SELECT seq, repeat('x', 600), 0 FROM seq_2_to_50000")
    running = capture(server, log, "orders", writer=lambda: Forgetful(log))
    tracemalloc.start()
    try:
        run_once(running, [])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
