"""Features as everybody else sees them: open the store, compile a plan, read the past, read now.

    store = open_feature_store(settings, catalog)
    plan = compile_plan(store, "churn")
    table = historical(store, "churn", entities)                 # Arrow in, Arrow out: training, batch scores
    rows = OnlineReader(path).read(plan, [17850], now)           # serving: no Feast, no DataFrame
    materialize_online(lake, path, online_views(store))          # fills what OnlineReader reads

The past and now give the same values at the same instant. Feast is imported inside the functions that need it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from catalog.load import Catalog
from catalog.settings import CATALOG_DIR, Settings
from ml.feature_plan import (
    BeforeHorizonError,
    Dtype,
    EntityRowsError,
    FeatureError,
    FeaturePlan,
    OnlineStoreError,
    PlannedFeature,
    PlannedView,
    UnknownFeatureError,
    UnknownServiceError,
    UnsupportedSourceError,
    elapsed_days,
)
from ml.online_reader import OnlineReader, OnlineRow
from ml.online_writer import OnlineView, materialize_online

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = [
    "BeforeHorizonError",
    "EntityRowsError",
    "FeatureError",
    "FeaturePlan",
    "OnlineReader",
    "OnlineRow",
    "OnlineStoreError",
    "OnlineView",
    "PlannedFeature",
    "PlannedView",
    "UnknownFeatureError",
    "UnknownServiceError",
    "UnsupportedSourceError",
    "compile_plan",
    "elapsed_days",
    "historical",
    "materialize_online",
    "online",
    "online_views",
    "open_feature_store",
]

REPO_DIR = CATALOG_DIR.parent / "feature_repo"
ENTITY_TIMESTAMP = "event_timestamp"
ARROW = {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string(), "bool": pa.bool_()}


def open_feature_store(settings: Settings, catalog: Catalog) -> FeatureStore:
    """Feast's store over the lake of `settings`, with the definitions applied when they or the catalog have changed.

    Raises CatalogError for a model whose YAML names an unknown feature.
    """
    from feast import FeatureStore, RepoConfig
    from ruamel.yaml import YAML

    # By name, as Feast itself loads a feature repo: to this package the definitions are data.
    definitions = importlib.import_module("feature_repo.definitions").build(settings.lake_dir, catalog.models)
    text = Template((REPO_DIR / "feature_store.yaml").read_text(encoding="utf-8")).substitute(
        HEADWATER_HOME=settings.home, HEADWATER_NOW=settings.now.isoformat() if settings.now else ""
    )
    settings.home.mkdir(parents=True, exist_ok=True)
    store = FeatureStore(config=RepoConfig(**YAML(typ="safe").load(text), repo_path=REPO_DIR))
    _apply(store, definitions, settings.feast_registry_path)
    return store


def compile_plan(store: FeatureStore, service: str) -> FeaturePlan:
    """The feature service as plain data. Raises UnknownServiceError, UnknownFeatureError."""
    from ml.offline_store import ELAPSED_TAG, ttl_us
    from ml.online_store import DTYPES

    views, features = [], []
    entities = []
    for view, names in _projections(store, service):
        fields = {field.name: field for field in view.features}
        stored = {column: feature for feature, column in view.batch_source.field_mapping.items()}
        views.append(PlannedView(view.name, ttl_us(view)))
        entities += [column.name for column in view.entity_columns]
        for name in names:
            kind = DTYPES.get(fields[name].dtype.to_value_type().name, "unknown")
            if kind not in ARROW:
                raise UnknownFeatureError(
                    f"{service}: {view.name}:{name} is of type {kind}, allowed: {', '.join(ARROW)}"
                )
            since = fields[name].tags.get(ELAPSED_TAG)
            column = stored.get(since or name, since or name)
            features.append(PlannedFeature(name, view.name, cast(Dtype, kind), column, since))
    return FeaturePlan(service, entities[0], tuple(views), tuple(features))


def historical(store: FeatureStore, service: str, entities: pa.Table) -> pa.Table:
    """`entities` with one column for each feature of `service`, as known at each row's `event_timestamp`.

    Every row comes back in the given order, repeated ones too, with all its columns. Raises UnknownServiceError,
    EntityRowsError (columns `customer_id` and `event_timestamp` are needed; naive instants are UTC).
    """
    import duckdb

    from ml.offline_store import as_of_view
    from ml.point_in_time import as_of_join

    connection = duckdb.connect()
    repo = store.config.repo_path
    views = [as_of_view(view, names, repo, False, connection) for view, names in _projections(store, service)]
    joined = as_of_join(connection, entities, ENTITY_TIMESTAMP, views)
    plan = compile_plan(store, service)
    return joined.select([*entities.column_names, *plan.names]).cast(
        pa.schema([*entities.schema, *(pa.field(f.name, ARROW[f.dtype]) for f in plan.features)])
    )


def online(reader: OnlineReader, plan: FeaturePlan, customer_ids: Sequence[int], now: datetime) -> pa.Table:
    """The plan's features as of `now` (naive UTC) as a table, one row for each customer in order; unknown: all null."""
    rows = reader.read(plan, customer_ids, now)
    columns: list[Any] = [pa.array(customer_ids, pa.int64())]
    for n, feature in enumerate(plan.features):
        columns.append(pa.array([row.values[n] if row else None for row in rows], ARROW[feature.dtype]))
    return pa.table(columns, names=[plan.entity, *plan.names])


def online_views(store: FeatureStore) -> tuple[OnlineView, ...]:
    """The store's views as `materialize_online` takes them."""
    from ml.online_store import online_view

    return tuple(online_view(view) for view in sorted(store.list_feature_views(), key=lambda v: v.name))


def _projections(store: FeatureStore, service: str) -> list[tuple[Any, list[str]]]:
    """Each view of the service with the names of its features, in the service's order."""
    from feast.errors import FeatureServiceNotFoundException

    try:
        found = store.get_feature_service(service)
    except FeatureServiceNotFoundException:
        there = ", ".join(sorted(s.name for s in store.list_feature_services())) or "none"
        raise UnknownServiceError(f"no feature service {service!r}; there are: {there}") from None
    views = []
    for projection in found.feature_view_projections:
        view = store.get_feature_view(projection.name)
        views.append((view, [field.name for field in projection.features]))
    return views


def _declared(definition: Any) -> Any:
    """What a Feast object declares, without the instants at which it was made: those differ at every load."""
    to_dict = importlib.import_module("google.protobuf.json_format").MessageToDict

    def timeless(found: Any) -> Any:
        if isinstance(found, dict):
            return {k: timeless(v) for k, v in found.items() if k not in ("createdTimestamp", "lastUpdatedTimestamp")}
        return [timeless(v) for v in found] if isinstance(found, list) else found

    return timeless(to_dict(definition.to_proto().spec))


def _apply(store: FeatureStore, definitions: Any, registry_path: Path) -> None:
    """Applying costs a second or two of Feast's time, so it happens only when the definitions have changed."""
    wanted = [definitions.entity, *definitions.views, *definitions.services]
    digest = hashlib.sha256(json.dumps([_declared(d) for d in wanted], sort_keys=True).encode()).hexdigest()
    marker = registry_path.with_name(registry_path.name + ".applied")
    if registry_path.exists() and marker.exists() and marker.read_text() == digest:
        return
    dropped = [s for s in store.list_feature_services() if s.name not in {d.name for d in definitions.services}]
    store.apply(wanted, objects_to_delete=dropped, partial=False)
    marker.write_text(digest)
