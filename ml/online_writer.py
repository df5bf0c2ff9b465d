"""Writes the online store's file: in bulk from Delta, or merged from rows that Feast hands over.

Both go the same way: rows as Arrow -> change points (the rule of ml/point_in_time.py) -> one packed blob for each
entity -> one SQLite transaction. The file's layout is in ml/packed.py.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.keys import Key
from lake import Lake
from ml.feature_plan import OnlineStoreError
from ml.online_reader import micros
from ml.packed import Layout, StoredView, open_file, read_view, views_in
from ml.point_in_time import change_points_sql

__all__ = ["OnlineView", "materialize_online", "merge_rows"]

# Numbers are packed as they are, strings are coded later; these become numbers on the way.
_AS_NUMBER = {"timestamp": 'epoch_us("{0}")', "bool": 'CAST("{0}" AS BIGINT)'}


@dataclass(frozen=True)
class OnlineView:
    """A view to materialise: its lake table (None: not in the lake), key column, clocks, time to live, and stored
    columns as (name, dtype)."""

    name: str
    table: Key | None
    entity: str
    event_timestamp: str
    created_timestamp: str | None
    ttl_us: int | None
    columns: tuple[tuple[str, str], ...]


def materialize_online(lake: Lake, online_path: Path, views: Sequence[OnlineView], now: datetime | None = None) -> int:
    """Replace each view in the online store by what its lake table says. Returns the change points written.

    Each view is replaced in one transaction: a reader sees the old one or the new one. Kept are the points that any
    instant from `now` minus the time to live needs (`now`: the table's latest event when not given); reads before that
    raise BeforeHorizonError.
    """
    written = 0
    for view in views:
        if view.table is None:
            raise OnlineStoreError(f"{view.name} is not a table of the lake: fill it with `feast materialize`")
        connection = lake.connect([view.table])
        relation = f'{view.table.layer}."{view.table.subject}"."{view.table.name}"'
        points, exact_from = _points(connection, relation, view, None if now is None else micros(now))
        with open_file(online_path) as db:
            written += _replace_view(db, view, points, exact_from)
    return written


def merge_rows(online_path: Path, view: OnlineView, rows: pa.Table) -> None:
    """Add rows (entity, clocks, columns, as the view names them) to what the online store has of their entities.

    Raises OnlineStoreError when the store's view has other columns.
    """
    connection = duckdb.connect()
    connection.register("arriving", rows)
    with open_file(online_path) as db:
        stored = read_view(db, view.name) if view.name in views_in(db) else None
        relation = "arriving"
        if stored is not None:
            _expect_same_columns(stored, view)
            connection.register("held", _held_rows(db, stored, view, rows.column(view.entity).unique()))
            relation = "(SELECT * FROM held UNION ALL BY NAME SELECT * FROM arriving)"
        # Unlimited: a merge drops nothing, so what the store answers exactly stays what it was.
        points, _ = _points(connection, relation, replace(view, ttl_us=None), None)
        packed, vocabulary = _packed(Layout(view.columns), points, view, stored.vocabulary if stored else ())
        _write_points(db, view.name, packed)
        _write_view(db, view, stored.exact_from_us if stored else None, vocabulary)


def _expect_same_columns(stored: StoredView, view: OnlineView) -> None:
    if stored.layout.columns != view.columns:
        raise OnlineStoreError(
            f"the online store's view {view.name} has columns {stored.layout.columns}, found {view.columns}: "
            "materialise it anew (`headwater run`)"
        )


def _points(
    connection: duckdb.DuckDBPyConnection, relation: str, view: OnlineView, now_us: int | None
) -> tuple[pa.Table, int | None]:
    """Change points in order of entity and time, without those that no instant in the horizon needs."""
    if now_us is None:
        latest = connection.sql(f'SELECT max(epoch_us("{view.event_timestamp}")) FROM {relation}').fetchall()[0][0]
        now_us = latest
    exact_from = None if view.ttl_us is None or now_us is None else now_us - view.ttl_us
    horizon = "true"
    if exact_from is not None:
        horizon = (
            f"__event_at >= {exact_from - (view.ttl_us or 0)} AND "
            f"(__next_holds_from IS NULL OR __next_holds_from > {exact_from})"
        )
    values = [_AS_NUMBER.get(dtype, '"{0}"').format(name) + f' AS "{name}"' for name, dtype in view.columns]
    points = change_points_sql(relation, [view.entity], view.event_timestamp, view.created_timestamp)
    return connection.sql(f"""
        SELECT "{view.entity}" AS "entity key", __event_at AS "event at", __holds_from AS "holds from",
            {", ".join(values)}
        FROM (
            SELECT *, lead(__holds_from) OVER (PARTITION BY "{view.entity}" ORDER BY __holds_from) AS __next_holds_from
            FROM ({points})
        )
        WHERE {horizon}
        ORDER BY "entity key", "holds from"
    """).to_arrow_table(), exact_from


def _replace_view(db: sqlite3.Connection, view: OnlineView, points: pa.Table, exact_from: int | None) -> int:
    packed, vocabulary = _packed(Layout(view.columns), points, view, ())
    db.execute("DELETE FROM points WHERE view = ?", (view.name,))
    _write_points(db, view.name, packed)
    _write_view(db, view, exact_from, vocabulary)
    return int(points.num_rows)


def _write_points(db: sqlite3.Connection, view: str, packed: Sequence[tuple[Any, bytes]]) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO points (view, entity, packed) VALUES (?, ?, ?)",
        ((view, entity, blob) for entity, blob in packed),
    )


def _write_view(db: sqlite3.Connection, view: OnlineView, exact_from: int | None, vocabulary: Sequence[str]) -> None:
    generation = 1 + max(views_in(db).values(), default=0)
    db.execute(
        "INSERT OR REPLACE INTO views (view, columns, ttl_us, exact_from_us, vocabulary, generation) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (view.name, json.dumps(view.columns), view.ttl_us, exact_from, json.dumps(list(vocabulary)), generation),
    )


def _packed(
    layout: Layout, points: pa.Table, view: OnlineView, vocabulary: tuple[str, ...]
) -> tuple[list[tuple[Any, bytes]], tuple[str, ...]]:
    """One blob for each entity, and the vocabulary with what is new in it. `points` is in order."""
    rows = np.zeros(points.num_rows, layout.numpy)
    rows["event at"] = points.column("event at").to_numpy()
    for n, (name, dtype) in enumerate(layout.columns):
        column = points.column(name).combine_chunks()
        if dtype == "string":
            vocabulary = _extended(vocabulary, column)
            column = pc.index_in(column, value_set=pa.array(vocabulary, pa.string()))
        missing = pc.is_null(column).to_numpy(zero_copy_only=False)
        rows[name] = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
        rows[f"mask {n // 64}"] |= missing.astype(np.uint64) << np.uint64(n % 64)
    holds_from = points.column("holds from").to_numpy().astype("<i8")
    entities = points.column("entity key").combine_chunks().dictionary_encode()
    starts = np.flatnonzero(np.diff(entities.indices.to_numpy(), prepend=-1)).tolist()
    names = entities.dictionary.to_pylist()
    spans = zip(names, starts, [*starts, points.num_rows][1:], strict=True)
    return [(e, holds_from[low:high].tobytes() + rows[low:high].tobytes()) for e, low, high in spans], vocabulary


def _extended(vocabulary: tuple[str, ...], column: pa.Array) -> tuple[str, ...]:
    new = set(column.unique().drop_null().to_pylist()) - set(vocabulary)
    return (*vocabulary, *sorted(new))


def _held_rows(db: sqlite3.Connection, stored: StoredView, view: OnlineView, entities: pa.Array) -> pa.Table:
    """What the file has of `entities`, as the rows it was packed from."""
    keys, holds_from, rows = [], [np.empty(0, "<i8")], [np.empty(0, stored.layout.numpy)]
    for entity in entities.drop_null().to_pylist():
        query = "SELECT packed FROM points WHERE view = ? AND entity = ?"
        for (blob,) in db.execute(query, (stored.name, entity)):
            count = stored.layout.points_in(blob)
            keys.extend([entity] * count)
            holds_from.append(np.frombuffer(blob, "<i8", count))
            rows.append(np.frombuffer(blob, stored.layout.numpy, count, 8 * count))
    every = np.concatenate(rows)
    columns = {
        view.entity: pa.array(keys, entities.type),
        view.event_timestamp: pa.array(every["event at"], pa.timestamp("us")),
        view.created_timestamp or "holds from": pa.array(np.concatenate(holds_from), pa.timestamp("us")),
    }
    for n, (name, dtype) in enumerate(stored.layout.columns):
        missing = (every[f"mask {n // 64}"] >> np.uint64(n % 64)) & np.uint64(1) == 1
        columns[name] = _unpacked(every[name], missing, dtype, stored.vocabulary)
    return pa.table(columns)


def _unpacked(values: Any, missing: Any, dtype: str, vocabulary: tuple[str, ...]) -> pa.Array:
    if dtype == "string":
        return pa.array(vocabulary, pa.string()).take(pa.array(values, mask=missing))
    kinds = {"timestamp": pa.timestamp("us"), "float64": pa.float64()}
    array = pa.array(values, kinds.get(dtype, pa.int64()), mask=missing)
    return array.cast(pa.bool_()) if dtype == "bool" else array
