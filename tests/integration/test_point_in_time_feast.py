"""Our stores as standard Feast plug-ins: whatever calls Feast gets the same exact answers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from point_in_time_oracle import PROJECT

from catalog.keys import Key
from catalog.load import CatalogError, load_catalog
from catalog.settings import Settings, load_settings
from lake import Lake
from ml.features import (
    EntityRowsError,
    OnlineReader,
    UnknownServiceError,
    UnsupportedSourceError,
    compile_plan,
    historical,
    online,
    open_feature_store,
)

START = datetime(2024, 1, 1)
NOW = START + timedelta(days=9)
DAY = timedelta(days=1)


def activity() -> pa.Table:
    """Customer 1: an event on day 0 that leaves the week's window on day 7; customer 2: an event that landed late."""
    rows = [(1, 0, 0, 1, 5.0), (1, 0, 7, 0, 0.0), (2, 1, 4, 1, 8.0)]
    counts = ("txn_count_7d", "txn_count_30d", "txn_count_90d", "txn_count_365d", "distinct_products_90d")
    sums = ("txn_amount_sum_7d", "txn_amount_sum_30d", "txn_amount_sum_90d", "txn_amount_sum_365d")
    rates = ("avg_txn_amount_30d", "refund_rate_90d")
    # A fraction of a second, because Feast's own values keep whole seconds only.
    seen = pa.array([START + r[1] * DAY + timedelta(microseconds=250) for r in rows], pa.timestamp("us"))
    return pa.table(
        {
            "customer_id": pa.array([r[0] for r in rows], pa.int64()),
            "event_timestamp": seen,
            "created_timestamp": pa.array([START + r[2] * DAY + timedelta(microseconds=250) for r in rows]),
            **{name: pa.array([r[3] for r in rows], pa.int64()) for name in counts},
            **{name: pa.array([r[4] for r in rows], pa.float64()) for name in (*sums, *rates)},
            "last_txn_at": seen,
            "first_txn_at": seen,
        }
    )


