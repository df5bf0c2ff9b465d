"""Edges, found by hypothesis: small histories with late, corrected and deleted lines, at instants on or near an edge.

Offline, the file and the memory of the online store must give what brute force gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from point_in_time_oracle import (
    FEATURES,
    TTL,
    US,
    WINDOWS,
    Oracle,
    Version,
    build_activity,
    entity_rows,
    mismatches,
    versions_table,
)

from catalog.keys import Key
from lake import Lake
from ml.feature_plan import FeaturePlan, PlannedFeature, PlannedView
from ml.features import OnlineReader, OnlineView, materialize_online, online
from ml.point_in_time import AsOfView, as_of_join

START = datetime(2020, 2, 28, 23, 30)
TTL_US = TTL // US
ELAPSED = {"days_since_last_txn": "last_txn_at", "days_since_first_txn": "first_txn_at"}
STORED = tuple(
    (name, "int64" if "count" in name or "distinct" in name else "float64") for name in FEATURES if name not in ELAPSED
)
PLAN = FeaturePlan(
    service="edges",
    entity="customer_id",
    views=(PlannedView("activity", TTL_US),),
    features=tuple(
        PlannedFeature(name, "activity", "int64" if (name, "int64") in STORED else "float64", name, ELAPSED.get(name))
        for name in FEATURES
    ),
)
ACTIVITY = OnlineView(
    name="activity",
    table=Key("features", "customer", "activity"),
    entity="customer_id",
    event_timestamp="event_timestamp",
    created_timestamp="created_timestamp",
    ttl_us=TTL_US,
    columns=(*STORED, *((column, "timestamp") for column in ELAPSED.values())),
)
# Few distinct values, so that equal timestamps, repeated invoices and edges that coincide are the rule.
DAYS = st.sampled_from([0, 0, 1, 7, 23, 30, 90, 365, 400])
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def versions(draw: st.DrawFn) -> list[Version]:
    history = []
    for line in range(draw(st.integers(1, 7))):
        at = START + timedelta(days=draw(DAYS), minutes=draw(st.sampled_from([0, 0, 1])))
        known = at + draw(st.sampled_from([timedelta(0), timedelta(0), US, timedelta(days=7), timedelta(days=95)]))
        invoice = draw(st.sampled_from(["", "", "C", "A"])) + draw(st.sampled_from(["1", "2"]))
        first = Version(
            customer_id=draw(st.sampled_from([1, 1, 2])),
            invoice_no=invoice,
            line_no=line,
            stock_code=draw(st.sampled_from(["P1", "P2"])),
            quantity=draw(st.sampled_from([2, 1, -1])),
            unit_price_gbp=draw(st.sampled_from([0.1, 2.55, 0.0])),
            invoiced_at=at,
            known_from=known,
        )
        fate = draw(st.sampled_from(["kept", "kept", "deleted", "corrected", "moved"]))
        if fate == "kept":
            history.append(first)
            continue
        changed = known + draw(st.sampled_from([US, timedelta(days=1), timedelta(days=7), timedelta(days=40)]))
        history.append(Version(**{**first.__dict__, "known_to": changed}))
        later = {**first.__dict__, "known_from": changed}
        if fate == "corrected":
            history.append(Version(**{**later, "quantity": draw(st.sampled_from([3, -1]))}))
        if fate == "moved":
            history.append(Version(**{**later, "invoiced_at": at + timedelta(days=draw(st.sampled_from([-2, 3])))}))
    return history


def edges_of(history: Sequence[Version]) -> list[datetime]:
    """Every instant at which anything can change, and a microsecond on either side."""
    edges = set()
    for version in history:
        edges |= {version.invoiced_at, version.known_from, version.invoiced_at + TTL}
        edges |= {version.invoiced_at + timedelta(days=days) for days in WINDOWS}
        edges |= {version.known_to} if version.known_to else set()
    return sorted(edge + shift for edge in edges for shift in (-US, timedelta(0), US))


def offline(activity: pa.Table, entities: pa.Table) -> pa.Table:
    connection = duckdb.connect()
    connection.register("activity", activity)
    view = AsOfView(
        relation="activity",
        keys=(("customer_id", "customer_id"),),
        event_timestamp="event_timestamp",
        created_timestamp="created_timestamp",
        ttl_us=TTL_US,
        columns=tuple((name, name) for name, _ in STORED),
        elapsed=tuple((column, name) for name, column in ELAPSED.items()),
    )
    return as_of_join(connection, entities, "event_timestamp", [view])


@QUICK
@given(versions())
def test_offline_is_exact_on_and_around_every_edge(history: list[Version]) -> None:
    oracle = Oracle(history)
    pairs = [(customer, t) for customer in (1, 2, 3) for t in edges_of(history)]
    assert mismatches(oracle, pairs, offline(build_activity(versions_table(history)), entity_rows(pairs))) == []


@settings(parent=QUICK, max_examples=25)
@given(versions())
def test_online_is_exact_from_one_materialisation_at_every_instant_it_answers(
    history: list[Version],
) -> None:
    oracle = Oracle(history)
    now = max(v.enters for v in history)
    with TemporaryDirectory() as folder:
        lake = Lake(Path(folder) / "lake")
        assert ACTIVITY.table is not None
        lake.overwrite(ACTIVITY.table, build_activity(versions_table(history)))
        materialize_online(lake, Path(folder) / "online.db", [ACTIVITY], now)
        reader = OnlineReader(Path(folder) / "online.db")
        for preloaded in (False, True):
            if preloaded:
                reader.preload()
            for t in [t for t in edges_of(history) if t >= now - TTL]:
                found = online(reader, PLAN, [1, 2, 3], t)
                assert mismatches(oracle, [(1, t), (2, t), (3, t)], found) == []
        reader.close()


@settings(parent=QUICK, max_examples=25)
@given(versions(), st.integers(-14, 14), st.sampled_from(["s", "ms", "us", "ns"]))
def test_a_zone_or_a_unit_changes_nothing(history: list[Version], hours: int, unit: str) -> None:
    activity = build_activity(versions_table(history))
    pairs = [(1, t.replace(microsecond=0)) for t in edges_of(history)]
    zone = timezone(timedelta(hours=hours))
    zoned = pa.table(
        {
            "customer_id": pa.array([c for c, _ in pairs], pa.int64()),
            "event_timestamp": pa.array(
                [t.replace(tzinfo=UTC).astimezone(zone) for _, t in pairs], pa.timestamp(unit, f"{hours:+03}:00")
            ),
        }
    )
    assert offline(activity, zoned).select(FEATURES).equals(offline(activity, entity_rows(pairs)).select(FEATURES))


@settings(parent=QUICK, max_examples=25)
@given(versions(), st.randoms(use_true_random=False))
def test_every_entity_row_comes_back_in_order_repeated_ones_too(history: list[Version], draw: object) -> None:
    pairs = [(customer, t) for customer in (1, 2, 99) for t in edges_of(history)] * 2
    draw.shuffle(pairs)  # type: ignore[attr-defined]
    entities = entity_rows(pairs).append_column("note", pa.array(range(len(pairs))))
    found = offline(build_activity(versions_table(history)), entities)
    assert found.select(entities.column_names).equals(entities)
    assert mismatches(Oracle(history), pairs, found) == []
