"""Feast's online store plug-in, and the compute engine with which `feast materialize` fills it.

Chosen in feature_store.yaml as `type: ml.online_store.ChangePointOnlineStore` with the engine
`ml.online_store.ChangePointComputeEngine`. What is stored are change points, not latest values: a read asks the clock
(`HEADWATER_NOW`, else the replay's own) and is exact at that instant, however long ago the store was filled. Serving
does not come this way: it uses ml/online_reader.py on the same file.

Imports Feast, so nothing but Feast and ml/features.py (inside functions) imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from feast.infra.common.materialization_job import MaterializationJobStatus
from feast.infra.compute_engines.local.compute import LocalComputeEngine, LocalComputeEngineConfig
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from feast.repo_config import FeastConfigBaseModel
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
from pydantic import StrictStr, field_validator

from catalog.clock import Clock, FixedClock, ReplayClock, parse_instant
from catalog.keys import Key
from ml.feature_plan import OnlineStoreError, elapsed_days
from ml.offline_store import ELAPSED_TAG, ttl_us
from ml.online_reader import OnlineReader, micros
from ml.online_writer import OnlineView, merge_rows
from ml.packed import open_file

__all__ = [
    "ChangePointComputeEngine",
    "ChangePointComputeEngineConfig",
    "ChangePointOnlineStore",
    "ChangePointOnlineStoreConfig",
    "online_view",
]

DTYPES = {
    "INT64": "int64",
    "INT32": "int64",
    "DOUBLE": "float64",
    "FLOAT": "float64",
    "STRING": "string",
    "BOOL": "bool",
    "UNIX_TIMESTAMP": "timestamp",
}
ARROW = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us"),
}


class ChangePointOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # Feast ships no types
    """Where the file is, and what time it is: `now` if given, else the last event of the replay at `replay_path`."""

    type: Literal["ml.online_store.ChangePointOnlineStore"] = "ml.online_store.ChangePointOnlineStore"
    path: StrictStr
    replay_path: StrictStr = ""
    now: StrictStr = ""

    @field_validator("now", mode="before")
    @classmethod
    def _unset(cls, now: Any) -> str:
        # Feast leaves `${NAME}` of a variable that is not set as it stands.
        text = "" if now is None else str(now)
        return "" if text.startswith("${") else text

    def clock(self) -> Clock:
        """Raises OnlineStoreError when the configuration names neither an instant nor a replay."""
        if self.now:
            return FixedClock(parse_instant(self.now))
        if not self.replay_path:
            raise OnlineStoreError("the online store has no clock: set online_store.now or online_store.replay_path")
        return ReplayClock(Path(self.replay_path))


class ChangePointComputeEngineConfig(LocalComputeEngineConfig):  # type: ignore[misc]  # Feast ships no types
    """Settings of the engine; there is nothing to set."""

    type: Literal["ml.online_store.ChangePointComputeEngine"] = "ml.online_store.ChangePointComputeEngine"


class ChangePointOnlineStore(OnlineStore):  # type: ignore[misc]  # Feast ships no types
    """Change points in SQLite, read as of the clock."""

    def online_write_batch(
        self,
        config: Any,
        table: Any,
        data: list[tuple[Any, dict[str, Any], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Merge rows into what the store has of their entities; a row without a created time is known at its event.

        Feast's values carry timestamps in whole seconds; `feast materialize` keeps microseconds (see the engine).
        """
        view = online_view(table)
        columns: dict[str, list[Any]] = {name: [] for name, _ in view.columns}
        keys, event_at, known_at = [], [], []
        for key, values, event, created in data:
            keys.append(_entity(key))
            event_at.append(_naive(event))
            known_at.append(_naive(created or event))
            for name, column in columns.items():
                column.append(_python(values.get(name)))
        rows = {view.entity: pa.array(keys), view.event_timestamp: pa.array(event_at, pa.timestamp("us"))}
        rows[view.created_timestamp or "holds from"] = pa.array(known_at, pa.timestamp("us"))
        for name, dtype in view.columns:
            rows[name] = pa.array(columns[name], ARROW[dtype])
        merge_rows(_path(config), view, pa.table(rows))
        if progress:
            progress(len(data))

    def online_read(
        self, config: Any, table: Any, entity_keys: list[Any], requested_features: list[str] | None = None
    ) -> list[tuple[datetime | None, dict[str, Any] | None]]:
        """Each entity's features as of the clock. Raises OnlineStoreError, BeforeHorizonError, ClockError."""
        path = _path(config)
        if not path.is_file():
            return [(None, None)] * len(entity_keys)
        now = config.online_store.clock().now()
        reader = OnlineReader(path)
        try:
            if table.name not in reader.generations():
                return [(None, None)] * len(entity_keys)
            found = reader.lookup(table.name, [_entity(key) for key in entity_keys], now, ttl_us(table))
        finally:
            reader.close()
        wanted = [f for f in table.features if requested_features is None or f.name in requested_features]
        return [_answer(each, wanted, now) for each in found]

    def update(
        self,
        config: Any,
        tables_to_delete: Sequence[Any],
        tables_to_keep: Sequence[Any],
        entities_to_delete: Sequence[Any],
        entities_to_keep: Sequence[Any],
        partial: bool,
    ) -> None:
        """Views are made when they are written; those that Feast drops are deleted."""
        if tables_to_delete and _path(config).is_file():
            with open_file(_path(config)) as db:
                for table in tables_to_delete:
                    db.execute("DELETE FROM points WHERE view = ?", (table.name,))
                    db.execute("DELETE FROM views WHERE view = ?", (table.name,))

    def teardown(self, config: Any, tables: Sequence[Any], entities: Sequence[Any]) -> None:
        """Delete the file."""
        for suffix in ("", "-wal", "-shm"):
            Path(f"{_path(config)}{suffix}").unlink(missing_ok=True)


