"""`kill -9` of the connector's process, and a large transaction: nothing lost, nothing twice, memory bounded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from memory_writer import changes, fold
from postgres_capture import SETTINGS, Database, same, wait_until
from postgres_process import Captured, peak_mb
from stack_servers import started

from headwater.stack.server import Server

_NUMBERS = itertools.count()
_TOPIC = "cdc.shop.t"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started("postgresql", tmp_path_factory.mktemp("postgresql"), settings=SETTINGS) as server:
        yield server


@pytest.fixture
def db(server: Server) -> Iterator[Database]:
    with Database(server, f"d{next(_NUMBERS)}") as database:
        database("CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, v text)")
        yield database


def _landed_once(captured: Captured) -> list[dict[str, Any]]:
    """The streamed changes that landing takes: none at or before the place that it has."""
    taken, last = [], (0, 0, 0)
    for _, _, change in changes(captured.log("t"), _TOPIC):
        here = change["source"]["headwater"]
        place = (here["epoch"], here["commit"], here["order"])
        if change["op"] != "r" and place > last:
            last = place
            taken.append(change)
    return taken


def test_kills_in_a_backlog_lose_nothing_and_show_nothing_twice(db: Database, tmp_path: Path) -> None:
    db("INSERT INTO t (id) SELECT generate_series(1, 100)")
    captured = Captured(db, tmp_path, ["t"])
    captured.once()
    there = captured.records("t")
    for _ in range(10):  # transactions of 2,000 changes, each row's n one more than before
        db("UPDATE t SET n = n + 1, v = repeat('x', 300); " * 20)
    killed = [captured.kill_at("t", there + records) for records in (1, 5_000, 10_000)]
    assert all(killed), "it was done before it could be killed"
    captured.once()
    taken = _landed_once(captured)
    seen: dict[int, list[int]] = {}
    for change in taken:
        seen.setdefault(change["after"]["id"], []).append(change["after"]["n"])
    assert seen == {row: list(range(1, 201)) for row in range(1, 101)}
    assert same(list(fold(captured.log("t"), _TOPIC).values()), db.rows("t"))


def test_kills_in_a_snapshot_lose_nothing(db: Database, tmp_path: Path) -> None:
    db("INSERT INTO t (id, v) SELECT i, repeat('x', 200) FROM generate_series(1, 30000) i")
    captured = Captured(db, tmp_path, ["t"])
    killed = []
    for round_, records in enumerate((1, 10_000)):
        killed.append(captured.kill_at("t", records))
        db(f"UPDATE t SET n = n + 1 WHERE id % 97 = {round_}; DELETE FROM t WHERE id % 89 = {round_}")
        db(f"INSERT INTO t (id) SELECT 100000 * {round_ + 1} + i FROM generate_series(1, 500) i")
    assert all(killed), "it was done before it could be killed"
    captured.once()
    assert same(list(fold(captured.log("t"), _TOPIC).values()), db.rows("t"))
    places = [(c["source"]["headwater"]["commit"], c["source"]["headwater"]["order"]) for c in _landed_once(captured)]
    assert len(places) == len(set(places)) >= 2 * 500


def test_a_transaction_of_any_size_takes_no_more_memory(db: Database, tmp_path: Path) -> None:
    captured = Captured(db, tmp_path, ["t"])
    process = captured.start()
    try:
        wait_until(lambda: "is complete" in captured.said, "it streams")
        before = peak_mb(process.pid)
        db("INSERT INTO t SELECT i, 0, repeat('x', 100) FROM generate_series(1, 300000) i")
        wait_until(lambda: captured.records("t") >= 300_000, "all of it is in the log", 120)
        after = peak_mb(process.pid)
    finally:
        process.terminate()
    assert process.wait(30) == 0, captured.said
    # The log is given 8 MiB at a time; held back until the commit the records would take more than 200 MB.
    assert after < before + 100, f"{before:.0f} MB before the transaction, {after:.0f} MB at most"
