"""The as-of join: for each entity row, what each view knew at that row's instant. DuckDB and Arrow; no Feast.

A stored row has an event time e and, when the view declares one, a created time c: the instant from which it was known.
At instant t a row is usable when e <= t and c <= t; of the usable rows the one with the greatest (e, c) wins, and it is
valid while t - e <= time to live. Which row wins changes only when a row becomes usable, at max(e, c), and a row that
does not win then never will, because the winner's (e, c) only grows. So the rows that win when they become usable are
change points, and one as-of join on max(e, c) answers every instant exactly.

Instants are compared as integers since 1970 UTC: microseconds, or nanoseconds for a view that stores those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml.feature_plan import EntityRowsError, elapsed_days

__all__ = ["AsOfView", "as_of_join", "change_points_sql", "instants_us"]


@dataclass(frozen=True)
class AsOfView:
    """One view to join. `relation` is a DuckDB table expression.

    `keys` pairs the view's key columns with the entity rows' columns; `columns` pairs stored columns with output names;
    `elapsed` pairs stored timestamps with the output names of the days since them.
    """

    relation: str
    keys: tuple[tuple[str, str], ...]
    event_timestamp: str
    created_timestamp: str | None
    ttl_us: int | None
    columns: tuple[tuple[str, str], ...]
    elapsed: tuple[tuple[str, str], ...] = ()


def as_of_join(
    connection: duckdb.DuckDBPyConnection, entities: pa.Table, at: str, views: Sequence[AsOfView]
) -> pa.Table:
    """`entities` with every view's features appended: all rows, in the given order, repeated ones too.

    `at` names the timestamp column (any unit, any zone; naive is UTC). Raises EntityRowsError.
    """
    _expect_columns(entities, at, views)
    at_us = instants_us(entities.column(at))
    joined = entities
    for view in views:
        features = _join_one(connection, entities, entities.column(at), view)
        for _, name in view.columns:
            joined = joined.append_column(name, features.column(name))
        for _, name in view.elapsed:
            joined = joined.append_column(name, _elapsed(at_us, features.column(name)))
    return joined


def instants_us(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Timestamps of any unit and zone as int64 microseconds since 1970 UTC, rounded down. Raises EntityRowsError."""
    return _instants(column, 1_000)


def change_points_sql(
    relation: str, keys: Sequence[str], event_timestamp: str, created_timestamp: str | None, unit: str = "us"
) -> str:
    """A query for the rows that win when they become usable: the relation's columns, `__event_at` and `__holds_from`.

    Both are integers in `unit` ("us" or "ns"). Rows that lack a key or one of their instants are left out.
    """
    event = f'epoch_{unit}("{event_timestamp}")'
    known = f'greatest({event}, epoch_{unit}("{created_timestamp}"))' if created_timestamp else event
    stamps = [event_timestamp, *([created_timestamp] if created_timestamp else [])]
    present = " AND ".join(f'"{name}" IS NOT NULL' for name in (*keys, *stamps))
    by_key = ", ".join(f'"{k}"' for k in keys)
    order = "__holds_from, __event_at" + (f', "{created_timestamp}"' if created_timestamp else "")
    return f"""
        SELECT * EXCLUDE (__event_before, __held_until)
        FROM (
            SELECT *,
                max(__event_at) OVER (
                    PARTITION BY {by_key} ORDER BY {order}
                    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                ) AS __event_before,
                lead(__holds_from) OVER (PARTITION BY {by_key} ORDER BY {order}) AS __held_until
            FROM (SELECT *, {event} AS __event_at, {known} AS __holds_from FROM {relation} WHERE {present})
        )
        WHERE (__event_before IS NULL OR __event_at >= __event_before) AND __held_until IS DISTINCT FROM __holds_from
    """


def _expect_columns(entities: pa.Table, at: str, views: Sequence[AsOfView]) -> None:
    needed = [at, *dict.fromkeys(entity for view in views for _, entity in view.keys)]
    missing = [name for name in needed if name not in entities.column_names]
    if missing:
        raise EntityRowsError(
            f"entity rows lack {', '.join(missing)}; found columns {', '.join(entities.column_names)}"
        )
    made = [name for view in views for _, name in (*view.columns, *view.elapsed)]
    clash = [name for name in made if name in entities.column_names]
    if clash:
        raise EntityRowsError(f"entity rows already have columns named like features: {', '.join(clash)}; rename them")