def profile() -> pa.Table:
    stamps = pa.array([START, START + 2 * DAY], pa.timestamp("us"))
    return pa.table(
        {
            "customer_id": pa.array([1, 1], pa.int64()),
            "country": ["France", "Eire"],
            "registered_at": pa.array([START, START], pa.timestamp("us")),
            "event_timestamp": stamps,
            "created_timestamp": stamps,
        }
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = load_settings({"HEADWATER_HOME": str(tmp_path / "home"), "HEADWATER_NOW": NOW.isoformat()})
    lake = Lake(settings.lake_dir)
    lake.overwrite(Key("features", "customer", "activity"), activity())
    lake.overwrite(Key("features", "customer", "profile"), profile())
    return settings


@pytest.fixture
def store(settings: Settings) -> Any:
    return open_feature_store(settings, load_catalog(settings.catalog))


ASKED = [(1, 1.0), (1, 7.0), (1, 8.0), (2, 3.0), (2, 4.5), (1, 1.0), (9, 5.0)]


def entity_df(zone: str | None = None) -> pd.DataFrame:
    stamps = pd.to_datetime([START + days * DAY for _, days in ASKED])
    stamps = stamps.tz_localize("UTC").tz_convert(zone) if zone else stamps
    return pd.DataFrame({"customer_id": [c for c, _ in ASKED], "event_timestamp": stamps, "note": range(len(ASKED))})


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Kathmandu"])
def test_historical_features_through_feast_are_those_of_the_arrow_path(store: Any, zone: str | None) -> None:
    service = store.get_feature_service("churn")
    found = store.get_historical_features(entity_df=entity_df(zone), features=service).to_df()
    entities = pa.table(
        {
            "customer_id": pa.array([c for c, _ in ASKED], pa.int64()),
            "event_timestamp": pa.array([START + days * DAY for _, days in ASKED], pa.timestamp("us")),
        }
    )
    ours = historical(store, "churn", entities)
    assert found["note"].tolist() == list(range(len(ASKED)))
    for name in ours.column_names[2:]:
        values = found[name].astype(object).where(found[name].notna(), None).tolist()
        assert values == ours.column(name).to_pylist(), name
    assert ours.column("txn_count_7d").to_pylist() == [1, 1, 0, None, 1, 1, None]
    assert ours.column("days_since_last_txn").to_pylist()[2] == 8 - 250 / 86_400e6
    assert ours.column("country").to_pylist() == ["France", "Eire", "Eire", None, None, "France", None]


def test_text_instants_sql_entities_and_full_names(store: Any, tmp_path: Path) -> None:
    refs = ["activity:txn_count_7d", "activity:days_since_last_txn", "profile:country"]
    frame = entity_df().assign(event_timestamp=lambda df: df["event_timestamp"].astype(str))
    by_text = store.get_historical_features(entity_df=frame, features=refs, full_feature_names=True).to_df()
    assert by_text["activity__txn_count_7d"].fillna(-1).tolist() == [1, 1, 0, -1, 1, 1, -1]
    assert by_text["profile__country"][0] == "France"
    pq.write_table(pa.Table.from_pandas(entity_df()), tmp_path / "entities.parquet")
    query = f"SELECT customer_id, event_timestamp FROM '{tmp_path / 'entities.parquet'}'"
    by_query = store.get_historical_features(entity_df=query, features=refs).to_arrow()
    assert by_query.column("txn_count_7d").to_pylist() == [1, 1, 0, None, 1, 1, None]


def test_feast_materialize_keeps_every_change_point(store: Any, settings: Settings) -> None:
    """Feast's own engine would keep the latest row only, and be wrong before and after it."""
    store.materialize(START - DAY, NOW)
    plan = compile_plan(store, "churn")
    reader = OnlineReader(settings.online_path)
    for days in (0.5, 1, 3, 4.5, 7, 7.5, 8, 20, 399, 401):
        now = START + days * DAY
        entities = pa.table({"customer_id": [1, 2, 9], "event_timestamp": pa.array([now] * 3, pa.timestamp("us"))})
        offline = historical(store, "churn", entities).drop_columns(["event_timestamp"])
        assert online(reader, plan, [1, 2, 9], now).equals(offline), days
    reader.close()


def test_online_features_through_feast_are_as_of_the_clock(store: Any, settings: Settings) -> None:
    store.materialize(START - DAY, NOW)
    service = store.get_feature_service("churn")
    rows = [{"customer_id": 1}, {"customer_id": 2}, {"customer_id": 9}]
    found = store.get_online_features(features=service, entity_rows=rows).to_dict()
    assert found["txn_count_7d"] == [0, 1, None]
    assert found["days_since_last_txn"] == [9 - 250 / 86_400e6, 8 - 250 / 86_400e6, None]
    assert found["country"] == ["Eire", None, None]
    earlier = open_feature_store(replace(settings, now=START + DAY), load_catalog(settings.catalog))
    found = earlier.get_online_features(features=service, entity_rows=rows).to_dict()
    assert found["txn_count_7d"] == [1, None, None]
    assert found["country"] == ["France", None, None]


def test_a_row_pushed_through_feast_is_merged(store: Any) -> None:
    store.materialize(START - DAY, NOW)
    pushed = profile().slice(1, 1).to_pandas().assign(country="Spain", event_timestamp=NOW, created_timestamp=NOW)
    pushed["days_since_registered"] = None  # Feast wants every field; what is computed when read is ignored
    store.write_to_online_store("profile", pushed)
    found = store.get_online_features(features=["profile:country"], entity_rows=[{"customer_id": 1}]).to_dict()
    assert found["country"] == ["Spain"]


# Feast warns on every use of an on-demand view that they are experimental.
@pytest.mark.filterwarnings("ignore:On demand feature view is an experimental feature:RuntimeWarning")
def test_on_demand_views_are_computed_by_feast(store: Any) -> None:
    from feast import Field
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Float64

    view = store.get_feature_view("activity")

    def doubled(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"doubled": inputs["txn_amount_sum_7d"] * 2})

    twice = on_demand_feature_view(sources=[view], schema=[Field(name="doubled", dtype=Float64)], mode="pandas")(
        doubled
    )
    store.apply([twice])
    found = store.get_historical_features(entity_df=entity_df(), features=["doubled:doubled"]).to_df()
    assert found["doubled"].fillna(-1).tolist() == [10.0, 10.0, 0.0, -1.0, 16.0, 10.0, -1.0]


