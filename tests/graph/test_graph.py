"""The asset graph: its keys, that every asset says what it is and who owns it, and its lineage."""

from __future__ import annotations

import dagster as dg
import pytest

from catalog.load import load_catalog
from catalog.settings import load_settings
from definitions import build_defs

pytestmark = [
    # dagster-dbt's spec of a dbt table uses Dagster features that are still marked beta.
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
    pytest.mark.filterwarnings("ignore::dagster.PreviewWarning"),
]

KEYS = {
    "stream/shop/customers", "stream/shop/products", "stream/shop/orders", "stream/shop/order_lines",
    "raw/shop/customers", "raw/shop/products", "raw/shop/orders", "raw/shop/order_lines",
    "staging/shop/customers", "staging/shop/products", "staging/shop/orders", "staging/shop/order_lines",
    "staging/shop/order_line_versions",
    "marts/sales/orders", "marts/sales/customers", "marts/sales/purchase_lines", "marts/sales/refunds",
    "marts/sales/customer_daily", "marts/sales/customer_lines",
    "features/customer/activity", "features/customer/profile", "features/customer/online",
    *(
        f"{layer}/{model}/{name}"
        for model in ("churn", "clv")
        for layer, name in (
            ("models", "training_set"), ("models", "candidate"), ("models", "champion"), ("deployments", "endpoint"),
            ("predictions", "scores"), ("predictions", "served"), ("monitoring", "drift"),
        )
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> dg.AssetGraph:
    settings = load_settings({"HEADWATER_HOME": str(tmp_path_factory.mktemp("home"))})
    return build_defs(settings, load_catalog(settings.catalog)).resolve_asset_graph()


def upstream(graph: dg.AssetGraph, key: dg.AssetKey) -> set[str]:
    seen: set[dg.AssetKey] = set()
    todo = [key]
    while todo:
        for parent in graph.get(todo.pop()).parent_keys - seen:
            seen.add(parent)
            todo.append(parent)
    return {k.to_user_string() for k in seen}


def test_the_graph_has_exactly_these_assets(graph: dg.AssetGraph) -> None:
    assert {k.to_user_string() for k in graph.get_all_asset_keys()} == KEYS


def test_every_asset_has_a_description_and_an_owner_and_sits_in_its_group(graph: dg.AssetGraph) -> None:
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.owners, key
        assert node.group_name == f"{key.path[0]}_{key.path[1]}", key


@pytest.mark.parametrize("table", ["customers", "orders", "products", "order_lines"])
def test_lineage_runs_from_the_change_stream_to_the_raw_table(graph: dg.AssetGraph, table: str) -> None:
    assert f"stream/shop/{table}" in upstream(graph, dg.AssetKey(["raw", "shop", table]))


@pytest.mark.parametrize("leaf", ["predictions/churn/scores", "predictions/clv/scores", "monitoring/churn/drift"])
def test_lineage_runs_from_the_changed_row_to_what_is_predicted_and_watched(graph: dg.AssetGraph, leaf: str) -> None:
    found = upstream(graph, dg.AssetKey(leaf.split("/")))
    model = leaf.split("/")[1]
    assert {
        "stream/shop/order_lines", "raw/shop/order_lines", "raw/shop/customers", "staging/shop/order_line_versions",
        "features/customer/activity", f"models/{model}/champion", f"deployments/{model}/endpoint",
    } <= found  # fmt: skip


def test_every_raw_mart_and_feature_table_has_blocking_gates(graph: dg.AssetGraph) -> None:
    blocking = {(c.asset_key.to_user_string(), c.name) for c in graph.asset_check_keys if graph.get(c).blocking}
    for table in (k for k in KEYS if k.split("/")[0] in ("raw", "marts")):
        assert {(table, name) for name in ("schema", "volume", "contract", "keys", "freshness")} <= blocking, table