def _join_one(
    connection: duckdb.DuckDBPyConnection, entities: pa.Table, instants: pa.ChunkedArray, view: AsOfView
) -> pa.Table:
    unit = _unit(connection, view)
    per_us = 1_000 if unit == "ns" else 1
    at = _instants(instants, 1_000 // per_us)
    rows = pa.table(
        [*(entities.column(entity) for _, entity in view.keys), at, pa.array(np.arange(entities.num_rows))],
        names=[*(f"k{n}" for n in range(len(view.keys))), "at", "row_no"],
    )
    latest, earliest = pc.max(at).as_py(), pc.min(at).as_py()
    connection.register("entity_rows", rows)
    try:
        query = _join_sql(view, unit, None if view.ttl_us is None else view.ttl_us * per_us, latest, earliest)
        found = connection.sql(query).to_arrow_table()
    finally:
        connection.unregister("entity_rows")
    return found.take(_positions(found.column("row_no")))


def _join_sql(view: AsOfView, unit: str, ttl: int | None, latest: int | None, earliest: int | None) -> str:
    """Rows outside the entity rows' span of time are skipped: too late to be usable, or too old to be valid."""
    keys = [key for key, _ in view.keys]
    stored = dict.fromkeys([*keys, *(c for c, _ in (*view.columns, *view.elapsed))])
    stamps = dict.fromkeys(filter(None, (view.event_timestamp, view.created_timestamp)))
    limits = [f'epoch_{unit}("{stamp}") <= {latest if latest is not None else 0}' for stamp in stamps]
    if ttl is not None and earliest is not None:
        limits.append(f'epoch_{unit}("{view.event_timestamp}") >= {earliest - ttl}')
    chosen = ", ".join(f'"{c}"' for c in {**stored, **stamps})
    usable = f"(SELECT {chosen} FROM {view.relation} WHERE {' AND '.join(limits)})"
    valid = "true" if ttl is None else f"rows.at - points.__event_at <= {ttl}"
    values = [f'CASE WHEN {valid} THEN points."{c}" END AS "{name}"' for c, name in view.columns]
    values += [f'CASE WHEN {valid} THEN epoch_us(points."{c}") END AS "{name}"' for c, name in view.elapsed]
    matches = " AND ".join(f'rows.k{n} = points."{key}"' for n, key in enumerate(keys))
    return f"""
        WITH points AS ({change_points_sql(usable, keys, view.event_timestamp, view.created_timestamp, unit)})
        SELECT {", ".join(["rows.row_no", *values])}
        FROM entity_rows AS rows ASOF LEFT JOIN points ON {matches} AND rows.at >= points.__holds_from
    """


def _unit(connection: duckdb.DuckDBPyConnection, view: AsOfView) -> str:
    relation = connection.sql(f"SELECT * FROM {view.relation}")
    kinds = dict(zip(relation.columns, map(str, relation.types), strict=True))
    stamps = [s for s in (view.event_timestamp, view.created_timestamp) if s]
    return "ns" if any(kinds.get(s, "").endswith("_NS") for s in stamps) else "us"


def _instants(column: pa.ChunkedArray, ns_per_unit: int) -> pa.ChunkedArray:
    if not pa.types.is_timestamp(column.type):
        raise EntityRowsError(f"the entity rows' instants are of type {column.type}; a timestamp is needed")
    ticks = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}[column.type.unit]
    numbers = column.cast(pa.int64())
    if ticks >= ns_per_unit:
        return pc.multiply_checked(numbers, ticks // ns_per_unit)
    # Floor, not truncation: what happened a nanosecond later is not known yet, before 1970 too.
    floored = np.floor_divide(_zero_filled(numbers), ns_per_unit)
    return pa.chunked_array([pa.array(floored, mask=_missing(numbers))])


def _positions(row_no: pa.ChunkedArray) -> pa.Array:
    """Where each entity row went: the inverse of a permutation, cheaper than a sort."""
    numbers = row_no.to_numpy()
    positions = np.empty(len(numbers), np.int64)
    positions[numbers] = np.arange(len(numbers))
    return pa.array(positions)


def _elapsed(at_us: pa.ChunkedArray, since_us: pa.ChunkedArray) -> pa.Array:
    days = elapsed_days(_zero_filled(at_us), _zero_filled(since_us))
    return pa.array(days, pa.float64(), mask=_missing(since_us))


def _missing(column: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    mask: np.ndarray[tuple[int], np.dtype[np.bool_]] = pc.is_null(column).to_numpy()
    return mask


def _zero_filled(numbers: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    filled: np.ndarray[tuple[int], np.dtype[np.int64]] = pc.fill_null(numbers, 0).to_numpy()
    return filled
