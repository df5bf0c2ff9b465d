"""From raw changes through the real dbt project to features: still what brute force over the raw changes says."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from point_in_time_oracle import Oracle, Version, entity_rows, instants, mismatches, synthetic_shop

from catalog import keys
from catalog.keys import Key
from catalog.load import load_catalog
from catalog.settings import Settings, load_settings
from lake import Lake
from lake.schema import DBT_PROJECT_DIR, HISTORY_COLUMNS
from lake.warehouse import dbt_args, dbt_environment, publish, refresh_sources
from ml.features import historical, open_feature_store

Change = dict[str, Any]
ARROW = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us"),
}
# The customer moves from France to Eire on the 10th, which becomes known on the 12th.
MOVE_AT, MOVE_KNOWN = datetime(2021, 3, 10), datetime(2021, 3, 12)


def line_changes(versions: list[Version]) -> list[Change]:
    """Each version as the change that brought it; one that ends without a successor, as a delete too."""
    begun = {(v.invoice_no, v.line_no, v.known_from) for v in versions}
    changes = []
    for v in versions:
        row = {
            name: getattr(v, name)
            for name in (
                "invoice_no",
                "line_no",
                "customer_id",
                "stock_code",
                "quantity",
                "unit_price_gbp",
                "invoiced_at",
            )
        }
        changes.append({**row, "change_op": "c", "event_at": v.invoiced_at, "landed_at": v.known_from})
        if v.known_to and (v.invoice_no, v.line_no, v.known_to) not in begun:
            changes.append({**row, "change_op": "d", "event_at": v.known_to, "landed_at": v.known_to})
    return changes


def customer_changes(versions: list[Version]) -> list[Change]:
    first = min(v.invoiced_at for v in versions)
    changes = []
    for customer in sorted({v.customer_id for v in versions}):
        row = {"customer_id": customer, "country": "France", "registered_at": first, "updated_at": first}
        changes.append({**row, "change_op": "c", "event_at": first, "landed_at": first})
        moved = {**row, "country": "Eire", "updated_at": MOVE_AT}
        changes.append({**moved, "change_op": "u", "event_at": MOVE_AT, "landed_at": MOVE_KNOWN})
    return changes


def land(lake: Lake, table: str, changes: list[Change]) -> None:
    """Append the changes in the order in which they became known."""
    source = load_catalog(DBT_PROJECT_DIR.parent / "catalog").source(table)
    ordered = sorted(changes, key=lambda c: c["landed_at"])
    for offset, change in enumerate(ordered):
        change |= {"source_epoch": 1, "source_position": offset + 1, "source_order": 0}
        change |= {"tx_id": offset, "log_partition": 0, "log_offset": offset}
    columns = (*source.columns, *HISTORY_COLUMNS)
    lake.append(
        keys.raw("shop", table),
        pa.table({c.name: pa.array([row.get(c.name) for row in ordered], ARROW[c.type]) for c in columns}),
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Oracle]:
    """A shop with late, corrected and deleted lines, landed raw and built by dbt with all of its tests."""
    settings = load_settings({"HEADWATER_HOME": str(tmp_path_factory.mktemp("dbt"))})
    lake, versions = Lake(settings.lake_dir), synthetic_shop(seed=8, customers=12, lines=250)
    land(lake, "order_lines", line_changes(versions))
    land(lake, "customers", customer_changes(versions))
    land(lake, "orders", [])
    land(lake, "products", [])
    refresh_sources(
        settings.warehouse_path, lake, [keys.raw("shop", t) for t in ("order_lines", "customers", "orders")]
    )
    selection = ["+features_customer__activity", "+features_customer__profile"]
    done = subprocess.run(
        [sys.executable, "-m", "dbt.cli.main", *dbt_args("build", selection, home=settings.home)],
        cwd=DBT_PROJECT_DIR,
        env={**os.environ, **dbt_environment(settings.warehouse_path), "DBT_PROFILES_DIR": str(DBT_PROJECT_DIR)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    publish(settings.warehouse_path, lake, [Key("features", "customer", name) for name in ("activity", "profile")])
    return settings, Oracle(versions)


def test_features_from_raw_changes_are_exact(built: tuple[Settings, Oracle]) -> None:
    settings, oracle = built
    pairs = instants(oracle, 1_500, seed=2)
    store = open_feature_store(settings, load_catalog(settings.catalog))
    assert mismatches(oracle, pairs, historical(store, "churn", entity_rows(pairs))) == []


def test_the_country_is_the_one_known_at_the_time(built: tuple[Settings, Oracle]) -> None:
    settings, oracle = built
    customer, us = oracle.customers[0], timedelta(microseconds=1)
    asked = [datetime(2020, 1, 1), MOVE_AT - us, MOVE_AT, MOVE_KNOWN - us, MOVE_KNOWN]
    store = open_feature_store(settings, load_catalog(settings.catalog))
    found = historical(store, "churn", entity_rows([(customer, t) for t in asked]))
    assert found.column("country").to_pylist() == [None, "France", "France", "France", "Eire"]


def test_the_tables_have_the_declared_columns(built: tuple[Settings, Oracle]) -> None:
    from lake.schema import dbt_columns

    settings, _ = built
    for name in ("activity", "profile"):
        key = Key("features", "customer", name)
        declared = {column.name for column in dbt_columns(key)}
        assert set(Lake(settings.lake_dir).read(key).column_names) == declared
