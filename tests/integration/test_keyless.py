"""A table without key from a database into the lake: its history adds up to the rows that there are, equal ones too."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pytest
from mariadb_capture import RELAXED, Shop, address, fresh_database
from postgres_capture import SETTINGS, Database
from stack_servers import started

from catalog import keys
from catalog.spec import Column, Gate, Source
from lake.schema import DBT_PROJECT_DIR
from lake.tables import Lake, quoted
from streaming.capture import source
from streaming.capture.engine import Capture, Options
from streaming.landing import land
from streaming.mysql.source import MysqlSource
from streaming.postgres.source import PostgresSource
from streaming.sqlite_log import SqliteLog
from streaming.sqlite_writer import SqliteWriter

RAW = keys.raw("shop", "things")
THINGS = Source(
    system="shop",
    table="things",
    description="Things without a key.",
    owner="team:data",
    domain="sales",
    columns=(
        Column(name="n", type="int64", description="A number."),
        Column(name="v", type="string", description="A text."),
    ),
    keyless=True,
    gate=Gate(event_time="n", freshness_days=1.0),
)


@dataclass(frozen=True)
class Sold:
    """A database with the table: how to ask it, and a source of its changes."""

    execute: Callable[[str], list[Any]]
    source: Callable[[], source.Source]
    database: str


@contextmanager
def on_postgresql(directory: Path) -> Iterator[Sold]:
    with started("postgresql", directory, settings=SETTINGS) as server, Database(server, "shop") as db:
        db("CREATE TABLE things (n int, v text); ALTER TABLE things REPLICA IDENTITY FULL")
        yield Sold(db, lambda: PostgresSource("shop", db.address, ("public.things",)), "shop")


@contextmanager
def on_mariadb(directory: Path) -> Iterator[Sold]:
    with started("mariadb", directory, settings=RELAXED) as server, Shop(server) as shop:
        fresh_database(shop, ["CREATE TABLE things (n int, v varchar(9))"])
        yield Sold(shop.run, lambda: MysqlSource("shop", address(server), ("things",)), "")


def work(sold: Sold, rng: random.Random) -> None:
    """Rows come, several alike; some or all of the alike change or go."""
    for _ in range(40):
        n = rng.randrange(6)
        sold.execute(
            rng.choice(
                [
                    f"INSERT INTO things VALUES ({n}, 'a'), ({n}, 'a'), ({n}, NULL)",
                    f"UPDATE things SET v = 'b{rng.randrange(3)}' WHERE n = {n}",
                    "UPDATE things SET n = n + 1 WHERE n < 3",
                    f"DELETE FROM things WHERE n = {n} AND v = 'a'",
                ]
            )
        )


@pytest.mark.parametrize("database", [on_postgresql, on_mariadb], ids=["postgresql", "mariadb"])
def test_the_rows_of_a_table_without_key(tmp_path: Path, database: Callable[[Path], Any]) -> None:
    path, lake, rng = tmp_path / "log.db", Lake(tmp_path / "lake"), random.Random(3)

    def capture(**options: Any) -> None:
        running = Capture(
            sold.source(),
            lambda: SqliteWriter(path),
            Options(**options),
            topic=lambda _: "cdc.shop.things",
            database=sold.database,
            say=lambda _: None,
        )
        running.run(threading.Event(), once=True)

    with database(tmp_path / "server") as sold:
        for options in ({}, {}, {"resnapshot": ("things",)}, {}):
            work(sold, rng)
            capture(**options)
        rows = sold.execute("SELECT n, v FROM things")
    with SqliteLog(path) as log:
        assert land(THINGS, log, lake, 50).quarantined == 0
    macros = (DBT_PROJECT_DIR / "macros" / "changes.sql").read_text(encoding="utf-8")
    state = jinja2.Environment().from_string(macros + "{{ current_copies(history, ['n', 'v']) }}")
    found = lake.connect([RAW]).sql(state.render(history=quoted(RAW))).fetchall()
    assert sorted(map(str, found)) == sorted(str(tuple(row)) for row in rows)
    assert len(set(found)) < len(found)
