"""A small shop and the retail file for the model tests: purchase lines in a real lake, features by plain SQL.

The features are written here a second time, in DuckDB over raw lines, so that these tests depend on no feature store.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from catalog.keys import Key
from catalog.load import load_catalog
from catalog.spec import Model
from lake.tables import Lake
from ml.feature_plan import FeaturePlan, PlannedFeature, PlannedView
from ml.training import Retrieve

PROJECT = Path(__file__).resolve().parents[2]
RETAIL = PROJECT / ".." / "shared" / "data" / "online_retail.parquet"
PURCHASES = Key("marts", "sales", "purchase_lines")
RETAIL_NOW = datetime(2011, 12, 9, 12, 50)

TYPES = {
    "txn_count_7d": "int64",
    "txn_count_30d": "int64",
    "txn_amount_sum_7d": "float64",
    "avg_txn_amount_30d": "float64",
    "distinct_products_90d": "int64",
    "refund_rate_90d": "float64",
    "days_since_last_txn": "float64",
    "txn_count_90d": "int64",
    "txn_count_365d": "int64",
    "txn_amount_sum_30d": "float64",
    "txn_amount_sum_90d": "float64",
    "txn_amount_sum_365d": "float64",
    "days_since_first_txn": "float64",
    "country": "string",
}


@dataclass(frozen=True)
class Shop:
    """A lake with purchase lines, all lines (with refunds) for features, and the instant that is now."""

    lake: Lake
    lines: pa.Table
    now: datetime

    def retrieve(self, service: str, entities: pa.Table) -> pa.Table:
        return retrieval(self.lines)(service, entities)


def model_named(name: str, **changes: object) -> Model:
    """A declared model, with some fields changed."""
    model = load_catalog(PROJECT / "catalog").model(name)
    return Model.model_validate(model.model_dump() | changes)


def plan_for(model: Model) -> FeaturePlan:
    features = []
    for ref in model.features:
        view, _, name = ref.partition(":")
        features.append(PlannedFeature(name, view, TYPES[name], name))  # type: ignore[arg-type]  # a str, not the Literal
    views = tuple(PlannedView(v, None) for v in dict.fromkeys(f.view for f in features))
    return FeaturePlan(model.name, "customer_id", views, tuple(features))


def retrieval(lines: pa.Table) -> Retrieve:
    """Features of entity rows over lines known at all times, by a join on the customer: slow and plain."""

    def retrieve(service: str, entities: pa.Table) -> pa.Table:
        wanted = [ref.partition(":")[2] for ref in model_named(service).features]
        with duckdb.connect() as db:
            db.register("lines", lines)
            db.register("asked", entities)
            found = db.sql(_FEATURES).select(*wanted, "row_no").order("row_no").to_arrow_table()
        for name in wanted:
            entities = entities.append_column(name, found[name])
        return entities

    return retrieve


_FEATURES = """
WITH entity AS (
    SELECT customer_id, event_timestamp AS t, row_number() OVER () AS row_no FROM asked
), seen AS (
    SELECT row_no, t, l.* REPLACE (amount::DECIMAL(18, 4) AS amount)
    FROM entity JOIN lines AS l USING (customer_id) WHERE l.invoiced_at <= t
), found AS (
    SELECT row_no,
        count(DISTINCT invoice_no) FILTER (bought AND invoiced_at > t - INTERVAL 7 DAY) AS txn_count_7d,
        count(DISTINCT invoice_no) FILTER (bought AND invoiced_at > t - INTERVAL 30 DAY) AS txn_count_30d,
        count(DISTINCT invoice_no) FILTER (bought AND invoiced_at > t - INTERVAL 90 DAY) AS txn_count_90d,
        count(DISTINCT invoice_no) FILTER (bought AND invoiced_at > t - INTERVAL 365 DAY) AS txn_count_365d,
        coalesce(sum(amount) FILTER (bought AND invoiced_at > t - INTERVAL 7 DAY), 0)::DOUBLE AS txn_amount_sum_7d,
        coalesce(sum(amount) FILTER (bought AND invoiced_at > t - INTERVAL 30 DAY), 0)::DOUBLE AS txn_amount_sum_30d,
        coalesce(sum(amount) FILTER (bought AND invoiced_at > t - INTERVAL 90 DAY), 0)::DOUBLE AS txn_amount_sum_90d,
        coalesce(sum(amount) FILTER (bought AND invoiced_at > t - INTERVAL 365 DAY), 0)::DOUBLE AS txn_amount_sum_365d,
        count(DISTINCT stock_code) FILTER (bought AND invoiced_at > t - INTERVAL 90 DAY) AS distinct_products_90d,
        count(DISTINCT invoice_no) FILTER (refund AND invoiced_at > t - INTERVAL 90 DAY)
            / nullif(count(DISTINCT invoice_no) FILTER (invoiced_at > t - INTERVAL 90 DAY), 0) AS refund_rate_90d,
        epoch(any_value(t) - max(invoiced_at) FILTER (bought)) / 86400 AS days_since_last_txn,
        epoch(any_value(t) - min(invoiced_at) FILTER (bought)) / 86400 AS days_since_first_txn,
        arg_max(country, (invoiced_at, invoice_no)) AS country
    FROM seen GROUP BY row_no
)
SELECT e.row_no, f.* EXCLUDE (row_no), txn_amount_sum_30d / nullif(txn_count_30d, 0) AS avg_txn_amount_30d
FROM entity AS e LEFT JOIN found AS f USING (row_no)
"""


def write_shop(lake: Lake, lines: pa.Table, now: datetime) -> Shop:
    """Purchase lines into the lake; `lines` has every line, `bought` and `refund` say of which kind."""
    with duckdb.connect() as db:
        db.register("lines", lines)
        bought = db.sql(
            "SELECT * EXCLUDE (amount, bought, refund), amount::DOUBLE AS amount_gbp FROM lines WHERE bought"
        )
        lake.overwrite(PURCHASES, bought.to_arrow_table())
    return Shop(lake, lines, now)


def small_lines(customers: int = 800, days: int = 400, seed: int = 3) -> pa.Table:
    """Customers who buy at rates of their own and stop one day: what the past says about the future is learnable."""
    rng = np.random.default_rng(seed)
    start = datetime(2020, 1, 1)
    rows = []
    for customer in range(1, customers + 1):
        gap, spend = float(rng.lognormal(3.8, 1.0)) + 1, float(rng.lognormal(4, 1))
        day, stop = float(rng.uniform(0, days * 0.6)), float(rng.uniform(days * 0.4, days * 4))
        while day < min(days, stop):
            at = start + timedelta(minutes=int(day * 1440))
            refund = bool(rng.random() < 0.05)
            country = "United Kingdom" if customer % 5 else ("France" if customer % 2 else "Spain")
            amount = round(float(spend * rng.lognormal(0, 0.9)), 2)
            number = f"{'C' if refund else ''}{500000 + len(rows)}"
            rows.append((customer, number, f"S{rng.integers(50)}", country, at, amount, not refund, refund))
            day += float(rng.exponential(gap)) + 0.01
    names = ["customer_id", "invoice_no", "stock_code", "country", "invoiced_at", "amount", "bought", "refund"]
    columns = [pa.array(values) for values in zip(*rows, strict=True)]
    return pa.table(dict(zip(names, columns, strict=True)))


def small_shop(root: Path, **options: int) -> Shop:
    lines = small_lines(**options)
    return write_shop(Lake(root), lines, datetime(2020, 1, 1) + timedelta(days=options.get("days", 400), hours=9))


def retail_shop(root: Path) -> Shop:
    """The real file; skips when it is not beside the project."""
    if not RETAIL.exists():
        pytest.skip(f"the retail file is not at {RETAIL}")
    with duckdb.connect() as db:
        lines = db.sql(f"""
            SELECT CustomerID::BIGINT AS customer_id, InvoiceNo AS invoice_no, StockCode AS stock_code,
                   Country AS country, InvoiceDate::TIMESTAMP AS invoiced_at,
                   (UnitPrice::DECIMAL(12, 4) * Quantity)::DECIMAL(18, 4) AS amount,
                   InvoiceNo[1] NOT IN ('C', 'A') AND Quantity > 0 AND UnitPrice > 0 AS bought,
                   InvoiceNo[1] = 'C' AS refund
            FROM read_parquet('{RETAIL}') WHERE CustomerID IS NOT NULL""").to_arrow_table()
    return write_shop(Lake(root), lines, RETAIL_NOW)
