"""The same shop through the embedded replay, PostgreSQL and Kafka, MariaDB and Kafka: the same marts and features."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import duckdb
import orjson
import pytest
from homes import Home
from shop_databases import running
from stack_servers import started

SAME = ("staging", "marts", "features")
ROUTES = ("postgresql", "mariadb")
TABLES_ONLY = '+key:"features/*" or +key:"marts/*" or +key:"staging/*"'
Hashes = Mapping[str, tuple[int, int]]


@pytest.fixture(scope="module")
def routes(shop_run, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Home]:
    """Homes that were built from a database to which the shop was replayed, at the embedded replay's now."""
    now = orjson.loads((shop_run.home.path / "replay.json").read_bytes())["last_event_at"]

    def build(name: str) -> Home:
        at = tmp_path_factory.mktemp(name)
        with running(name, at / "database") as databases, started("kafka", at / "kafka") as broker:
            place, _, host = databases.new().rpartition("@")
            scheme, _, account = place.partition("://")
            user, _, password = account.partition(":")
            home = Home(at / "home", shop_run.home.settings).set(
                SHOP_URL=f"{scheme}://{user}@{host}", SHOP_PASSWORD=password, LOG_URL=broker.url, NOW=now
            )
            # The connector is there before the first order: a snapshot knows rows, but not since when they are known.
            replay = ("shop", "replay", "--url", home.settings["HEADWATER_SHOP_URL"])
            home.succeeds(*replay, "--until", "2017-01-01")
            home.succeeds("capture", "shop", "--once")
            home.succeeds(*replay)
            home.succeeds("run", "--select", TABLES_ONLY)
            if name == "postgresql":
                again = home.succeeds("run", "--select", TABLES_ONLY)
                assert "0 of them rebuilt" in again.out, again
        return home

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(ROUTES, pool.map(build, ROUTES), strict=True))


@pytest.mark.parametrize("name", ROUTES)
def test_every_table_downstream_of_raw_is_the_same(shop_run, routes, name):
    assert hashes(routes[name]) == hashes(shop_run.home)


@pytest.mark.parametrize("name", ROUTES)
def test_one_row_that_differs_is_noticed(shop_run, routes, name, tmp_path):
    other = routes[name].copy(tmp_path / "home")
    key = next(key for key in other.tables if key.dotted == "marts.sales.purchase_lines")
    table = other.lake.read(key)
    other.lake.overwrite(key, table.slice(1))
    assert {name for name, found in hashes(shop_run.home).items() if hashes(other)[name] != found} == {key.dotted}


def hashes(home: Home) -> Hashes:
    """Rows and a hash over them, in whatever order, of every table that follows from the shop alone."""
    with duckdb.connect() as db:
        return {
            key.dotted: db.sql(
                f"SELECT count(*), sum(hash(t)::HUGEINT)::VARCHAR FROM (SELECT * FROM {home.lake.scan_sql(key)}) t"
            ).fetchall()[0]
            for key in home.tables
            if key.layer in SAME and key.name != "online"
        }
