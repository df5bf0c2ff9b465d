"""The definition of the activity features, by brute force: what a customer's features are at one instant.

Plain Python over every version of every line, from the prose of the definition; it shares nothing with dbt's SQL, which
`build_activity` renders for the tests that compare the two.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import jinja2
import pyarrow as pa

PROJECT = Path(__file__).resolve().parents[2]
REAL_DATA = PROJECT / ".." / "shared" / "data" / "online_retail.parquet"
US = timedelta(microseconds=1)
WINDOWS = (7, 30, 90, 365)
TTL = timedelta(days=400)
FEATURES = (
    *(f"txn_count_{days}d" for days in WINDOWS),
    *(f"txn_amount_sum_{days}d" for days in WINDOWS),
    "avg_txn_amount_30d",
    "distinct_products_90d",
    "refund_rate_90d",
    "days_since_last_txn",
    "days_since_first_txn",
)


@dataclass(frozen=True)
class Version:
    """One version of one line: valid from `known_from` until `known_to` (None: still)."""

    customer_id: int
    invoice_no: str
    line_no: int
    stock_code: str
    quantity: int
    unit_price_gbp: float
    invoiced_at: datetime
    known_from: datetime
    known_to: datetime | None = None

    @property
    def is_purchase(self) -> bool:
        return self.invoice_no[0] not in "CA" and self.quantity > 0 and self.unit_price_gbp > 0

    @property
    def enters(self) -> datetime:
        """When the version becomes an event: it has happened and is known."""
        return max(self.invoiced_at, self.known_from)

    @property
    def counts(self) -> bool:
        """A version that was replaced before it happened was never an event."""
        return self.known_to is None or self.known_to > self.enters


class Oracle:
    """Answers for any customer and instant."""

    def __init__(self, versions: Iterable[Version]) -> None:
        self._versions: dict[int, list[Version]] = defaultdict(list)
        for version in versions:
            self._versions[version.customer_id].append(version)

    @property
    def customers(self) -> list[int]:
        return sorted(self._versions)

    def versions(self, customer: int) -> list[Version]:
        return self._versions[customer]

    def features(self, customer: int, t: datetime) -> dict[str, Any]:
        """Every feature at `t`."""
        nothing = dict.fromkeys(FEATURES)
        seen = [v for v in self._versions.get(customer, []) if v.enters <= t and v.counts]
        if not seen or t - max(v.invoiced_at for v in seen) > TTL:
            return nothing
        valid = [v for v in seen if v.known_to is None or t < v.known_to]
        if not valid:
            return nothing
        answer: dict[str, Any] = {}
        purchases = [v for v in valid if v.is_purchase]
        for days in WINDOWS:
            window = _window(purchases, t, days)
            answer[f"txn_count_{days}d"] = len({v.invoice_no for v in window})
            answer[f"txn_amount_sum_{days}d"] = float(_amount(window))
        month = _window(purchases, t, 30)
        invoices = {v.invoice_no for v in month}
        answer["avg_txn_amount_30d"] = float(_amount(month) / len(invoices)) if invoices else None
        answer["distinct_products_90d"] = len({v.stock_code for v in _window(purchases, t, 90)})
        any_kind = {v.invoice_no for v in _window(valid, t, 90)}
        refunds = {no for no in any_kind if no.startswith("C")}
        answer["refund_rate_90d"] = len(refunds) / len(any_kind) if any_kind else None
        times = [v.invoiced_at for v in purchases]
        answer["days_since_last_txn"] = (t - max(times)) / timedelta(days=1) if times else None
        answer["days_since_first_txn"] = (t - min(times)) / timedelta(days=1) if times else None
        return answer


def _window(versions: Sequence[Version], t: datetime, days: int) -> list[Version]:
    return [v for v in versions if t - timedelta(days=days) < v.invoiced_at <= t]


def _amount(versions: Sequence[Version]) -> Fraction:
    return sum((_line_amount(v.unit_price_gbp, v.quantity) for v in versions), Fraction(0))


@cache
def _line_amount(unit_price_gbp: float, quantity: int) -> Fraction:
    """Exact to a millionth of a pound; cached, because fractions are slow and the real file has few prices."""
    return round(Fraction(unit_price_gbp) * quantity, 6)


def mismatches(oracle: Oracle, pairs: Sequence[tuple[int, datetime]], found: pa.Table) -> list[str]:
    """What differs between the oracle and `found`, one row for each pair; columns it lacks are skipped."""
    wrong = []
    names = [name for name in FEATURES if name in found.column_names]
    assert len(names) >= 7
    assert found.num_rows == len(pairs)
    for (customer, t), row in zip(pairs, found.select(names).to_pylist(), strict=True):
        expected = oracle.features(customer, t)
        wrong += [
            f"{customer} at {t}: {name} is {row[name]!r}, expected {expected[name]!r}"
            for name in names
            if not same(row[name], expected[name])
        ]
    return wrong


def same(found: Any, expected: Any) -> bool:
    if found is None or expected is None:
        return found is expected
    return math.isclose(found, expected, rel_tol=1e-12, abs_tol=1e-9)


def entity_rows(pairs: Sequence[tuple[int, datetime]]) -> pa.Table:
    return pa.table(
        {
            "customer_id": pa.array([c for c, _ in pairs], pa.int64()),
            "event_timestamp": pa.array([t for _, t in pairs], pa.timestamp("us")),
        }
    )


def instants(oracle: Oracle, count: int, seed: int) -> list[tuple[int, datetime]]:
    """Pairs of customer and instant: on events, on window edges and on the time to live's, a microsecond around each,
    and anywhere."""
    draw = random.Random(seed)
    customers = oracle.customers
    pairs = []
    for _ in range(count):
        customer = draw.choice(customers)
        version = draw.choice(oracle.versions(customer))
        last = max(v.invoiced_at for v in oracle.versions(customer))
        stamps = [version.invoiced_at, version.known_from, version.known_to or version.invoiced_at]
        base = draw.choice(stamps) + timedelta(days=draw.choice((0, 0, *WINDOWS, 400)))
        anywhere = version.invoiced_at + timedelta(days=draw.uniform(-40, 450))
        edge = draw.choice((base, base, last + TTL)) + draw.choice((-US, timedelta(0), US))
        pairs.append((customer, draw.choice((edge, edge, edge, anywhere))))
    return pairs


def versions_table(versions: Iterable[Version]) -> pa.Table:
    """The versions as marts/sales/customer_lines has them."""
    rows = list(versions)
    return pa.table(
        {
            "customer_id": pa.array([v.customer_id for v in rows], pa.int64()),
            "invoice_no": pa.array([v.invoice_no for v in rows], pa.string()),
            "line_no": pa.array([v.line_no for v in rows], pa.int64()),
            "stock_code": pa.array([v.stock_code for v in rows], pa.string()),
            "country": pa.array(["United Kingdom" for _ in rows], pa.string()),
            "quantity": pa.array([v.quantity for v in rows], pa.int64()),
            "amount_gbp": pa.array([round(v.quantity * v.unit_price_gbp, 6) for v in rows], pa.float64()),
            "is_purchase": pa.array([v.is_purchase for v in rows], pa.bool_()),
            "is_refund": pa.array([v.invoice_no.startswith("C") for v in rows], pa.bool_()),
            "invoiced_at": pa.array([v.invoiced_at for v in rows], pa.timestamp("us")),
            "known_from": pa.array([v.known_from for v in rows], pa.timestamp("us")),
            "known_to": pa.array([v.known_to for v in rows], pa.timestamp("us")),
        }
    )


def activity_sql(lines: str = "customer_lines") -> str:
    """dbt's own SQL of features/customer/activity over the table `lines`, rendered without dbt."""
    folder = PROJECT / "dbt_project"
    text = (folder / "macros/features/windows.sql").read_text()
    text += (folder / "models/features/customer/features_customer__activity.sql").read_text()
    return jinja2.Environment().from_string(text).render(ref=lambda _: lines)


