"""The as-of join by itself: any view with event and created times, against the rule in its module's docstring."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.feature_plan import EntityRowsError, elapsed_days
from ml.point_in_time import AsOfView, as_of_join, instants_us

START = datetime(2024, 3, 1)
Row = tuple[int, int, int, int]  # key, event, created, value; instants in ticks


def view(
    created: str | None = "c", ttl_us: int | None = None, keys: tuple[tuple[str, str], ...] = (("k", "k"),)
) -> Any:
    return AsOfView(
        relation="stored",
        keys=keys,
        event_timestamp="e",
        created_timestamp=created,
        ttl_us=ttl_us,
        columns=(("v", "v"),),
    )


def join(stored: pa.Table, entities: pa.Table, *views: AsOfView) -> pa.Table:
    connection = duckdb.connect()
    connection.register("stored", stored)
    return as_of_join(connection, entities, "t", views)


def table(rows: list[Row], unit: str = "us") -> pa.Table:
    stamp = pa.timestamp(unit)
    return pa.table(
        {
            "k": pa.array([k for k, _, _, _ in rows], pa.int64()),
            "e": pa.array([e for _, e, _, _ in rows], pa.int64()).cast(stamp),
            "c": pa.array([c for _, _, c, _ in rows], pa.int64()).cast(stamp),
            "v": pa.array([v for _, _, _, v in rows], pa.int64()),
        }
    )


def asked(rows: list[tuple[int, int]], unit: str = "us") -> pa.Table:
    return pa.table(
        {
            "k": pa.array([k for k, _ in rows], pa.int64()),
            "t": pa.array([t for _, t in rows], pa.int64()).cast(pa.timestamp(unit)),
        }
    )


def brute_force(rows: list[Row], key: int, t: int, ttl: int | None) -> set[int | None]:
    """Every value that may be returned: several when rows have both instants in common."""
    usable = [(e, c, v) for k, e, c, v in rows if k == key and e <= t and c <= t]
    if not usable:
        return {None}
    best = max((e, c) for e, c, _ in usable)
    if ttl is not None and t - best[0] > ttl:
        return {None}
    return {v for e, c, v in usable if (e, c) == best}


TICKS = st.integers(-3, 12)
ROWS = st.lists(st.tuples(st.sampled_from([1, 1, 2]), TICKS, TICKS, st.integers(0, 10**6)), max_size=14)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.sampled_from([None, 0, 1, 4]), st.sampled_from(["us", "ns"]))
def test_the_join_follows_its_rule_at_every_instant(rows: list[Row], ttl: int | None, unit: str) -> None:
    pairs = [(key, t) for key in (1, 2, 3) for t in range(-5, 18)]
    # A nanosecond view has a time to live in microseconds: scale its instants so that ticks are whole microseconds.
    scale = 1_000 if unit == "ns" else 1
    stored = table([(k, e * scale, c * scale, v) for k, e, c, v in rows], unit)
    found = join(stored, asked([(k, t * scale) for k, t in pairs], unit), view(ttl_us=ttl)).column("v").to_pylist()
    for (key, t), value in zip(pairs, found, strict=True):
        assert value in brute_force(rows, key, t, ttl), (key, t)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_without_a_created_time_only_the_event_counts(rows: list[Row]) -> None:
    pairs = [(key, t) for key in (1, 2) for t in range(-5, 15)]
    found = join(table(rows), asked(pairs), view(created=None)).column("v").to_pylist()
    for (key, t), value in zip(pairs, found, strict=True):
        best = max((e for k, e, _, _ in rows if k == key and e <= t), default=None)
        assert value in ({v for k, e, _, v in rows if (k, e) == (key, best)} or {None})


def test_a_nanosecond_after_is_not_yet_known() -> None:
    stored = table([(1, 1_000_000_500, 1_000_000_500, 7)], "ns")
    entities = asked([(1, 1_000_000_499), (1, 1_000_000_500), (1, 1_000_000_501)], "ns")
    assert join(stored, entities, view()).column("v").to_pylist() == [None, 7, 7]


def test_instants_before_1970_are_rounded_down() -> None:
    column = pa.chunked_array([pa.array([-1, -1_000, -1_001, 999, None], pa.timestamp("ns"))])
    assert instants_us(column).to_pylist() == [-1, -1, -2, 0, None]


def test_a_row_without_instant_or_key_comes_back_without_features() -> None:
    entities = pa.table({"k": pa.array([1, None, 1]), "t": pa.array([None, START, START], pa.timestamp("us"))})
    stored = table([(1, 0, 0, 7)])
    assert join(stored, entities, view()).column("v").to_pylist() == [None, None, 7]


def test_no_rows_give_no_rows_with_the_right_columns() -> None:
    found = join(table([(1, 0, 0, 7)]), asked([]), view())
    assert found.num_rows == 0
    assert found.column_names == ["k", "t", "v"]
    assert join(table([]), asked([(1, 5)]), view()).column("v").to_pylist() == [None]


def test_two_keys_and_other_names() -> None:
    stored = pa.table({"k": [1, 1], "shop": ["a", "b"], "e": [START, START], "c": [START, START], "v": [10, 20]})
    entities = pa.table({"customer": [1, 1, 1], "at_shop": ["b", "a", "c"], "t": [START] * 3})
    pairs = (("k", "customer"), ("shop", "at_shop"))
    assert join(stored, entities, view(keys=pairs)).column("v").to_pylist() == [20, 10, None]


def test_columns_may_have_any_name() -> None:
    """A timestamp field called event_at is common; nothing of the query's own may be shadowed by it."""
    stored = table([(1, 5, 9, 7)]).rename_columns(["k", "event_at", "holds_from", "row_no"])
    named = AsOfView("stored", (("k", "k"),), "event_at", "holds_from", 100, (("row_no", "at"), ("row_no", "event_at")))
    assert join(stored, asked([(1, 8), (1, 9)]), named).column("at").to_pylist() == [None, 7]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(EntityRowsError, match=r"entity rows lack k; found columns customer, t"):
        join(table([]), pa.table({"customer": [1], "t": [START]}), view())
    with pytest.raises(EntityRowsError, match="already have columns named like features: v"):
        join(table([]), pa.table({"k": [1], "t": [START], "v": [1]}), view())
    with pytest.raises(EntityRowsError, match="of type string; a timestamp is needed"):
        join(table([]), pa.table({"k": [1], "t": ["2024-03-01"]}), view())


def test_elapsed_days_are_real_and_the_same_for_numbers_and_arrays() -> None:
    assert elapsed_days(129_600_000_000, 0) == 1.5
    since = START + timedelta(hours=6)
    stored = pa.table({"k": [1], "e": [START], "c": [START], "since": [since]})
    joined = AsOfView("stored", (("k", "k"),), "e", "c", None, (), (("since", "days"),))
    at = START + timedelta(days=2)
    found = join(stored, pa.table({"k": [1, 2], "t": [at, at]}), joined)
    assert found.column("days").to_pylist() == [1.75, None]
