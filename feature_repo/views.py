"""The features there are, as data: views and fields, with neither Feast nor the lake.

`definitions` makes Feast's objects of them; whoever only needs names and types (`headwater check`) need not wait for
Feast's import. A field with `elapsed_since` is not stored but computed when it is read, as the days since that
timestamp; a timestamp is stored for such fields and is no model input itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from catalog.keys import Key
from catalog.spec import ColumnType

__all__ = ["VIEWS", "Feature", "View", "model_inputs"]


@dataclass(frozen=True)
class Feature:
    """One field of a view."""

    name: str
    type: ColumnType
    description: str
    elapsed_since: str | None = None


@dataclass(frozen=True)
class View:
    """The features of one table; values older than `ttl` are not served (None: always)."""

    name: str
    description: str
    table: Key
    ttl: timedelta | None
    features: tuple[Feature, ...]


def _count(days: int) -> Feature:
    return Feature(f"txn_count_{days}d", "int64", f"Distinct purchase invoices in the last {days} days.")


def _amount(days: int) -> Feature:
    text = f"Pounds sterling over purchase lines in the last {days} days."
    return Feature(f"txn_amount_sum_{days}d", "float64", text)


ACTIVITY = View(
    "activity",
    "What a customer bought and gave back, exact at every instant.",
    Key("features", "customer", "activity"),
    timedelta(days=400),  # inclusive: a customer without any event for longer has no activity
    (
        *(_count(days) for days in (7, 30, 90, 365)),
        *(_amount(days) for days in (7, 30, 90, 365)),
        Feature(
            "avg_txn_amount_30d",
            "float64",
            "Pounds sterling per purchase invoice in the last 30 days; null if none.",
        ),
        Feature("distinct_products_90d", "int64", "Distinct stock codes purchased in the last 90 days."),
        Feature(
            "refund_rate_90d",
            "float64",
            "Cancellation invoices over invoices of any kind in the last 90 days; null if none.",
        ),
        Feature("last_txn_at", "timestamp", "Time of the last purchase; null if none."),
        Feature("first_txn_at", "timestamp", "Time of the first purchase; null if none."),
        Feature("days_since_last_txn", "float64", "Real days since the last purchase; null if none.", "last_txn_at"),
        Feature("days_since_first_txn", "float64", "Real days since the first purchase; null if none.", "first_txn_at"),
    ),
)

PROFILE = View(
    "profile",
    "Who the customer is, as the shop had it on record.",
    Key("features", "customer", "profile"),
    None,
    (
        Feature("country", "string", "Country of the customer's latest invoice at that time."),
        Feature("registered_at", "timestamp", "Time of the customer's first invoice."),
        Feature(
            "days_since_registered",
            "float64",
            "Real days since the customer's first invoice of any kind.",
            "registered_at",
        ),
    ),
)

VIEWS = (ACTIVITY, PROFILE)


def model_inputs() -> dict[str, ColumnType]:
    """The type of every feature that a model may name, by its reference (`view:feature`)."""
    return {f"{view.name}:{f.name}": f.type for view in VIEWS for f in view.features if f.type != "timestamp"}
