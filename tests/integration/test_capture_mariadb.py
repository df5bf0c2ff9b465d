"""MariaDB under capture: whatever happens to it and to the connector, the log folds to the rows that it has."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from homes import wait_for
from mariadb_capture import (
    FAST,
    PATIENCE_S,
    RELAXED,
    Shop,
    address,
    assert_no_place_twice,
    assert_same_as_the_source,
    capture_once,
    capturing,
    fresh_database,
    topic,
    writers,
)
from memory_writer import Log, changes, fold
from stack_servers import started

from headwater.stack.server import Server
from streaming.capture.errors import Halt
from streaming.mysql.chunks import snapshot_mariadb
from streaming.mysql.connect import Database

ORDERS = "CREATE TABLE orders (id int PRIMARY KEY, v varchar(20), n int DEFAULT 0)"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started("mariadb", tmp_path_factory.mktemp("mariadb") / "server", settings=RELAXED) as running:
        yield running


# The snapshot's place


def test_a_snapshot_is_of_exactly_the_place_that_the_server_says(server: Server) -> None:
    """Under commits from several connections: every transaction up to the place is in it, none after it is."""
    log: Log = {}
    seen: list[tuple[int, set[int]]] = []
    with Shop(server) as shop:
        fresh_database(shop, ["CREATE TABLE t (id int AUTO_INCREMENT PRIMARY KEY, w int)"])
        capture_once(server, log, "t")
        database = Database(address(server))
        reader = database.connect(raw=True)
        database.query(reader, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")

        def work(other: Shop, rng: random.Random) -> None:
            other.run("BEGIN", f"INSERT INTO t (w) VALUES ({rng.randrange(9)})", "COMMIT")

        with writers(server, 4, work, rounds=400):
            for _ in range(60):
                place = snapshot_mariadb(database, reader)
                seen.append((place, {row[0] for row in database.query(reader, "SELECT id FROM shop.t")}))
                reader.commit()
        reader.close()
    capture_once(server, log, "t")
    labels = {c["after"]["id"]: c["source"]["headwater"]["commit"] for _, _, c in changes(log, topic("shop.t"))}
    assert len({len(ids) for _, ids in seen}) > 10
    for place, ids in seen:
        assert ids == {number for number, commit in labels.items() if commit <= place}


# Snapshot and stream


def shop_work(table: str) -> Callable[[Shop, random.Random], None]:
    """Random transactions: rows come, change, change their key, go; some are rolled back, in part or wholly."""

    def work(shop: Shop, rng: random.Random) -> None:
        shop.run("BEGIN")
        for _ in range(rng.randrange(1, 5)):
            key = rng.randrange(400)
            statement = rng.choice(
                [
                    f"REPLACE INTO {table} VALUES ({key}, 'v{rng.random():.9f}', {rng.randrange(3)})",
                    f"UPDATE {table} SET n = n + 1 WHERE id = {key}",
                    f"UPDATE IGNORE {table} SET v = 'ü{rng.random():.9f}' WHERE id BETWEEN {key} AND {key + 5}",
                    f"UPDATE IGNORE {table} SET id = {rng.randrange(400)} WHERE id = {key} LIMIT 1",
                    f"DELETE FROM {table} WHERE id = {key}",
                    "SAVEPOINT s",
                ]
            )
            shop.run(statement)
            if statement == "SAVEPOINT s" and rng.random() < 0.7:
                shop.run(f"DELETE FROM {table} WHERE id < 10", "ROLLBACK TO s")
        shop.run("ROLLBACK" if rng.random() < 0.2 else "COMMIT")
        if rng.random() < 0.002:
            shop.run(f"TRUNCATE {table}")

    return work


@pytest.mark.parametrize("chunk_rows", [3, 50])
@pytest.mark.parametrize("key", ["PRIMARY KEY (id)", "PRIMARY KEY (v, id)", "KEY (id)"])
def test_a_snapshot_merges_with_what_happens_meanwhile(server: Server, key: str, chunk_rows: int) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(
            shop,
            [
                f"CREATE TABLE orders (id int, v varchar(40), n int, {key})",
                "INSERT INTO orders SELECT seq, seq % 7, 0 FROM seq_0_to_399",
            ],
        )
        with (
            capturing(server, log, "orders", options=replace(FAST, chunk_rows=chunk_rows)),
            writers(server, 3, shop_work("orders"), rounds=250),
        ):
            pass
    capture_once(server, log, "orders")
    assert_same_as_the_source(server, log, "orders")
    assert_no_place_twice(log, "orders")
    assert len(list(changes(log, topic("shop.orders")))) > 400  # truncated at random, it has fewer rows to change


@pytest.mark.parametrize(
    ("indexes", "key"),
    [
        ("PRIMARY KEY (v, id), UNIQUE u (id)", ["v", "id"]),
        ("UNIQUE u (v, id)", ["v", "id"]),
        ("UNIQUE later (v), UNIQUE before_it (id)", ["v"]),
        ("UNIQUE z (v, id), UNIQUE a (id, v)", ["v", "id"]),
        ("UNIQUE n (w), UNIQUE part (v(2)), UNIQUE `i``d` (id)", ["id"]),
        ("UNIQUE n (w), KEY (id)", []),
    ],
)
def test_the_snapshot_has_the_key_that_the_stream_has(server: Server, indexes: str, key: list[str]) -> None:
    log: Log = {}
    with Shop(server) as shop:
        table = f"CREATE TABLE orders (id int NOT NULL, v varchar(9) NOT NULL, w int, {indexes})"
        fresh_database(shop, [table, "INSERT INTO orders SELECT seq, concat(seq, 'abc'), seq FROM seq_1_to_5"])
        capture_once(server, log, "orders", options=replace(FAST, chunk_rows=2))
        shop.run("INSERT INTO orders VALUES (6, '6abc', 6)")
    capture_once(server, log, "orders")
    found = [(change["op"], record) for _, record, change in changes(log, topic("shop.orders")) if change["op"] != "t"]
    assert sorted(op for op, _ in found) == ["c", *"rrrrr"]
    assert {tuple(json.loads(record)) if record else () for _, record in found} == {tuple(key)}
    assert len([kept for (name, _), kept in log.items() if name == "capture.shop.schemas" for _ in kept]) == 1


def test_a_table_is_read_again_while_others_stream(server: Server) -> None:
    log: Log = {}

    def read_twice() -> bool:
        return sum(change["op"] == "r" for _, _, change in changes(log, topic("shop.orders"))) > 400

    with Shop(server) as shop:
        fresh_database(shop, [ORDERS, "INSERT INTO orders SELECT seq, 'x', 0 FROM seq_1_to_300"])
        capture_once(server, log, "orders")
        with capturing(server, log, "orders") as running:
            running.resnapshot("orders")
            with writers(server, 1, shop_work("orders"), rounds=50):
                wait_for("second snapshot", lambda: read_twice() or None, within_s=PATIENCE_S, every_s=0.05)
    capture_once(server, log, "orders")
    assert_same_as_the_source(server, log, "orders")


# What is in the binary log


def test_a_changed_key_is_a_deletion_and_a_creation(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, ["CREATE TABLE t (k varchar(10) COLLATE utf8mb4_general_ci PRIMARY KEY, n int)"])
        capture_once(server, log, "t")
        shop.run("INSERT INTO t VALUES ('a', 1)", "UPDATE t SET k = 'A'")
    capture_once(server, log, "t")
    name = topic("shop.t")
    found = sorted(
        (c["transaction"]["id"], c["transaction"]["total_order"], c["op"], k) for _, k, c in changes(log, name)
    )
    assert [(op, key) for _, _, op, key in found] == [("c", b'{"k":"a"}'), ("d", b'{"k":"a"}'), ("c", b'{"k":"A"}')]
    assert [r.value for kept in log.values() for r in kept if r.key == b'{"k":"a"}'][-1] is None
    assert fold(log, name) == {b'{"k":"A"}': {"k": "A", "n": 1}}


def test_source_fields_are_debeziums(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS])
        capture_once(server, log, "orders")
        shop.run("SET timestamp = 1700000000", "INSERT INTO orders (id) VALUES (1), (2)")
        gtid, file = shop.one("SELECT @@gtid_binlog_pos"), shop.one("SHOW MASTER STATUS")
    capture_once(server, log, "orders")
    (first, second) = sorted((c for _, _, c in changes(log, topic("shop.orders"))), key=lambda c: c["after"]["id"])
    source = first["source"]
    assert source["headwater"].keys() == {"epoch", "commit", "order", "schema"}
    assert {name: source[name] for name in ("connector", "name", "db", "table", "snapshot", "server_id", "gtid", "file",
            "row", "thread", "query", "ts_ms", "ts_us")} == {
        "connector": "mariadb", "name": "shop", "db": "shop", "table": "orders", "snapshot": "false", "server_id": 1,
        "gtid": gtid, "file": file, "row": 0, "thread": None, "query": None, "ts_ms": 1700000000000,
        "ts_us": 1700000000000000}  # fmt: skip
    assert second["source"] == {**source, "row": 1, "headwater": {**source["headwater"], "order": 2}}
    assert first["transaction"] == {"id": gtid, "total_order": 1, "data_collection_order": 1}


def test_engines_without_transactions_and_compressed_events(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS, f"{ORDERS.replace('orders', 'visits')} ENGINE = MyISAM"])
        capture_once(server, log, "orders", "visits")
        shop.run("SET GLOBAL log_bin_compress = ON, GLOBAL log_bin_compress_min_len = 10")
        with Shop(server, database="shop") as other:
            for table in ("orders", "visits"):
                other.run(
                    f"INSERT INTO {table} SELECT seq, repeat('x', 20), 0 FROM seq_1_to_500",
                    f"UPDATE {table} SET n = 1 WHERE id > 250",
                    f"DELETE FROM {table} WHERE id < 100",
                    f"ALTER TABLE {table} ADD COLUMN added_later_on_with_a_long_name int",
                    f"UPDATE {table} SET added_later_on_with_a_long_name = id WHERE id > 400",
                )
        shop.run("SET GLOBAL log_bin_compress = OFF")
    capture_once(server, log, "orders", "visits")
    for table in ("orders", "visits"):
        rows = fold(log, topic(f"shop.{table}"))
        assert len(rows) == 401
        assert rows[b'{"id":450}']["added_later_on_with_a_long_name"] == 450


def test_rolled_back_work_is_never_seen(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS])
        capture_once(server, log, "orders")
        shop.run("BEGIN", "INSERT INTO orders (id) VALUES (1)", "SAVEPOINT a", "INSERT INTO orders (id) VALUES (2)")
        shop.run("ROLLBACK TO a", "INSERT INTO orders (id) VALUES (3)", "COMMIT")
        shop.run("BEGIN", "INSERT INTO orders (id) VALUES (4)", "ROLLBACK")
    capture_once(server, log, "orders")
    assert sorted(c["after"]["id"] for _, _, c in changes(log, topic("shop.orders"))) == [1, 3]


def test_rows_that_were_logged_and_rolled_back_stop_the_capture(server: Server) -> None:
    """Where a transaction has changed a table without transactions too, the server logs what it took back."""
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS, f"{ORDERS.replace('orders', 'visits')} ENGINE = MyISAM"])
        capture_once(server, log, "orders")
        shop.run("BEGIN", "INSERT INTO orders (id) VALUES (1)", "SAVEPOINT a", "INSERT INTO visits (id) VALUES (2)")
        shop.run("INSERT INTO orders (id) VALUES (3)", "ROLLBACK TO a", "COMMIT")
    with pytest.raises(Halt, match="mariadb_rolled_back"):
        capture_once(server, log, "orders")
    from_scratch(server, log, "orders")
    assert_same_as_the_source(server, log, "orders")


def from_scratch(server: Server, log: Log, *tables: str) -> list[str]:
    from dataclasses import replace

    return capture_once(server, log, *tables, options=replace(FAST, from_scratch=True))


def test_prepared_transactions_count_when_they_are_committed(server: Server) -> None:
    """Whatever lies between, a restart of the connector included."""
    log: Log = {}
    with Shop(server) as shop, Shop(server, database="shop") as other:
        fresh_database(shop, [ORDERS])
        capture_once(server, log, "orders")
        for number, xid in enumerate(("'kept'", "'lost','b',7", "'late'"), 1):
            with Shop(server, database="shop") as branch:
                branch.run(f"XA START {xid}", f"INSERT INTO orders (id) VALUES ({number}), ({number + 10})")
                branch.run(f"XA END {xid}", f"XA PREPARE {xid}")
        capture_once(server, log, "orders")
        assert not fold(log, topic("shop.orders"))
        other.run("INSERT INTO orders (id) VALUES (99)", "XA COMMIT 'kept'", "XA ROLLBACK 'lost','b',7")
        capture_once(server, log, "orders")
        assert sorted(row["id"] for row in fold(log, topic("shop.orders")).values()) == [1, 11, 99]
        shop.run("FLUSH BINARY LOGS", "UPDATE orders SET n = 5 WHERE id = 99", "XA COMMIT 'late'")
        shop.run("XA START 'one'", "INSERT INTO orders (id) VALUES (50)", "XA END 'one'", "XA COMMIT 'one' ONE PHASE")
    capture_once(server, log, "orders")
    assert_same_as_the_source(server, log, "orders")
    assert_no_place_twice(log, "orders")
    assert sum(c["op"] == "r" for _, _, c in changes(log, topic("shop.orders"))) == 0


def test_a_transaction_that_was_prepared_before_the_capture_has_its_tables_read_again(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS, "INSERT INTO orders (id) VALUES (1)"])
        with Shop(server, database="shop") as branch:
            branch.run("XA START 'x'", "INSERT INTO orders (id) VALUES (2)", "XA END 'x'", "XA PREPARE 'x'")
        capture_once(server, log, "orders")
        shop.run("XA COMMIT 'x'")
    capture_once(server, log, "orders")
    assert_same_as_the_source(server, log, "orders")


def test_a_change_that_was_logged_as_a_statement_stops_the_capture(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS, "CREATE TABLE other (id int)"])
        capture_once(server, log, "orders")
        shop.run("SET SESSION binlog_format = STATEMENT", "INSERT INTO other VALUES (1)")
        capture_once(server, log, "orders")
        shop.run("INSERT INTO orders (id) VALUES (1)")
    with pytest.raises(Halt, match="mariadb_statement"):
        capture_once(server, log, "orders")
    from_scratch(server, log, "orders")
    assert_same_as_the_source(server, log, "orders")


def test_the_replays_clock_dates_its_transaction(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        clock = "CREATE TABLE headwater_clock (id int PRIMARY KEY, event_at datetime(6), landed_at datetime(6), t int)"
        fresh_database(shop, [ORDERS, clock])
        capture_once(server, log, "orders")
        shop.run(
            "BEGIN",
            "REPLACE INTO headwater_clock VALUES (1, '2011-01-01 00:00:00.5', '2011-01-02', 1)",
            "INSERT INTO orders (id) VALUES (1)",
            "COMMIT",
            "BEGIN",
            "UPDATE headwater_clock SET event_at = '2012-01-01', landed_at = '2012-01-01 00:00:01'",
            "INSERT INTO orders (id) VALUES (2)",
            "INSERT INTO orders (id) SELECT seq FROM seq_10_to_20000",  # many packets
            "COMMIT",
            "INSERT INTO orders (id) VALUES (3)",
        )
    capture_once(server, log, "orders")
    found = {c["after"]["id"]: (c["source"]["ts_us"], c["ts_us"]) for _, _, c in changes(log, topic("shop.orders"))}
    assert found[1] == (1293840000500000, 1293926400000000)
    assert found[2] == (1325376000000000, 1325376001000000)
    assert {found[number] for number in range(10, 20_001)} == {found[2]}
    assert min(found[3]) > 1_700_000_000_000_000
    assert not [name for name, _ in log if "clock" in name]