def test_a_plain_parquet_source_with_other_names_works(tmp_path: Path, store: Any) -> None:
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Int64

    frame = pd.DataFrame({"driver": [1, 1], "at": pd.to_datetime(["2024-01-01", "2024-01-03"], utc=True), "n": [1, 2]})
    frame.to_parquet(tmp_path / "trips.parquet")
    driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)
    source = FileSource(path=str(tmp_path / "trips.parquet"), timestamp_field="at", field_mapping={"n": "trips"})
    fields = [Field(name="driver", dtype=Int64), Field(name="trips", dtype=Int64)]
    store.apply([driver, FeatureView(name="trips", entities=[driver], ttl=DAY, source=source, schema=fields)])
    asked = pd.DataFrame(
        {"driver": [1] * 4, "event_timestamp": pd.to_datetime([START + d * DAY for d in (1, 2, 3, -1)])}
    )
    found = store.get_historical_features(entity_df=asked, features=["trips:trips"]).to_df()
    assert found["trips"].fillna(-1).tolist() == [1, 2, 2, -1]


def test_the_applied_definitions_follow_the_catalog(settings: Settings) -> None:
    catalog = load_catalog(settings.catalog)
    first = open_feature_store(settings, catalog)
    assert {s.name for s in first.list_feature_services()} == {m.name for m in catalog.models}
    fewer = open_feature_store(settings, replace(catalog, models=catalog.models[:1]))
    assert [s.name for s in fewer.list_feature_services()] == [catalog.models[0].name]


def test_definitions_that_did_not_change_are_not_applied_again(settings: Settings) -> None:
    catalog, registry = load_catalog(settings.catalog), settings.feast_registry_path
    open_feature_store(settings, catalog)
    applied = registry.read_bytes()
    open_feature_store(settings, catalog)
    assert registry.read_bytes() == applied


def test_an_unknown_feature_is_refused_with_what_is_allowed(settings: Settings) -> None:
    catalog = load_catalog(settings.catalog)
    spoilt = catalog.models[0].model_copy(update={"features": ("activity:txn_count_8d", "activity:last_txn_at")})
    with pytest.raises(CatalogError) as refused:
        open_feature_store(settings, replace(catalog, models=(spoilt,)))
    assert len(refused.value.problems) == 2
    assert "found 'activity:txn_count_8d', allowed is one of activity:avg_txn_amount_30d" in refused.value.problems[0]
    assert "activity:txn_count_7d" in str(refused.value)


def test_what_is_missing_is_named(store: Any, settings: Settings) -> None:
    with pytest.raises(UnknownServiceError, match="no feature service 'chrun'; there are: churn"):
        compile_plan(store, "chrun")
    with pytest.raises(EntityRowsError, match="entity rows lack event_timestamp"):
        historical(store, "churn", pa.table({"customer_id": [1]}))
    empty = replace(settings, home=settings.home / "other")
    with pytest.raises(UnsupportedSourceError, match="not a Delta table"):
        historical(
            open_feature_store(empty, load_catalog(empty.catalog)),
            "churn",
            pa.table({"customer_id": [1], "event_timestamp": pa.array([NOW], pa.timestamp("us"))}),
        )


def test_the_feast_command_reads_the_repository(settings: Settings) -> None:
    environment = {**os.environ, "HEADWATER_HOME": str(settings.home), "HEADWATER_NOW": NOW.isoformat()}
    command = [sys.executable, "-m", "feast.cli.cli", "-c", str(PROJECT / "feature_repo"), "apply"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    registry = settings.feast_registry_path.read_bytes()
    for name in ("activity", "profile", *(model.name for model in load_catalog(settings.catalog).models)):
        assert name.encode() in registry
