"""The customer entity, its feature views, and one feature service for each model in the catalog.

Which views and fields there are is in `views`; their columns come from dbt_project/models/features. A service has its
model's name and features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.types import Bool, Float64, Int64, PrimitiveFeastType, String, UnixTimestamp

from catalog.keys import Key
from catalog.load import CatalogError
from catalog.problems import Problem
from catalog.spec import ColumnType, Model
from feature_repo.views import VIEWS, Feature, View, model_inputs

__all__ = ["Definitions", "build"]

OWNER = "team:data-science"
_TYPES: Mapping[ColumnType, PrimitiveFeastType] = {
    "int64": Int64,
    "float64": Float64,
    "string": String,
    "bool": Bool,
    "timestamp": UnixTimestamp,
}


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
    views = tuple(_view(customer, lake_dir, view) for view in VIEWS)
    return Definitions(customer, views, tuple(_services(views, models)))


def _view(customer: Entity, lake_dir: Path, view: View) -> FeatureView:
    return FeatureView(
        name=view.name,
        entities=[customer],
        ttl=view.ttl or timedelta(0),
        source=_source(lake_dir, view.table),
        owner=OWNER,
        description=view.description,
        schema=[
            Field(name="customer_id", dtype=Int64, description="Customer number."),
            *(_field(feature) for feature in view.features),
        ],
    )


def _field(feature: Feature) -> Field:
    return Field(
        name=feature.name,
        dtype=_TYPES[feature.type],
        description=feature.description,
        tags={"elapsed_since": feature.elapsed_since} if feature.elapsed_since else {},
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
    allowed = sorted(model_inputs())
    models = tuple(models)
    problems = [
        Problem(f"catalog/models/{model.name}.yaml", 1, f"found {ref!r}, allowed is one of {', '.join(allowed)}")
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
