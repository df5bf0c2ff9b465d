"""Broken files and tables: a broken row is set aside, a broken table stops what is downstream and is named."""

from __future__ import annotations

import pytest
from homes import small_catalog, small_shop


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing_column", ["missing_column.parquet", "no column Quantity"]),
        ("empty", ["empty.parquet", "no lines"]),
        ("half_null", ["raw.shop.order_lines", "stock_code"]),
    ],
)
def test_a_broken_file_is_named_and_stops_everything_downstream(broken, name, words):
    home, run = broken[name].home, broken[name].run
    assert run.code == 1, run
    failed = run.out[run.out.index("What failed") :]
    assert all(word in failed for word in words), failed
    assert "Traceback" not in failed
    assert {table.partition(".")[0] for table in home.rows()} <= {"raw", "quarantine"}
    assert not (home.path / "mlflow.db").exists()
    assert home.summary["success"] is False
    assert {model["version"] for model in home.summary["models"].values()} == {None}


@pytest.mark.parametrize("name", ["missing_column", "half_null"])
def test_the_same_broken_file_stays_refused(broken, name):
    played = broken[name]
    assert played.rerun.code == 1, played.rerun
    failed = [run.out[run.out.index("What failed") :] for run in (played.run, played.rerun)]
    assert failed[0] == failed[1]


def test_half_a_table_is_in_quarantine_and_counts_as_a_failed_check(broken):
    home = broken["half_null"].home
    rows = home.rows()
    assert rows["quarantine.shop.order_lines"] == pytest.approx(rows["raw.shop.order_lines"], abs=2)
    assert home.summary["checks"]["failed"] > 0


def test_a_few_broken_rows_are_set_aside_with_their_reason(shop_run):
    given = small_shop().to_pylist()
    broken = {
        "stock_code": sum(row["StockCode"] is None for row in given),
        "quantity": sum(row["Quantity"] is None for row in given),
    }
    for column, count in broken.items():
        assert count > 0
        aside = f"SELECT count(*), count(value) FROM quarantine.shop.order_lines WHERE contains(reason, '{column}')"
        assert shop_run.home.sql(aside) == [(count, count)]
    rows = shop_run.home.rows()
    assert rows["quarantine.shop.order_lines"] == sum(broken.values())
    assert rows["raw.shop.order_lines"] == len(given) - sum(broken.values())


def test_a_mart_whose_gate_fails_stops_features_and_models(shop_run, tmp_path):
    """And a raw table whose gate fails, since nothing has landed in it, stops nothing that is not made of it."""
    catalog = small_catalog(tmp_path / "catalog")
    gate = catalog / "gates" / "marts_sales_purchase_lines.yaml"
    impossible = "{expect: expect_column_values_to_be_between, column: quantity, arguments: {min_value: 2}}"
    gate.write_text(f"{gate.read_text()}  - {impossible}\n")
    source = (catalog / "sources" / "products.yaml").read_text()
    (catalog / "sources" / "shelves.yaml").write_text(source.replace("table: products", "table: shelves"))
    home = shop_run.home.copy(tmp_path / "home").set(CATALOG=str(catalog))
    before = home.versions()
    done = home.headwater("run")
    assert done.code == 1, done
    failed = done.out[done.out.index("What failed") :]
    assert "marts/sales/purchase_lines" in failed
    assert "quantity" in failed
    assert "raw.shop.shelves has 0 rows" in failed
    made = {asset["key"].partition("/")[0] for asset in home.summary["assets"]}
    assert made == {"stream", "raw", "staging", "marts"}
    assert {key: version for key, version in home.versions().items() if "shelves" not in key} == before
