"""`kill -9` of the MariaDB connector in a backlog: nothing is lost, and nothing is in the log twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from homes import Home, wait_for
from mariadb_capture import RELAXED, Shop, fresh_database
from memory_writer import Log, changes, fold, places
from stack_servers import started

from headwater.stack.server import Server
from streaming.log import TopicPartition
from streaming.shop_database.ddl import create_statements
from streaming.sqlite_log import SqliteLog
from streaming.sqlite_writer import SqliteWriter

TOPIC = "cdc.shop.customers"
ROWS = 6_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started("mariadb", tmp_path_factory.mktemp("mariadb") / "server", settings=RELAXED) as running:
        yield running


def a_backlog(shop: Shop) -> int:
    """Transactions of one row, of some, and of very many. Returns how many changes the log must have of them."""
    for key in range(300):
        shop.run(f"UPDATE customers SET country = 'a{key}' WHERE customer_id = {key}")
    shop.run(
        "UPDATE customers SET country = 'b'",
        f"DELETE FROM customers WHERE customer_id < {ROWS // 2}",
        "UPDATE customers SET customer_id = customer_id + 1000000",
        f"INSERT INTO customers SELECT seq, 'c', now(), now() FROM seq_1_to_{ROWS}",
    )
    return 300 + ROWS + ROWS // 2 + 2 * (ROWS // 2) + ROWS


def end(log: SqliteLog) -> int:
    return log.end(TopicPartition(TOPIC, 0)) if log.partitions(TOPIC) else 0


def in_the_log(home: Home) -> Log:
    writer = SqliteWriter(home.path / "log.db")
    try:
        return {(TOPIC, 0): list(writer.tails(TOPIC, 1_000_000)[0])}
    finally:
        writer.close()


def test_killed_in_a_snapshot_and_in_a_backlog_nothing_is_lost_and_nothing_is_there_twice(
    server: Server, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home").set(
        SHOP_URL=f"mysql://root@127.0.0.1:{server.port}/shop", SHOP_PASSWORD=server.password
    )
    rng = random.Random(7)
    home.path.mkdir()
    log = SqliteLog(home.path / "log.db")
    with Shop(server) as shop, closing(log):
        fresh_database(shop, [*create_statements("mariadb", replay=False)])
        shop.run(f"INSERT INTO customers SELECT seq, 'x', now(), now() FROM seq_0_to_{ROWS - 1}")

        def killed_after(records: int, at_most: int) -> None:
            """Start it, and kill it as soon as the log has so many more, or all that there are."""
            goal = min(end(log) + records, at_most)
            with home.started("headwater", "capture", "shop") as running:
                wait_for("such a log", lambda: end(log) >= goal or None, within_s=40, every_s=0.02)
                running.kill()

        killed_after(rng.randrange(1, ROWS), ROWS)
        home.succeeds("capture", "shop", "--once")
        snapshot = end(log)
        streamed = a_backlog(shop)
        for _ in range(3):
            killed_after(rng.randrange(1, streamed // 6), snapshot + streamed)
        home.succeeds("capture", "shop", "--once")
        source = dict(shop.run("SELECT customer_id, country FROM customers"))
        records = end(log) - snapshot
    kept = in_the_log(home)
    assert {row["customer_id"]: row["country"] for row in fold(kept, TOPIC).values()} == source
    found = [place for _, place in places(kept, TOPIC)]
    assert found == sorted(set(found))
    assert len(found) == streamed
    assert sum(change["op"] == "r" for _, _, change in changes(kept, TOPIC)) >= ROWS
    assert records == streamed + ROWS // 2 + ROWS // 2  # and a tombstone for each row that went
