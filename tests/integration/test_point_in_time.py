"""Features are exact at every instant: brute force against dbt's SQL and our stores, offline and online."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from point_in_time_oracle import (
    REAL_DATA,
    Oracle,
    activity_sql,
    build_activity,
    entity_rows,
    instants,
    mismatches,
    real_versions,
    synthetic_shop,
    versions_table,
)

from catalog.keys import Key
from catalog.load import load_catalog
from catalog.settings import Settings, load_settings
from lake import Lake
from ml.features import (
    FeaturePlan,
    OnlineReader,
    compile_plan,
    historical,
    materialize_online,
    online,
    online_views,
    open_feature_store,
)

pytestmark = [
    # Feast 0.67 warns about itself while it is imported and when a registry is made.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:feast.*"),
]

ACTIVITY = Key("features", "customer", "activity")
PROFILE = Key("features", "customer", "profile")


@dataclass
class Shop:
    """A shop whose features are in a lake, with the oracle over the same lines."""

    settings: Settings
    oracle: Oracle
    lines: pa.Table

    def open(self):  # type: ignore[no-untyped-def]
        return open_feature_store(self.settings, load_catalog(self.settings.catalog))

    @property
    def lake(self) -> Lake:
        return Lake(self.settings.lake_dir)

    def write(self, activity: pa.Table) -> None:
        self.lake.overwrite(ACTIVITY, activity)

    @property
    def last_event(self) -> datetime:
        return max(self.lines.column("invoiced_at").to_pylist())


def make_shop(home: Path, versions: list) -> Shop:  # type: ignore[type-arg]
    lines = versions_table(versions)
    shop = Shop(load_settings({"HEADWATER_HOME": str(home)}), Oracle(versions), lines)
    shop.write(build_activity(lines))
    profile = duckdb.sql(
        "SELECT customer_id, any_value(country) AS country, min(invoiced_at) AS registered_at, "
        "min(invoiced_at) AS event_timestamp, min(known_from) AS created_timestamp FROM lines GROUP BY customer_id"
    )
    shop.lake.overwrite(PROFILE, profile.to_arrow_table())
    return shop


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("synthetic"), synthetic_shop(seed=3))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    if not REAL_DATA.is_file():
        pytest.skip(f"{REAL_DATA} is not there: the folder `shared` beside the project has the real data")
    return make_shop(tmp_path_factory.mktemp("real"), real_versions())


def expect_offline(shop: Shop, count: int, seed: int) -> None:
    pairs = instants(shop.oracle, count, seed)
    found = historical(shop.open(), "churn", entity_rows(pairs))
    assert mismatches(shop.oracle, pairs, found) == []


def expect_online(shop: Shop, now: datetime) -> None:
    """Every customer, once from the file and once from memory, equals offline and the oracle."""
    store = shop.open()
    plan = compile_plan(store, "churn")
    customers = [*shop.oracle.customers, 999_999_999]
    pairs = [(customer, now) for customer in customers]
    offline = historical(store, "churn", entity_rows(pairs)).drop_columns(["event_timestamp"])
    reader = OnlineReader(shop.settings.online_path)
    assert online(reader, plan, customers, now).equals(offline)
    reader.preload()
    assert online(reader, plan, customers, now).equals(offline)
    assert mismatches(shop.oracle, pairs, offline) == []
    reader.close()


def test_offline_is_exact_on_a_shop_with_late_corrected_and_deleted_lines(synthetic: Shop) -> None:
    expect_offline(synthetic, 4_000, seed=11)


def test_offline_is_exact_on_the_real_file(real: Shop) -> None:
    expect_offline(real, 2_000, seed=5)


def test_every_feature_of_the_real_file_takes_many_values(real: Shop) -> None:
    """The comparison would be worth little if most answers were null or zero."""
    pairs = instants(real.oracle, 2_000, seed=5)
    found = historical(real.open(), "churn", entity_rows(pairs))
    for name in found.column_names[2:-1]:
        assert len(found.column(name).drop_null().unique()) > 3, name


@pytest.mark.parametrize("later", [timedelta(0), timedelta(days=7), timedelta(days=91, microseconds=1)])
def test_online_is_exact_now_and_later_without_a_new_materialisation(synthetic: Shop, later: timedelta) -> None:
    if not synthetic.settings.online_path.exists():
        materialize_online(synthetic.lake, synthetic.settings.online_path, online_views(synthetic.open()))
    expect_online(synthetic, synthetic.last_event + later)


@pytest.mark.parametrize("later", [timedelta(0), timedelta(days=7)])
def test_online_is_exact_for_every_customer_of_the_real_file(real: Shop, later: timedelta) -> None:
    if not real.settings.online_path.exists():
        written = materialize_online(real.lake, real.settings.online_path, online_views(real.open()))
        assert written > 90_000
    expect_online(real, real.last_event + later)


def without_expiries(activity: pa.Table) -> pa.Table:
    """Rows only where an event happened: what an as-of join on event rows would serve."""
    return duckdb.sql("SELECT * FROM activity WHERE created_timestamp = event_timestamp").to_arrow_table()


# Each is a mistake that people make; the oracle must see every one of them.
MISTAKES = {
    "expired windows are served": (without_expiries, None),
    "a late row is used before it landed": (None, ("greatest(invoiced_at, known_from)", "invoiced_at")),
    "the feature sees a day ahead": (
        None,
        ("greatest(invoiced_at, known_from)", "greatest(invoiced_at, known_from) - interval '1' day"),
    ),
    "a window is a microsecond too long": (
        None,
        ("invoiced_at + interval", "invoiced_at + interval '1' microsecond + interval"),
    ),
    "distinct invoices are counted by line": (None, ("entered_at > covered_to", "entered_at >= entered_at")),
    "deleted lines stay": (None, ("least(coalesce(known_to,", "least(coalesce(null,")),
    "refunds count as purchases": (
        None,
        ("is_purchase,\n        is_refund", "true as is_purchase,\n        is_refund"),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_oracle_catches(mistake: str, synthetic: Shop, tmp_path: Path) -> None:
    spoil, replaced = MISTAKES[mistake]
    sql = activity_sql()
    if replaced:
        assert replaced[0] in sql
        sql = sql.replace(*replaced)
    activity = build_activity(synthetic.lines, sql)
    shop = make_shop(tmp_path, synthetic_shop(seed=3))
    shop.write(spoil(activity) if spoil else activity)
    pairs = instants(shop.oracle, 1_500, seed=7)
    wrong = mismatches(shop.oracle, pairs, historical(shop.open(), "churn", entity_rows(pairs)))
    assert wrong


def test_the_plan_has_the_seven_features_of_the_churn_service(synthetic: Shop) -> None:
    plan = compile_plan(synthetic.open(), "churn")
    assert {
        "txn_count_7d",
        "txn_count_30d",
        "txn_amount_sum_7d",
        "avg_txn_amount_30d",
        "distinct_products_90d",
        "refund_rate_90d",
        "days_since_last_txn",
    } <= set(plan.names)
    assert plan.ttl_us["activity"] == 400 * 86_400 * 1_000_000
    assert FeaturePlan.from_json(plan.to_json()) == plan
