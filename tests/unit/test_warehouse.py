"""The warehouse file: raw tables in as views, built tables out as Delta, and who may have it open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from catalog.keys import Key
from catalog.load import load_catalog
from catalog.settings import CATALOG_DIR
from lake import Lake, MissingTableError
from lake.dbt_sources import SOURCES_PATH, main, sources_yaml
from lake.schema import HISTORY_COLUMNS, TableColumn, dbt_columns, source_columns
from lake.warehouse import (
    MissingRelationError,
    WarehouseBusyError,
    WarehouseError,
    dbt_args,
    dbt_environment,
    key_of_node,
    publish,
    refresh_sources,
    relation_types,
)

RAW = Key("raw", "shop", "orders")
MART = Key("marts", "sales", "orders")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture
def warehouse(tmp_path: Path) -> Path:
    return tmp_path / "home" / "warehouse.duckdb"


def build(warehouse: Path, sql: str) -> None:
    """What dbt would have left in the warehouse."""
    warehouse.parent.mkdir(exist_ok=True)
    with duckdb.connect(str(warehouse)) as db:
        db.execute("CREATE SCHEMA IF NOT EXISTS marts_sales")
        db.execute(f"CREATE OR REPLACE TABLE marts_sales.orders AS {sql}")


def test_sources_are_views_with_columns_and_follow_the_lake(lake: Lake, warehouse: Path) -> None:
    for n in (1, 2):
        lake.append(RAW, pa.table({"invoice_no": [str(n)], "landed": [n]}))
        refresh_sources(warehouse, lake, [RAW])
        with duckdb.connect(str(warehouse), read_only=True) as db:
            assert db.sql("SELECT count(*) FROM raw_shop.orders").fetchall() == [(n,)]
            described = db.sql("SELECT column_name FROM information_schema.columns WHERE table_name = 'orders'")
            assert described.fetchall() == [("invoice_no",), ("landed",)]


def test_an_empty_source_still_has_its_columns(lake: Lake, warehouse: Path) -> None:
    lake.append(RAW, pa.table({"invoice_no": pa.array([], pa.string()), "at": pa.array([], pa.timestamp("us"))}))
    refresh_sources(warehouse, lake, [RAW])
    with duckdb.connect(str(warehouse), read_only=True) as db:
        assert [str(t) for t in db.sql("SELECT * FROM raw_shop.orders").types] == ["VARCHAR", "TIMESTAMP"]


def test_a_source_that_never_landed_is_named(lake: Lake, warehouse: Path) -> None:
    with pytest.raises(MissingTableError, match=r"raw\.shop\.orders"):
        refresh_sources(warehouse, lake, [RAW])


@pytest.mark.parametrize(
    ("second", "changed"),
    [
        ("SELECT * FROM (VALUES (1, 'a'), (2, NULL), (2, NULL)) t(n, s)", False),
        ("SELECT * FROM (VALUES (2, NULL), (1, 'a'), (2, NULL)) t(n, s)", False),  # another order
        ("SELECT * FROM (VALUES (1, 'a'), (2, NULL)) t(n, s)", True),  # one of two equal rows gone
        ("SELECT * FROM (VALUES (1, NULL), (2, 'a'), (2, NULL)) t(n, s)", True),  # a value moved to another row
        ("SELECT n AS m, s FROM (VALUES (1, 'a'), (2, NULL), (2, NULL)) t(n, s)", True),  # a column renamed
        ("SELECT n::BIGINT AS n, s FROM (VALUES (1, 'a'), (2, NULL), (2, NULL)) t(n, s)", True),  # a type changed
        ("SELECT 1 AS n, 'a' AS s WHERE false", True),
    ],
)
def test_publish_writes_a_version_only_when_rows_changed(
    lake: Lake, warehouse: Path, second: str, changed: bool
) -> None:
    build(warehouse, "SELECT * FROM (VALUES (1, 'a'), (2, NULL), (2, NULL)) t(n, s)")
    first = publish(warehouse, lake, [MART])[MART]
    assert (first.rows, first.version, first.changed) == (3, 0, True)
    build(warehouse, second)
    again = publish(warehouse, lake, [MART])[MART]
    assert (again.changed, again.version) == (changed, int(changed))
    with duckdb.connect(str(warehouse), read_only=True) as db:
        expected = db.sql("SELECT * FROM marts_sales.orders ORDER BY ALL").fetchall()
    assert lake.connect().sql(f"SELECT * FROM {MART.dotted} ORDER BY ALL").fetchall() == expected
    assert again.rows == len(expected)


def test_publishing_what_was_never_built_is_refused(lake: Lake, warehouse: Path) -> None:
    with pytest.raises(MissingRelationError, match="run dbt first"):
        publish(warehouse, lake, [MART])
    build(warehouse, "SELECT 1 AS n")
    with pytest.raises(MissingRelationError, match=r"marts\.sales\.refunds"):
        publish(warehouse, lake, [Key("marts", "sales", "refunds")])


HOLDER = "import duckdb, sys; db = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"


def test_a_warehouse_held_by_another_process_is_a_retryable_error(lake: Lake, warehouse: Path) -> None:
    build(warehouse, "SELECT 1 AS n")
    lake.append(RAW, pa.table({"n": [1]}))
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(warehouse)], stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        for attempt in (lambda: publish(warehouse, lake, [MART]), lambda: refresh_sources(warehouse, lake, [RAW])):
            with pytest.raises(WarehouseBusyError, match="is open elsewhere, try again") as caught:
                attempt()
            assert caught.value.retryable
        holder.communicate()
    assert publish(warehouse, lake, [MART])[MART].rows == 1


def test_a_file_that_is_no_warehouse_is_named(lake: Lake, warehouse: Path) -> None:
    warehouse.parent.mkdir()
    warehouse.write_text("not a database, but long enough to look like one" * 100)
    with pytest.raises(WarehouseError, match="may be deleted") as caught:
        publish(warehouse, lake, [MART])
    assert not isinstance(caught.value, WarehouseBusyError)


def test_dbt_args() -> None:
    home = Path("/data")
    below = ["--target-path", "/data/dbt", "--log-path", "/data/dbt/logs"]
    assert dbt_args("parse", home=home) == ["parse", *below]
    assert dbt_args("build", ["path:models/staging", "path:models/marts"], home=home, variables={"b": 1, "a": "x"}) == [
        "build",
        *below,
        *("--select", "path:models/staging path:models/marts", "--indirect-selection", "buildable"),
        *("--vars", '{"a": "x", "b": 1}'),
    ]


def test_key_of_node() -> None:
    assert key_of_node({"schema": "marts_sales", "alias": "orders", "name": "marts_sales__orders"}) == MART
    assert key_of_node({"schema": "raw_shop", "name": "orders"}) == RAW
    with pytest.raises(ValueError, match="allowed is layer/subject/name"):
        key_of_node({"schema": "main", "name": "orders"})


def test_relation_types(warehouse: Path) -> None:
    build(warehouse, "SELECT 1::BIGINT AS n, 'a' AS s")
    assert relation_types(warehouse, [MART]) == {MART: {"n": "BIGINT", "s": "VARCHAR"}}


def test_dbt_environment_is_no_headwater_setting(warehouse: Path) -> None:
    assert dbt_environment(warehouse) == {"DBT_WAREHOUSE_PATH": str(warehouse)}


def test_dbt_sources_are_what_the_catalog_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = load_catalog(CATALOG_DIR).sources
    assert SOURCES_PATH.read_text() == sources_yaml(sources), "run `python -m lake.dbt_sources`"
    stale = tmp_path / "sources.yml"
    assert main(["--check"], stale) == 1
    assert "run `python -m lake.dbt_sources`" in capsys.readouterr().err
    assert main([], stale) == 0
    assert main(["--check"], stale) == 0


def test_declared_columns() -> None:
    orders = next(s for s in load_catalog(CATALOG_DIR).sources if s.table == "orders")
    columns = source_columns(orders)
    assert columns[0] == TableColumn("invoice_no", "VARCHAR", nullable=False)
    assert [c.name for c in columns[-len(HISTORY_COLUMNS) :]] == [c.name for c in HISTORY_COLUMNS]
    assert TableColumn("amount_gbp", "DOUBLE") in dbt_columns(MART)
    assert dbt_columns(Key("models", "churn", "training_set")) == ()
