"""The same shop through the embedded replay, PostgreSQL and Kafka, MariaDB and Kafka: the same marts and features."""

from __future__ import annotations

from collections.abc import Mapping

import duckdb
import pytest
from homes import Home

SAME = ("staging", "marts", "features")
Hashes = Mapping[str, tuple[int, str]]


@pytest.mark.parametrize("route", ["postgresql_route", "mariadb_route"])
def test_every_table_downstream_of_raw_is_the_same(shop_run, postgresql_route, mariadb_route, route):
    home = {"postgresql_route": postgresql_route, "mariadb_route": mariadb_route}[route]
    assert hashes(home) == hashes(shop_run.home)


def test_one_row_that_differs_is_noticed(shop_run, postgresql_route, tmp_path):
    other = postgresql_route.copy(tmp_path / "home")
    key = next(key for key in other.tables if key.dotted == "marts.sales.purchase_lines")
    other.lake.overwrite(key, other.lake.read(key).slice(1))
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
