"""Feast's offline store plug-in: as-of joins in DuckDB over Parquet and Delta files.

Chosen in feature_store.yaml as `type: ml.offline_store.AsOfOfflineStore`. It returns every entity row in the given
order and always filters both clocks (event and knowledge time); the join itself is in ml/point_in_time.py. A field with
the tag `elapsed_since: <stored timestamp>` is not stored: it is the days since that timestamp at the row's instant.
Feast's interface takes and gives pandas; `historical` in ml/features.py is the same join in Arrow.

Imports Feast, so nothing but Feast and ml/features.py (inside functions) imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse
from urllib.request import url2pathname

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from feast.data_format import DeltaFormat
from feast.infra.offline_stores.file_source import FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel
from pydantic import StrictStr

from lake.tables import parquet_files
from ml.feature_plan import EntityRowsError, UnknownFeatureError, UnsupportedSourceError
from ml.point_in_time import AsOfView, as_of_join, change_points_sql, instants_us

__all__ = ["AsOfOfflineStore", "AsOfOfflineStoreConfig", "as_of_view"]

ENTITY_TIMESTAMP = "event_timestamp"
ELAPSED_TAG = "elapsed_since"


class AsOfOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # Feast ships no types
    """Settings of the store; there is nothing to set."""

    type: Literal["ml.offline_store.AsOfOfflineStore"] | StrictStr = "ml.offline_store.AsOfOfflineStore"


class AsOfRetrievalJob(RetrievalJob):  # type: ignore[misc]  # Feast ships no types
    """A query that runs when its result is asked for; on-demand views are computed by Feast's base class."""

    def __init__(
        self,
        query: Callable[[], pa.Table],
        *,
        on_demand_feature_views: Iterable[Any] = (),
        full_feature_names: bool = False,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._query = query
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._full_feature_names = full_feature_names
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[Any]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._query()

    def _to_df_internal(self, timeout: int | None = None) -> Any:
        return self._query().to_pandas()

    def persist(self, storage: Any, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result as one Parquet file. Raises UnsupportedSourceError, FileExistsError."""
        if not isinstance(storage, SavedDatasetFileStorage):
            raise UnsupportedSourceError(f"cannot persist to {type(storage).__name__}; use SavedDatasetFileStorage")
        path = _local_path(storage.file_options.uri, None)
        if path.exists() and not allow_overwrite:
            raise FileExistsError(f"{path} exists; pass allow_overwrite=True to replace it")
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.to_arrow(), path)


class AsOfOfflineStore(OfflineStore):  # type: ignore[misc]  # Feast ships no types
    """Point-in-time joins that keep every entity row and filter both clocks."""

    # Filtering by created time is not an option here but the rule: the flag is accepted and changes nothing.
    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: Any,
        feature_views: list[Any],
        feature_refs: list[str],
        entity_df: Any,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        **options: Any,
    ) -> RetrievalJob:
        """A job for `entity_df` (pandas, Arrow, or a DuckDB query) with the features of `feature_refs` joined.

        Raises EntityRowsError, UnknownFeatureError, UnsupportedSourceError, here or when the job runs.
        """
        entities, at = _entity_rows(entity_df)
        views = [
            (view, [ref.split(":", 1)[1] for ref in feature_refs if _refers_to(ref, view)]) for view in feature_views
        ]

        def query() -> pa.Table:
            connection = duckdb.connect()
            joins = [as_of_view(v, names, config.repo_path, full_feature_names, connection) for v, names in views]
            return as_of_join(connection, entities, at, joins)

        instants = instants_us(entities.column(at)).to_numpy()
        return AsOfRetrievalJob(
            query,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            full_feature_names=full_feature_names,
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entities.column_names if name != at],
                min_event_timestamp=_utc(instants.min()) if len(instants) else None,
                max_event_timestamp=_utc(instants.max()) if len(instants) else None,
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: Any,
        data_source: Any,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The winning row of each key as known at `end_date`, if its event time is not before `start_date`."""

        def query() -> pa.Table:
            connection = duckdb.connect()
            relation = _relation(data_source, config.repo_path, connection)
            stamps = [timestamp_field, *filter(None, [created_timestamp_column])]
            known = " AND ".join(f'epoch_us("{s}") <= {_us(end_date)}' for s in stamps)
            usable = f"(SELECT * FROM {relation} WHERE {known})"
            points = change_points_sql(usable, join_key_columns, timestamp_field, created_timestamp_column)
            chosen = _pulled_columns(
                connection, relation, [*join_key_columns, *feature_name_columns, *stamps], data_source
            )
            keys = ", ".join(f'"{k}"' for k in join_key_columns)
            return connection.sql(f"""
                SELECT {chosen} FROM ({points}) WHERE __event_at >= {_us(start_date)}
                QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY __holds_from DESC) = 1
            """).to_arrow_table()

        return AsOfRetrievalJob(query)

    @staticmethod
    def pull_all_from_table_or_query(
        config: Any,
        data_source: Any,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every stored row whose event time is from `start_date` to `end_date`, both inclusive and optional.

        Rows that become known later are included: an expiry after `end_date` belongs to an event before it.
        """

        def query() -> pa.Table:
            connection = duckdb.connect()
            relation = _relation(data_source, config.repo_path, connection)
            stamps = [timestamp_field, *filter(None, [created_timestamp_column])]
            limits = ["true"]
            if start_date is not None:
                limits.append(f'epoch_us("{timestamp_field}") >= {_us(start_date)}')
            if end_date is not None:
                limits.append(f'epoch_us("{timestamp_field}") <= {_us(end_date)}')
            chosen = _pulled_columns(
                connection, relation, [*join_key_columns, *feature_name_columns, *stamps], data_source
            )
            sql = f"SELECT {chosen} FROM {relation} WHERE {' AND '.join(limits)}"
            return connection.sql(sql).to_arrow_table()

        return AsOfRetrievalJob(query)


def as_of_view(
    view: Any, names: list[str], repo_path: Path | None, full_names: bool, connection: duckdb.DuckDBPyConnection
) -> AsOfView:
    """A Feast view's features `names` as a join. Raises UnknownFeatureError, UnsupportedSourceError."""
    source = view.batch_source
    stored_name = {feature: column for column, feature in source.field_mapping.items()}
    fields = {field.name: field for field in view.features}
    prefix = f"{view.projection.name_alias or view.name}__" if full_names else ""
    columns: list[tuple[str, str]] = []
    elapsed: list[tuple[str, str]] = []
    for name in names:
        if name not in fields:
            raise UnknownFeatureError(f"{view.name}:{name} does not exist; there are: {', '.join(sorted(fields))}")
        since = fields[name].tags.get(ELAPSED_TAG)
        pair = (stored_name.get(since or name, since or name), prefix + name)
        (elapsed if since else columns).append(pair)
    key_map = view.projection.join_key_map
    keys = [(stored_name.get(e.name, e.name), key_map.get(e.name, e.name)) for e in view.entity_columns]
    return AsOfView(
        relation=_relation(source, repo_path, connection),
        keys=tuple(keys),
        event_timestamp=source.timestamp_field,
        created_timestamp=source.created_timestamp_column or None,
        ttl_us=ttl_us(view),
        columns=tuple(columns),
        elapsed=tuple(elapsed),
    )


def ttl_us(view: Any) -> int | None:
    """A Feast view's time to live in microseconds; Feast's zero means unlimited."""
    return round(view.ttl.total_seconds() * 1_000_000) if view.ttl else None


def _refers_to(ref: str, view: Any) -> bool:
    return bool(ref.split(":", 1)[0] == view.projection.name_to_use())


def _entity_rows(entity_df: Any) -> tuple[pa.Table, str]:
    """Entity rows as Arrow and the name of their timestamp column."""
    if entity_df is None:
        raise EntityRowsError("entity_df is needed: this store joins to entity rows and does not scan a range of time")
    if isinstance(entity_df, str):
        rows = duckdb.connect().sql(entity_df).to_arrow_table()
    elif isinstance(entity_df, pa.Table):
        rows = entity_df
    else:
        rows = pa.Table.from_pandas(_parsed(entity_df), preserve_index=False)
    stamps = [f.name for f in rows.schema if pa.types.is_timestamp(f.type)]
    if ENTITY_TIMESTAMP in rows.column_names:
        return rows, ENTITY_TIMESTAMP
    if len(stamps) == 1:
        return rows, stamps[0]
    raise EntityRowsError(
        f"entity rows need a timestamp column named {ENTITY_TIMESTAMP}; found {', '.join(rows.column_names)}"
    )


def _parsed(entity_df: Any) -> Any:
    """Instants given as text are read as UTC, as Feast's own stores do."""
    import pandas as pd

    if ENTITY_TIMESTAMP in entity_df and not pd.api.types.is_datetime64_any_dtype(entity_df[ENTITY_TIMESTAMP]):
        return entity_df.assign(**{ENTITY_TIMESTAMP: pd.to_datetime(entity_df[ENTITY_TIMESTAMP], utc=True)})
    return entity_df


def _relation(source: Any, repo_path: Path | None, connection: duckdb.DuckDBPyConnection) -> str:
    """The source's rows as a DuckDB table expression. Raises UnsupportedSourceError."""
    if not isinstance(source, FileSource):
        raise UnsupportedSourceError(f"{source.name}: found a {type(source).__name__}, allowed is a FileSource")
    path = _local_path(source.path, repo_path)
    if isinstance(source.file_format, DeltaFormat):
        return _delta_relation(path, connection)
    if not path.exists() and "*" not in path.name:
        raise UnsupportedSourceError(f"{source.name}: {path} does not exist; materialise the table first")
    return f"read_parquet({_quoted(path / '**' / '*.parquet' if path.is_dir() else path)})"


def _delta_relation(path: Path, connection: duckdb.DuckDBPyConnection) -> str:
    if not DeltaTable.is_deltatable(str(path)):
        raise UnsupportedSourceError(f"{path} is not a Delta table; materialise the features first (`headwater run`)")
    table = DeltaTable(str(path))
    files = parquet_files(table)
    if files and not table.metadata().partition_columns:
        # By name: an older file of a table whose columns grew lacks the new ones.
        return f"read_parquet([{', '.join(_quoted(f) for f in files)}], union_by_name = true)"
    name = f"delta_{abs(hash(str(path)))}"
    connection.register(name, table.to_pyarrow_dataset())
    return name


def _pulled_columns(connection: duckdb.DuckDBPyConnection, relation: str, names: list[str], source: Any) -> str:
    """What is not stored (elapsed time) is pulled as null: it is computed when it is read."""
    stored = set(connection.sql(f"SELECT * FROM {relation}").columns)
    return ", ".join(f'"{n}"' if n in stored else f'NULL::DOUBLE AS "{n}"' for n in dict.fromkeys(names))


def _local_path(uri: str, repo_path: Path | None) -> Path:
    parsed = urlparse(uri)
    if parsed.scheme not in ("", "file"):
        raise UnsupportedSourceError(f"{uri}: found scheme {parsed.scheme}, allowed are local paths and file://")
    path = Path(url2pathname(parsed.path) if parsed.scheme else uri)
    return path if path.is_absolute() or repo_path is None else Path(repo_path) / path


def _quoted(path: Path | str) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _us(instant: datetime) -> int:
    aware = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    delta = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _utc(us: int) -> datetime:
    return datetime.fromtimestamp(int(us) / 1e6, UTC)