def build_activity(versions: pa.Table, sql: str | None = None) -> pa.Table:
    """features/customer/activity over `versions`."""
    connection = duckdb.connect()
    connection.register("customer_lines", versions)
    return connection.sql(sql or activity_sql()).to_arrow_table()


def synthetic_shop(seed: int, customers: int = 40, lines: int = 1_500) -> list[Version]:
    """A shop with late rows, corrections, deletions, refunds, adjustments and invoices that span minutes."""
    draw = random.Random(seed)
    start = datetime(2021, 1, 1)
    shop = []
    for number in range(lines):
        customer = draw.randrange(1, customers + 1)
        at = start + timedelta(minutes=draw.randrange(0, 800 * 24 * 60))
        kind = draw.choices(("", "C", "A"), (20, 3, 1))[0]
        late = draw.choice((0, 0, 0, 0, 0.01, 1, 8, 40, 100, 500))
        for line in range(draw.randrange(1, 4)):
            shop += _line_history(draw, customer, f"{kind}{number:06}", line + 1, at, late)
            at += timedelta(minutes=draw.choice((0, 0, 1)))
    return shop


def _line_history(
    draw: random.Random, customer: int, invoice: str, line: int, at: datetime, late: float
) -> list[Version]:
    """One line from its landing on: kept, corrected (amount, time, product or buyer), or deleted."""
    known = at + timedelta(days=late)
    quantity = -draw.randrange(1, 9) if invoice[0] == "C" else draw.randrange(-1, 9)
    first = Version(
        customer, invoice, line, f"P{draw.randrange(30)}", quantity, draw.choice((0.0, 0.1, 4.95)), at, known
    )
    fate = draw.random()
    if fate < 0.7:
        return [first]
    changed = known + timedelta(days=draw.choice((0.5, 7, 30, 90, 100.25, 200)))
    closed = [Version(**{**first.__dict__, "known_to": changed})]
    if fate < 0.85:
        return closed
    second = {**first.__dict__, "known_from": changed}
    second |= draw.choice(
        (
            {"quantity": quantity + 1},
            {"invoiced_at": at + timedelta(days=draw.choice((-3, 2, 400)))},
            {"stock_code": "P-other"},
            {"customer_id": customer + 1},
        )
    )
    return [*closed, Version(**second)]


def real_versions() -> list[Version]:
    """Every line of a known customer of the real file, known as soon as it was booked."""
    rows = duckdb.connect().execute(
        "SELECT CustomerID::BIGINT, InvoiceNo, row_number() OVER (), StockCode, Quantity::BIGINT, UnitPrice, "
        "InvoiceDate::TIMESTAMP, InvoiceDate::TIMESTAMP FROM read_parquet(?) WHERE CustomerID IS NOT NULL",
        [str(REAL_DATA)],
    )
    return [Version(*row) for row in rows.fetchall()]
