"""Windows over a real lake: who bought when, as known then; a real year does not alarm, a doubled basket does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog import keys
from catalog.load import load_catalog
from catalog.settings import CATALOG_DIR
from catalog.spec import Drift, Model
from lake import Lake
from ml.drift import (
    NoReferenceError,
    build_windows,
    load_reference,
    monitor,
    read_status,
    reference_windows,
    windows_for,
)
from ml.drift_windows import LINES

RETAIL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "online_retail.parquet"
FEATURES = {
    "txn_count_7d": "count(DISTINCT invoice_no) FILTER (invoiced_at > t - INTERVAL 7 DAY)",
    "txn_amount_sum_7d": "coalesce(sum(amount_gbp) FILTER (invoiced_at > t - INTERVAL 7 DAY), 0)",
    "txn_count_365d": "count(DISTINCT invoice_no)",
    "days_since_first_txn": "epoch(t - min(invoiced_at)) / 86400",
}
LINES_SCHEMA = pa.schema(
    [
        ("customer_id", pa.int64()),
        ("invoice_no", pa.string()),
        ("amount_gbp", pa.float64()),
        ("is_purchase", pa.bool_()),
        ("invoiced_at", pa.timestamp("us")),
        ("known_from", pa.timestamp("us")),
        ("known_to", pa.timestamp("us")),
    ]
)


@pytest.fixture
def model() -> Model:
    churn = load_catalog(CATALOG_DIR).model("churn")
    return churn.model_copy(update={"features": tuple(f"activity:{name}" for name in FEATURES), "drift": Drift()})


def features_of(lake: Lake) -> Callable[[pa.Table], pa.Table]:
    """The features by brute force over the lines."""

    def features(entities: pa.Table) -> pa.Table:
        with lake.connect([LINES]) as db:
            db.register("entities", entities)
            columns = ", ".join(f"({sql})::DOUBLE AS {name}" for name, sql in FEATURES.items())
            return db.sql(
                f"""SELECT e.customer_id, t AS event_timestamp, {columns}
                FROM (SELECT *, event_timestamp AS t FROM entities) e JOIN marts.sales.customer_lines l
                ON l.customer_id = e.customer_id AND invoiced_at <= t WHERE is_purchase
                GROUP BY e.customer_id, t ORDER BY 2, 1"""
            ).to_arrow_table()

    return features


def predict(rows: pa.Table) -> np.ndarray:
    return 1 / (1 + rows["txn_count_7d"].to_numpy())


def line(customer: int, invoiced: str, known: str | None = None, gone: str | None = None, *, purchase: bool = True):
    at, known_from, known_to = (datetime.fromisoformat(i) if i else None for i in (invoiced, known or invoiced, gone))
    return {
        "customer_id": customer,
        "invoice_no": f"{customer}{invoiced}",
        "amount_gbp": 1.0,
        "is_purchase": purchase,
        "invoiced_at": at,
        "known_from": known_from,
        "known_to": known_to,
    }


def lake_of(root: Path, *lines: dict[str, object]) -> Lake:
    lake = Lake(root)
    lake.overwrite(LINES, pa.Table.from_pylist(list(lines), LINES_SCHEMA))
    return lake


@pytest.mark.parametrize(
    ("now", "last"),
    [
        ("2011-12-05T00:00:00", "2011-12-05"),
        ("2011-12-04T23:59:59", "2011-11-28"),
        ("2011-12-09T12:50:00", "2011-12-05"),
    ],
)
def test_windows_end_on_a_fixed_grid(now, last):
    ends = windows_for(Drift(windows=3, breaches=2), datetime.fromisoformat(now))
    assert ends[-1] == datetime.fromisoformat(last)
    assert [b - a for a, b in pairwise(ends)] == [timedelta(days=7)] * 2


def test_a_window_holds_who_bought_in_it_as_known_at_its_end(tmp_path, model):
    lake = lake_of(
        tmp_path,
        line(1, "2024-01-01T00:00:00"),  # the end itself belongs to the earlier window
        line(2, "2024-01-01T00:00:01"),
        line(3, "2024-01-08T00:00:00"),
        line(4, "2024-01-05T00:00:00", known="2024-01-09T00:00:00"),  # late
        line(5, "2024-01-05T00:00:00", gone="2024-01-06T00:00:00"),  # corrected away before the end
        line(6, "2024-01-05T00:00:00", gone="2024-01-12T00:00:00"),  # corrected away later
        line(7, "2024-01-05T00:00:00", purchase=False),
    )
    found = {w.end.day: w for w in build_windows(model, lake, features_of(lake), predict, datetime(2024, 1, 8))}
    assert found[1].rows["customer_id"].to_pylist() == [1]
    assert found[8].rows["customer_id"].to_pylist() == [2, 3, 6]
    assert found[8].rows.column_names == ["customer_id", "event_timestamp", *FEATURES, "prediction"]
    assert (found[8].events, found[8].last_event_at, found[8].quiet_days) == (3, datetime(2024, 1, 8), 0)
    assert (found[25].events, found[25].rows.num_rows, found[25].quiet_days) == (0, 0, 7)


def test_the_reference_leaves_out_what_is_under_judgement_and_what_still_fills_up(tmp_path, model):
    lake = lake_of(tmp_path, *(line(1, f"2024-{m:02}-{d:02}T12:00:00") for m in range(1, 7) for d in range(1, 29)))
    ends = [w.end for w in reference_windows(model, lake, features_of(lake), predict, datetime(2024, 6, 20))]
    assert ends[0] == datetime(2024, 2, 12), "30 days of history and one window after 2024-01-01"
    assert ends[-1] == datetime(2024, 5, 20)
    assert windows_for(model.drift, datetime(2024, 6, 20))[0] == datetime(2024, 5, 27)


def test_a_young_shop_has_no_reference_and_says_so(tmp_path, model):
    lake = lake_of(tmp_path, line(1, "2024-01-01T12:00:00"))
    now = datetime(2024, 1, 20)
    with pytest.raises(NoReferenceError, match="model 'churn': 0 past windows hold 0 rows"):
        monitor(model, "1", lake, features_of(lake), predict, now=now, fixed_at=now, directory=tmp_path / "v1")


def retail_lake(root: Path, *, factor: float, since: str, silent_since: str = "2099-01-01") -> Lake:
    if not RETAIL.exists():
        pytest.skip("the UCI Online Retail file is not beside the project")
    lines = duckdb.sql(
        f"""SELECT CustomerID::BIGINT AS customer_id, InvoiceNo AS invoice_no, Quantity * UnitPrice *
            (CASE WHEN InvoiceDate > '{since}' THEN {factor} ELSE 1 END) AS amount_gbp, true AS is_purchase,
            InvoiceDate::TIMESTAMP AS invoiced_at, InvoiceDate::TIMESTAMP AS known_from, NULL::TIMESTAMP AS known_to
        FROM '{RETAIL}' WHERE CustomerID IS NOT NULL AND left(InvoiceNo, 1) NOT IN ('C', 'A')
            AND Quantity > 0 AND UnitPrice > 0 AND InvoiceDate < '{silent_since}'"""
    ).to_arrow_table()
    lake = Lake(root)
    lake.overwrite(LINES, lines)
    return lake


NOW = datetime(2011, 12, 9, 12, 50)


def watch(lake: Lake, model: Model, root: Path, now: datetime = NOW, version: str = "1"):
    return monitor(
        model, version, lake, features_of(lake), predict, now=now, fixed_at=NOW, directory=root / f"v{version}"
    )


def test_a_real_shop_s_growth_and_christmas_do_not_alarm(tmp_path, model):
    report = watch(retail_lake(tmp_path, factor=1, since="2011-11-07"), model, tmp_path)
    assert not any(report.rows["breached"].to_pylist())
    assert not any(report.rows["upstream"].is_valid().to_pylist())
    age = next(d for d in report.status.details if d.feature == "days_since_first_txn")
    assert age.psi > 0.7, "the textbook threshold of 0.2 would have alarmed"


def test_a_doubled_basket_is_found_recorded_once_and_survives_a_new_version(tmp_path, model):
    lake = retail_lake(tmp_path, factor=2, since="2011-11-07")
    first = watch(lake, model, tmp_path)
    assert first.status.features == ("txn_amount_sum_7d",)
    assert first.status.wants_retraining
    assert first.appended == first.rows.num_rows == 4 * (len(FEATURES) + 1)
    assert load_reference(tmp_path / "v1") == first.reference
    assert pq.read_table(tmp_path / "v1" / "reference.parquet").num_rows == first.reference.rows
    assert watch(lake, model, tmp_path).appended == 0
    second = watch(lake, model, tmp_path, version="2")
    assert second.appended == second.rows.num_rows
    assert second.status.cause_id == first.status.cause_id == read_status(lake, model).cause_id
    assert lake.rows(keys.drift("churn")) == 2 * first.rows.num_rows


def test_a_feed_that_stopped_is_upstream(tmp_path, model):
    lake = retail_lake(tmp_path, factor=1, since="2011-11-07", silent_since="2011-11-24")
    status = watch(lake, model, tmp_path).status
    assert not status.sustained
    assert status.upstream == "no events arrived from 2011-11-28 00:00 to 2011-12-05 00:00"