class ChangePointComputeEngine(LocalComputeEngine):  # type: ignore[misc]  # Feast ships no types
    """Feast's local engine keeps each key's latest row only; this one hands every change point to the store.

    It hands them over as Arrow: Feast's own values would cut timestamps to whole seconds.
    """

    def _materialize_one(self, registry: Any, task: Any, **options: Any) -> LocalMaterializationJob:
        if not isinstance(self.online_store, ChangePointOnlineStore):
            return super()._materialize_one(registry, task, **options)
        view, source = online_view(task.feature_view), task.feature_view.batch_source
        rows = self.offline_store.pull_all_from_table_or_query(
            config=self.repo_config,
            data_source=source,
            join_key_columns=[view.entity],
            feature_name_columns=[name for name, _ in view.columns],
            timestamp_field=view.event_timestamp,
            created_timestamp_column=view.created_timestamp,
            start_date=task.start_time,
            end_date=task.end_time,
        ).to_arrow()
        merge_rows(_path(self.repo_config), view, rows)
        return LocalMaterializationJob(
            job_id=f"{view.name}-{task.start_time}-{task.end_time}", status=MaterializationJobStatus.SUCCEEDED
        )


def online_view(view: Any) -> OnlineView:
    """What the online store keeps of a Feast view. Raises OnlineStoreError for a composite key or an odd type."""
    keys = [column.name for column in view.entity_columns]
    if len(keys) != 1:
        raise OnlineStoreError(f"{view.name}: found join keys {keys}, allowed is one")
    columns = []
    for field in view.features:
        if ELAPSED_TAG in field.tags:
            continue
        kind = field.dtype.to_value_type().name
        if kind not in DTYPES:
            raise OnlineStoreError(f"{view.name}:{field.name}: found type {kind}, allowed is {', '.join(DTYPES)}")
        columns.append((field.name, DTYPES[kind]))
    source = view.batch_source
    return OnlineView(
        name=view.name,
        table=_table(source.name),
        entity=keys[0],
        event_timestamp=source.timestamp_field,
        created_timestamp=source.created_timestamp_column or None,
        ttl_us=ttl_us(view),
        columns=tuple(columns),
    )


def _table(source_name: str) -> Key | None:
    """The lake table that a source is named after; None for a source outside the lake."""
    try:
        return Key.parse(source_name)
    except ValueError:
        return None


def _path(config: Any) -> Path:
    path = Path(config.online_store.path)
    return path if path.is_absolute() or not config.repo_path else Path(config.repo_path) / path


def _entity(key: Any) -> int | str:
    if len(key.entity_values) != 1:
        raise OnlineStoreError(f"found join keys {list(key.join_keys)}, allowed is one")
    value = feast_value_type_to_python_type(key.entity_values[0])
    if not isinstance(value, int | str):
        raise OnlineStoreError(f"found {list(key.join_keys)} of type {type(value).__name__}, allowed is int or str")
    return value


def _python(value: Any) -> Any:
    found = None if value is None else feast_value_type_to_python_type(value)
    return _naive(found) if isinstance(found, datetime) else found


def _naive(instant: datetime) -> datetime:
    return instant.astimezone(UTC).replace(tzinfo=None) if instant.tzinfo else instant


def _answer(
    found: tuple[datetime, dict[str, Any] | None] | None, fields: Sequence[Any], now: datetime
) -> tuple[datetime | None, dict[str, Any] | None]:
    if found is None:
        return None, None
    event_at, values = found
    return event_at.replace(tzinfo=UTC), {f.name: _proto(f, values, now) for f in fields}


def _proto(field: Any, values: dict[str, Any] | None, now: datetime) -> Any:
    since = field.tags.get(ELAPSED_TAG)
    value = None if values is None else values[since or field.name]
    if value is None:
        return ValueProto()
    if since:
        value = elapsed_days(micros(now), value)
    kind = field.dtype.to_value_type()
    if kind.name == "UNIX_TIMESTAMP":
        value = datetime.fromtimestamp(value // 1_000_000, UTC)
    return python_values_to_proto_values([value], kind)[0]
