"""MariaDB's tables altered, emptied, swapped, partitioned: the log folds to the rows that the server has."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from homes import wait_for
from mariadb_capture import (
    PATIENCE_S,
    RELAXED,
    Shop,
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
from streaming.mysql.looks import Looks

ORDERS = "CREATE TABLE orders (id int PRIMARY KEY, v varchar(20), n int DEFAULT 0)"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started("mariadb", tmp_path_factory.mktemp("mariadb") / "server", settings=RELAXED) as running:
        yield running


def test_truncated_dropped_and_replaced_tables_lose_their_rows(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS, "INSERT INTO orders (id) VALUES (1), (2)"])
        capture_once(server, log, "orders")
        shop.run("TRUNCATE TABLE orders", "INSERT INTO orders (id) VALUES (3)")
        capture_once(server, log, "orders")
        assert list(fold(log, topic("shop.orders"))) == [b'{"id":3}']
        assert [p for p, k, c in changes(log, topic("shop.orders")) if c["op"] == "t" and k is None] == [0, 1, 2]
        shop.run("DROP TABLE orders")
        capture_once(server, log, "orders")
        assert not fold(log, topic("shop.orders"))
        shop.run(ORDERS, "INSERT INTO orders (id) VALUES (4)", f"CREATE OR REPLACE {ORDERS.removeprefix('CREATE ')}")
        shop.run("INSERT INTO orders (id) VALUES (5)")
        capture_once(server, log, "orders")
        assert_same_as_the_source(server, log, "orders")
        shop.run("DROP DATABASE shop", "CREATE DATABASE shop", "USE shop", ORDERS)
    capture_once(server, log, "orders")
    assert not fold(log, topic("shop.orders"))
    assert_no_place_twice(log, "orders")


def test_a_table_that_was_swapped_in_is_read_anew(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS, "INSERT INTO orders (id) VALUES (1), (2)"])
        capture_once(server, log, "orders")
        shop.run(
            "CREATE TABLE orders_new (id int PRIMARY KEY, v varchar(30), n int)",
            "INSERT INTO orders_new (id) VALUES (2), (3)",
            "RENAME TABLE orders TO orders_old, orders_new TO orders",
            "INSERT INTO orders (id) VALUES (4)",
        )
    capture_once(server, log, "orders")
    assert_same_as_the_source(server, log, "orders")
    assert sorted(fold(log, topic("shop.orders"))) == [b'{"id":%d}' % n for n in (2, 3, 4)]


def test_partitions_that_come_and_go_are_seen(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        partitions = "PARTITION BY RANGE (id) (PARTITION a VALUES LESS THAN (10), PARTITION b VALUES LESS THAN (20))"
        fresh_database(shop, [f"{ORDERS} {partitions}", "INSERT INTO orders (id) VALUES (1), (11)"])
        capture_once(server, log, "orders")
        shop.run(ORDERS.replace("orders", "spare"), "INSERT INTO spare (id) VALUES (5)")
        for statement in (
            "ALTER TABLE orders EXCHANGE PARTITION a WITH TABLE spare",
            "ALTER TABLE orders TRUNCATE PARTITION b",
            "ALTER TABLE orders DROP PARTITION a",
        ):
            shop.run(statement, "REPLACE INTO orders (id) VALUES (15)")
            capture_once(server, log, "orders")
            assert_same_as_the_source(server, log, "orders")


def schema_versions(log: Log) -> list[dict[str, Any]]:
    return [json.loads(record.value or b"") for record in log[("capture.shop.schemas", 0)]]


def test_columns_that_are_added_dropped_renamed_and_retyped_under_load(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS, "INSERT INTO orders SELECT seq, 'x', 0 FROM seq_0_to_399"])

        def work(other: Shop, rng: random.Random) -> None:
            key = rng.randrange(400)
            other.run(f"UPDATE orders SET n = n + 1 WHERE id = {key}", f"REPLACE INTO orders (id) VALUES ({key})")

        with capturing(server, log, "orders"), writers(server, 2, work, rounds=300):
            for statement in (
                "ADD COLUMN w int, ALGORITHM = INSTANT",
                "ADD COLUMN first_now varchar(5) DEFAULT 'é' FIRST",
                "CHANGE v note varchar(20)",
                "MODIFY note text",
                "DROP COLUMN w",
                "MODIFY n bigint",
                "ADD COLUMN u uuid DEFAULT '123e4567-e89b-12d3-a456-426614174000'",
            ):
                shop.run(f"ALTER TABLE orders {statement}")
                time.sleep(0.05)
    capture_once(server, log, "orders")
    assert_same_as_the_source(server, log, "orders")
    versions = schema_versions(log)
    assert [column["name"] for column in versions[-1]["columns"]] == ["first_now", "id", "note", "n", "u"]
    assert versions[-1]["columns"][-1]["type"] == "uuid"
    by_version = {version["version"]: {c["name"] for c in version["columns"]} for version in versions}
    for _, _, change in changes(log, topic("shop.orders")):
        if change["op"] in "cur":
            assert set(change["after"]) == by_version[change["source"]["headwater"]["schema"]]


def test_an_altered_table_is_known_without_a_row_of_it(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS])
        capture_once(server, log, "orders")
        with capturing(server, log, "orders"):
            time.sleep(0.3)
            shop.run("ALTER TABLE orders ADD COLUMN w uuid")
            wait_for("new schema", lambda: len(schema_versions(log)) > 1 or None, within_s=PATIENCE_S, every_s=0.02)
        place = schema_versions(log)[1]["position"]["commit"]
        shop.run("INSERT INTO orders (id, w) VALUES (1, uuid())")
    capture_once(server, log, "orders")
    assert schema_versions(log)[1]["changed"] == ["added column w uuid"]
    (change,) = [c for _, _, c in changes(log, topic("shop.orders"))]
    assert change["source"]["headwater"]["schema"] == 2
    assert place <= change["source"]["headwater"]["commit"]


def test_what_happened_while_it_was_stopped_is_recorded_in_its_order(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS])
        capture_once(server, log, "orders")
        before = {at: list(kept) for at, kept in log.items()}
        for number, statement in enumerate(("ADD w int", "MODIFY w bigint", "DROP w")):
            shop.run(f"ALTER TABLE orders {statement}", f"INSERT INTO orders (id) VALUES ({number})")
        shop.run("ALTER TABLE orders ADD y int")
    for crashed in (False, True):
        with capturing(server, log, "orders"):
            wait_for("the last look", lambda: len(schema_versions(log)) == 5 or None, within_s=PATIENCE_S)
            wait_for("rows", lambda: len(fold(log, topic("shop.orders"))) == 3 or None, within_s=PATIENCE_S)
        assert [version["changed"] for version in schema_versions(log)] == [
            ["first seen"],
            ["added column w int"],
            ["column w from int to bigint"],
            ["dropped column w"],
            ["added column y int"],
        ]
        inserted = sorted(
            (change["source"]["headwater"]["commit"], change["source"]["headwater"]["schema"], "w" in change["after"])
            for _, _, change in changes(log, topic("shop.orders"))
            if change["op"] == "c"  # the second time the rows are read again too: w is no new name then
        )
        assert [found[1:] for found in inserted] == [(2, True), (3, True), (4, False)]
        if not crashed:  # all but the versions is lost, and comes again
            kept = "capture.shop.schemas", 0
            log.update({at: [] for at in log if at != kept} | {**before, kept: log[kept]})


def test_a_look_that_was_not_learnt_before_it_was_killed_is_learnt_then(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS])
        capture_once(server, log, "orders")
        shop.run("ALTER TABLE orders ADD w int")
    with monkeypatch.context() as patched:
        patched.setattr(Looks, "learn", lambda *_: iter(()))
        capture_once(server, log, "orders")
    assert len(schema_versions(log)) == 1
    for _ in range(2):
        with capturing(server, log, "orders"):
            wait_for("its look", lambda: len(schema_versions(log)) == 2 or None, within_s=PATIENCE_S)
    assert schema_versions(log)[1]["changed"] == ["added column w int"]


def test_what_is_streamed_again_adds_no_versions(server: Server) -> None:
    """Of a table that is gone by then, and of columns that were renamed."""
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS, ORDERS.replace("orders", "gone")])
        capture_once(server, log, "orders", "gone")
        before = {at: list(kept) for at, kept in log.items()}
        for table in ("orders", "gone"):
            shop.run(f"INSERT INTO {table} (id) VALUES (1)", f"ALTER TABLE {table} RENAME COLUMN v TO w")
            shop.run(f"INSERT INTO {table} (id) VALUES (2)", f"ALTER TABLE {table} ADD v int")
            shop.run(f"INSERT INTO {table} (id) VALUES (3)")
        capture_once(server, log, "orders", "gone")
        recorded = len(schema_versions(log))
        told = [version["changed"] for version in schema_versions(log) if version["table"] == "orders"]
        assert told == [["first seen"], ["renamed column v to w"], ["added column v int"]]
        assert recorded == 6
        shop.run("DROP TABLE gone")
        kept = "capture.shop.schemas", 0
        for _ in range(2):
            log.update({at: [] for at in log if at != kept} | {**before, kept: log[kept]})
            before = {at: list(found) for at, found in before.items()}
            capture_once(server, log, "orders", "gone")
            assert len(schema_versions(log)) == recorded
        log.update({at: [] for at in log if at != kept} | {**before, kept: log[kept]})
        shop.run("ALTER TABLE orders ADD z int", "INSERT INTO orders (id) VALUES (4)")
    capture_once(server, log, "orders", "gone")
    assert schema_versions(log)[-1]["changed"] == ["added column z int"]


def test_a_renamed_column_is_told_from_a_dropped_and_an_added_one(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, ["CREATE TABLE orders (id int PRIMARY KEY, v varchar(9), n int)"])
        capture_once(server, log, "orders")
        with capturing(server, log, "orders") as running:
            wait_for("a connection", lambda: running.connected or None, within_s=PATIENCE_S, every_s=0.02)
            for number, altered in enumerate(
                (
                    "CHANGE N Amount int",
                    "RENAME COLUMN v TO w, ADD v int",
                    "CHANGE w amount text, CHANGE amount w int",
                    "DROP amount, ADD x text",
                )
            ):
                shop.run(f"ALTER TABLE orders {altered}", f"INSERT INTO orders (id) VALUES ({number})")
                known = number + 2
                wait_for("its version", lambda: len(schema_versions(log)) == known or None, within_s=PATIENCE_S)  # noqa: B023
    assert [version["changed"] for version in schema_versions(log)] == [
        ["first seen"],
        ["renamed column n to Amount"],
        ["renamed column v to w", "added column v int"],
        ["renamed column w to amount", "column amount from varchar(9) to text", "renamed column Amount to w"],
        ["dropped column amount", "added column x text"],
    ]


def test_a_changed_primary_key_is_followed(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(shop, [ORDERS, "INSERT INTO orders SELECT seq, seq, seq FROM seq_1_to_20"])
        capture_once(server, log, "orders")
        shop.run(
            "ALTER TABLE orders DROP PRIMARY KEY, ADD PRIMARY KEY (v, id)", "UPDATE orders SET n = -1 WHERE id = 7"
        )
    capture_once(server, log, "orders")
    assert schema_versions(log)[-1]["key"] == ["v", "id"]
    assert fold(log, topic("shop.orders"))[b'{"v":"7","id":7}']["n"] == -1


ALTERATIONS = {
    "added": "ALTER TABLE t ADD COLUMN w int, ALGORITHM = INSTANT",
    "added_with_default": "ALTER TABLE t ADD w int NOT NULL DEFAULT 7 AFTER id",
    "added_with_former_default": "ALTER TABLE t ADD w varchar(9) DEFAULT 'a,b'; ALTER TABLE t ALTER w SET DEFAULT 1",
    "added_not_null": "ALTER TABLE t ADD (w int NOT NULL, x text)",
    "added_with_values": "ALTER TABLE t ADD IF NOT EXISTS w uuid DEFAULT uuid()",
    "added_and_numbered": "ALTER TABLE t ADD w int AUTO_INCREMENT UNIQUE",
    "generated": "ALTER TABLE t ADD w int AS (id * 2) STORED",
    "generated_when_read": "ALTER TABLE t ADD w int GENERATED ALWAYS AS (id * 2) VIRTUAL",
    "dropped": "ALTER TABLE t DROP COLUMN v",
    "dropped_and_added": "ALTER TABLE t DROP v; ALTER TABLE t ADD v varchar(20)",
    "renamed": "ALTER TABLE t RENAME COLUMN v TO w",
    "swapped": "ALTER TABLE t CHANGE v w varchar(20), CHANGE n v int",
    "retyped": "ALTER TABLE t MODIFY n varchar(12)",
    "rounded": "ALTER TABLE t ADD d decimal(9,4) DEFAULT 1.5555; ALTER TABLE t MODIFY d decimal(9,1)",
    "widened": "ALTER TABLE t MODIFY n bigint(30) DEFAULT 3, CHANGE COLUMN v v varchar(200) COMMENT 'not null'",
    "retyped_key": "ALTER TABLE t MODIFY id varchar(12)",
    "renamed_key": "ALTER TABLE t RENAME COLUMN id TO k",
    "another_key": "ALTER TABLE t DROP PRIMARY KEY, ADD PRIMARY KEY (v, id)",
    "indexed": "ALTER TABLE t ADD INDEX (n), ADD CONSTRAINT c CHECK (id > 0), ENGINE = InnoDB",
}
TOLD_BY_THE_STREAM = {"added", "dropped", "widened", "indexed"}


def is_as_in(shop: Shop, log: Log, table: str) -> bool:
    """Rows by key, with the columns that the table has; one that a row of the log lacks is null."""
    columns = [name for name, *_ in shop.run(f"SHOW COLUMNS FROM {table}")]
    found = [[row.get(name) for name in columns] for row in fold(log, topic(f"shop.{table}")).values()]
    wanted = [list(row) for row in shop.run(f"SELECT * FROM {table}")]
    return sorted(map(_text, found)) == sorted(map(_text, wanted))


def _text(row: list[Any]) -> str:
    return json.dumps(row, default=str)


@pytest.mark.parametrize("when", ["while it streams", "while it is stopped"])
def test_rows_have_the_values_that_ddl_gave_them(server: Server, when: str) -> None:
    log: Log = {}
    said: list[str] = []
    with Shop(server) as shop:
        tables = [statement for table in ALTERATIONS for statement in _make(table)]
        fresh_database(shop, tables)
        capture_once(server, log, *ALTERATIONS)

        def alter() -> None:
            for table, statements in ALTERATIONS.items():
                shop.run(*(re.sub(r"TABLE t\b", f"TABLE {table}", one.strip()) for one in statements.split(";")))

        def differing() -> list[str]:
            return [table for table in ALTERATIONS if not is_as_in(shop, log, table)]

        def same() -> None:
            wait_for("the same rows", lambda: not differing() or None, within_s=PATIENCE_S, every_s=0.1)

        if when == "while it is stopped":
            alter()
        with capturing(server, log, *ALTERATIONS, said=said):
            if when == "while it streams":
                shop.run("INSERT INTO added VALUES (1000, 'begun', 1)")
                same()
                alter()
            same()
            shop.run(*(f"DELETE FROM {table} LIMIT 1" for table in ALTERATIONS))
            same()
    read = {name for name in ALTERATIONS if f"snapshot of shop.{name} begins" in said}
    if when == "while it streams":
        assert read == ALTERATIONS.keys() - TOLD_BY_THE_STREAM


def _make(table: str) -> tuple[str, str]:
    return (
        f"CREATE TABLE {table} (id int PRIMARY KEY, v varchar(20) NOT NULL, n int DEFAULT 0)",
        f"INSERT INTO {table} SELECT seq, concat('v', seq), seq * 3 FROM seq_1_to_300",
    )
