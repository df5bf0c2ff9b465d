"""The customer entity, its feature views, and one feature service for each model in the catalog.

The columns come from dbt_project/models/features; a field with the tag `elapsed_since` is not stored but computed when
it is read, as the days since that timestamp. A service has its model's name and features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.types import Float64, Int64, String, UnixTimestamp

from catalog.keys import Key
from catalog.load import CatalogError
from catalog.spec import Model

__all__ = ["ACTIVITY_TTL", "Definitions", "build"]

# A customer without any event for longer than this has no activity; inclusive.
ACTIVITY_TTL = timedelta(days=400)

OWNER = "team:data-science"


@dataclass(frozen=True)
class Definitions:
    """Everything that Feast's registry holds."""

    entity: Entity
    views: tuple[FeatureView, ...]
    services: tuple[FeatureService, ...]


def build(lake_dir: Path, models: Iterable[Model]) -> Definitions:
    """The definitions over the lake at `lake_dir`. Raises CatalogError for a model with an unknown feature."""
    customer = Entity(
        name="customer",
        join_keys=["customer_id"],
        value_type=ValueType.INT64,
        description="A customer with a number of their own.",
        owner=OWNER,
    )
    views = (_activity(customer, lake_dir), _profile(customer, lake_dir))
    return Definitions(customer, views, tuple(_services(views, models)))


def _activity(customer: Entity, lake_dir: Path) -> FeatureView:
    return FeatureView(
        name="activity",
        entities=[customer],
        ttl=ACTIVITY_TTL,
        source=_source(lake_dir, Key("features", "customer", "activity")),
        owner=OWNER,
        description="What a customer bought and gave back, exact at every instant.",
        schema=[
            Field(name="customer_id", dtype=Int64, description="Customer number."),
            *(_count(days) for days in (7, 30, 90, 365)),
            *(_amount(days) for days in (7, 30, 90, 365)),
            Field(
                name="avg_txn_amount_30d",
                dtype=Float64,
                description="Pounds sterling per purchase invoice in the last 30 days; null if none.",
            ),
            Field(
                name="distinct_products_90d",
                dtype=Int64,
                description="Distinct stock codes purchased in the last 90 days.",
            ),
            Field(
                name="refund_rate_90d",
                dtype=Float64,
                description="Cancellation invoices over invoices of any kind in the last 90 days; null if none.",
            ),
            Field(name="last_txn_at", dtype=UnixTimestamp, description="Time of the last purchase; null if none."),
            Field(name="first_txn_at", dtype=UnixTimestamp, description="Time of the first purchase; null if none."),
            Field(
                name="days_since_last_txn",
                dtype=Float64,
                description="Real days since the last purchase; null if none.",
                tags={"elapsed_since": "last_txn_at"},
            ),
            Field(
                name="days_since_first_txn",
                dtype=Float64,
                description="Real days since the first purchase; null if none.",
                tags={"elapsed_since": "first_txn_at"},
            ),
        ],
    )


def _profile(customer: Entity, lake_dir: Path) -> FeatureView:
    return FeatureView(
        name="profile",
        entities=[customer],
        ttl=timedelta(0),
        source=_source(lake_dir, Key("features", "customer", "profile")),
        owner=OWNER,
        description="Who the customer is, as the shop had it on record.",
        schema=[
            Field(name="customer_id", dtype=Int64, description="Customer number."),
            Field(name="country", dtype=String, description="Country of the customer's latest invoice at that time."),
            Field(name="registered_at", dtype=UnixTimestamp, description="Time of the customer's first invoice."),
            Field(
                name="days_since_registered",
                dtype=Float64,
                description="Real days since the customer's first invoice of any kind.",
                tags={"elapsed_since": "registered_at"},
            ),
        ],
    )


def _count(days: int) -> Field:
    return Field(
        name=f"txn_count_{days}d", dtype=Int64, description=f"Distinct purchase invoices in the last {days} days."
    )


def _amount(days: int) -> Field:
    return Field(
        name=f"txn_amount_sum_{days}d",
        dtype=Float64,
        description=f"Pounds sterling over purchase lines in the last {days} days.",
    )


def _source(lake_dir: Path, table: Key) -> FileSource:
    return FileSource(
        name=table.dotted,
        path=str(lake_dir.joinpath(*table)),
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
        description=f"The lake's table {table.dotted}.",
        owner=OWNER,
    )


def _services(views: tuple[FeatureView, ...], models: Iterable[Model]) -> Iterable[FeatureService]:
    allowed = {f"{view.name}:{name}": view for view in views for name in _usable(view)}
    models = tuple(models)
    problems = [
        f"catalog/models/{model.name}.yaml: features: found {ref!r}, allowed is one of {', '.join(sorted(allowed))}"
        for model in models
        for ref in model.features
        if ref not in allowed
    ]
    if problems:
        raise CatalogError(problems)
    for model in models:
        chosen: dict[str, list[str]] = {}
        for ref in model.features:
            view, name = ref.split(":")
            chosen.setdefault(view, []).append(name)
        yield FeatureService(
            name=model.name,
            features=[view[chosen[view.name]] for view in views if view.name in chosen],
            description=model.description,
            owner=model.owner,
        )


def _usable(view: FeatureView) -> list[str]:
    """A timestamp is stored for what is computed from it; it is no model input itself."""
    return [field.name for field in view.features if field.dtype != UnixTimestamp]
