"""The simulated shop: its truth counted again from its lines, with SQL that knows nothing of how they were made."""

from __future__ import annotations

from datetime import datetime, timedelta

import duckdb
import pyarrow as pa
import pytest

from streaming.retail import LINE_SCHEMA
from streaming.simulator import GroundTruth, Simulation, simulate

PURCHASE = (
    "customer_id IS NOT NULL AND quantity > 0 AND unit_price_gbp > 0 "
    "AND invoice_no NOT LIKE 'C%' AND invoice_no NOT LIKE 'A%'"
)


@pytest.fixture(scope="module")
def shop() -> Simulation:
    return simulate(seed=3, lines=30_000)


def count(lines: pa.Table, what: str, where: str = "true") -> int:
    assert lines is not None
    return int(duckdb.sql(f"SELECT {what} FROM lines WHERE {where}").fetchall()[0][0])


def test_truth_is_what_the_lines_say(shop: Simulation) -> None:
    lines, truth = shop.lines, shop.truth
    assert lines.schema == LINE_SCHEMA
    assert truth == GroundTruth(
        seed=3,
        lines=lines.num_rows,
        customers=count(lines, "count(DISTINCT customer_id)"),
        purchase_lines=count(lines, "count(*)", PURCHASE),
        exact_duplicates=lines.num_rows - count(lines, "count(DISTINCT lines)"),
        late_lines=count(lines, "count(*)", "landed_at > invoiced_at"),
        refund_lines=count(lines, "count(*)", "invoice_no LIKE 'C%'"),
        adjustment_lines=count(lines, "count(*)", "invoice_no LIKE 'A%'"),
        unknown_customer_lines=count(lines, "count(*)", "customer_id IS NULL"),
        negative_quantity_lines=count(lines, "count(*)", "quantity < 0 AND invoice_no NOT LIKE 'C%'"),
        nonpositive_price_lines=count(lines, "count(*)", "unit_price_gbp <= 0"),
        first_event_at=duckdb.sql("SELECT min(invoiced_at) FROM lines").fetchall()[0][0],
        last_event_at=duckdb.sql("SELECT max(invoiced_at) FROM lines").fetchall()[0][0],
        drift_start=truth.drift_start,
        drift_features=truth.drift_features,
    )
    assert min(truth.exact_duplicates, truth.late_lines, truth.refund_lines, truth.adjustment_lines) > 0
    assert 0.9 < truth.lines / 30_000 < 1.1
    assert 0.2 < truth.unknown_customer_lines / truth.lines < 0.3


def test_lines_come_in_order_of_time_and_land_within_a_week_and_the_file(shop: Simulation) -> None:
    lines = shop.lines
    assert lines["invoiced_at"].to_pylist() == sorted(lines["invoiced_at"].to_pylist())
    delays = duckdb.sql("SELECT landed_at - invoiced_at, landed_at FROM lines WHERE landed_at IS NOT NULL").fetchall()
    assert all(timedelta(days=1) <= delay <= timedelta(days=6) for delay, _ in delays)
    assert max(landed for _, landed in delays) <= shop.truth.last_event_at


def test_refund_lines_return_no_more_than_was_bought(shop: Simulation) -> None:
    lines = shop.lines
    assert lines.num_rows
    beyond = duckdb.sql(
        """
        WITH net AS (
            SELECT customer_id, stock_code, sum(quantity) AS units FROM lines
            WHERE customer_id IS NOT NULL GROUP BY ALL)
        SELECT count(*) FROM net WHERE units < 0"""
    ).fetchall()[0][0]
    assert beyond == 0


def test_same_seed_same_lines_and_other_seeds_and_years_others(shop: Simulation) -> None:
    assert simulate(seed=3, lines=30_000).lines.equals(shop.lines)
    assert not simulate(seed=4, lines=30_000).lines.equals(shop.lines)
    elsewhere = simulate(seed=3, lines=30_000, start=datetime(1999, 2, 3)).lines
    assert elsewhere.drop_columns(["invoiced_at", "landed_at"]).equals(
        shop.lines.drop_columns(["invoiced_at", "landed_at"])
    )
    assert elsewhere["invoiced_at"][0].as_py().year == 1999


@pytest.mark.parametrize("lines", [1_000, 5_000, 60_000])
def test_customer_17850_always_shops(lines: int) -> None:
    shop = simulate(seed=11, lines=lines)
    assert count(shop.lines, "count(DISTINCT invoice_no)", "customer_id = 17850") >= 10


def test_drift_shows_in_its_features_and_only_when_planted() -> None:
    def means(drift: bool) -> tuple[float, float]:
        """Orders per day and GBP per order, after over before the planted start."""
        shop = simulate(seed=5, lines=60_000, drift=drift)
        lines, start = shop.lines, "2024-12-27"
        assert lines.num_rows
        assert shop.truth.drift_start == (datetime(2024, 12, 27) if drift else None)
        halves = duckdb.sql(
            f"""
            WITH orders AS (
                SELECT min(invoiced_at) >= '{start}' AS late, sum(quantity * unit_price_gbp) AS gbp FROM lines
                WHERE {PURCHASE} AND invoiced_at > TIMESTAMP '{start}' - INTERVAL 70 DAY GROUP BY invoice_no)
            SELECT late, count(*) / CASE WHEN late THEN 35 ELSE 70 END, avg(gbp)
            FROM orders GROUP BY late ORDER BY late"""
        ).fetchall()
        (_, orders_before, gbp_before), (_, orders_after, gbp_after) = halves
        return orders_after / orders_before, gbp_after / gbp_before

    orders, amount = means(drift=True)
    assert orders > 1.35
    assert 1.5 < amount < 2.1
    orders, amount = means(drift=False)
    assert orders < 1.2
    assert 0.8 < amount < 1.25
