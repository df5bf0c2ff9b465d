"""The online store's file and its reader, without Feast."""

from __future__ import annotations

import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog.keys import Key
from lake import Lake
from ml.feature_plan import BeforeHorizonError, FeatureError, FeaturePlan, OnlineStoreError, PlannedFeature, PlannedView
from ml.features import OnlineReader, OnlineView, materialize_online
from ml.online_writer import merge_rows
from ml.packed import Layout

DAY = timedelta(days=1)
START = datetime(2024, 1, 1)
TTL_US = 10 * 86_400 * 1_000_000
TABLE = Key("features", "customer", "visits")
COLUMNS = (("visits", "int64"), ("spend", "float64"), ("country", "string"), ("vip", "bool"), ("seen_at", "timestamp"))
VIEW = OnlineView("visits", TABLE, "customer_id", "event_timestamp", "created_timestamp", TTL_US, COLUMNS)
PLAN = FeaturePlan(
    "churn",
    "customer_id",
    (PlannedView("visits", TTL_US),),
    (
        PlannedFeature("country", "visits", "string", "country"),
        PlannedFeature("visits", "visits", "int64", "visits"),
        PlannedFeature("spend", "visits", "float64", "spend"),
        PlannedFeature("days_away", "visits", "float64", "days_away", "seen_at"),
        PlannedFeature("vip", "visits", "bool", "vip"),
    ),
)


def rows(*found: tuple[int, float, float, Any, Any, Any, Any]) -> pa.Table:
    """(customer, event day, created day, visits, spend, country, vip); seen when the event was."""
    return pa.table(
        {
            "customer_id": pa.array([r[0] for r in found], pa.int64()),
            "event_timestamp": pa.array([START + r[1] * DAY for r in found], pa.timestamp("us")),
            "created_timestamp": pa.array([START + r[2] * DAY for r in found], pa.timestamp("us")),
            "visits": pa.array([r[3] for r in found], pa.int64()),
            "spend": pa.array([r[4] for r in found], pa.float64()),
            "country": pa.array([r[5] for r in found], pa.string()),
            "vip": pa.array([r[6] for r in found], pa.bool_()),
            "seen_at": pa.array([START + r[1] * DAY for r in found], pa.timestamp("us")),
        }
    )


TWO = rows(
    (1, 0, 0, 1, 2.5, "France", True),
    (1, 3, 3, 2, None, "Eire", False),
    (1, 3, 8, 0, 0.0, None, None),
    (2, 1, 1, 5, 9.0, "France", False),
)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def filled(lake: Lake, path: Path, table: pa.Table = TWO, now: datetime | None = None) -> int:
    lake.overwrite(TABLE, table)
    return materialize_online(lake, path, [VIEW], now)


def values(reader: OnlineReader, customer: int, day: float) -> tuple[Any, ...] | None:
    (row,) = reader.read(PLAN, [customer], START + day * DAY)
    return row.values if row else None


def test_a_read_is_as_of_any_later_instant(lake: Lake, tmp_path: Path) -> None:
    assert filled(lake, tmp_path / "online.db") == 4
    reader = OnlineReader(tmp_path / "online.db")
    for preloaded in (False, True):
        if preloaded:
            assert reader.preload() == 2
        assert values(reader, 1, 2) == ("France", 1, 2.5, 2.0, True)
        assert values(reader, 1, 3) == ("Eire", 2, None, 0.0, False)
        assert values(reader, 1, 8) == (None, 0, 0.0, 5.0, None)
        assert values(reader, 1, 13) == (None, 0, 0.0, 10.0, None)
        assert values(reader, 1, 13.001) == (None,) * 5
        assert values(reader, 2, 0.5) is None
        assert values(reader, 77, 5) is None
        (row,) = reader.read(PLAN, [1], START + 8 * DAY)
        assert row is not None
        assert row.as_of == {"visits": START + 3 * DAY}
        (expired,) = reader.read(PLAN, [1], START + 13.001 * DAY)
        assert expired is not None, "known, although nothing that is known still counts"
        assert expired.as_of == {"visits": None}
    reader.close()


def test_repeated_and_unknown_customers_keep_their_places(lake: Lake, tmp_path: Path) -> None:
    filled(lake, tmp_path / "online.db")
    reader = OnlineReader(tmp_path / "online.db")
    found = reader.read(PLAN, [2, 9, 2, 1], START + 4 * DAY)
    assert [row.values[1] if row else None for row in found] == [5, None, 5, 2]
    assert reader.read(PLAN, [], START) == []
    reader.close()


def test_a_new_materialisation_is_seen(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    filled(lake, path)
    live, held = OnlineReader(path), OnlineReader(path)
    held.preload()
    assert held.refresh() is False
    filled(lake, path, rows((1, 0, 0, 100, 2.5, "Spain", True)))
    assert values(live, 1, 1) == ("Spain", 100, 2.5, 1.0, True)
    assert values(live, 2, 1) is None
    assert values(held, 1, 1) == ("France", 1, 2.5, 1.0, True)
    assert held.refresh() is True
    assert values(held, 1, 1) == ("Spain", 100, 2.5, 1.0, True)
    live.close()
    held.close()


def test_readers_never_see_half_a_materialisation(lake: Lake, tmp_path: Path) -> None:
    """Every customer of a generation has the same country; threads share one reader while generations are written."""
    path = tmp_path / "online.db"
    tables = [rows(*((c, 0, 0, 1, 1.0, country, True) for c in range(40))) for country in ("France", "Eire", "Spain")]
    filled(lake, path, tables[0])
    reader, stop, mixed = OnlineReader(path), threading.Event(), []

    def watch(preloaded: OnlineReader) -> None:
        while not stop.is_set():
            preloaded.refresh()
            found = {row.values[0] for row in preloaded.read(PLAN, range(40), START + DAY) if row}
            if len(found) != 1:
                mixed.append(found)

    held = OnlineReader(path)
    held.preload()
    threads = [threading.Thread(target=watch, args=(each,)) for each in (reader, reader, held, held)]
    for thread in threads:
        thread.start()
    for round_no in range(12):
        filled(lake, path, tables[round_no % 3])
    stop.set()
    for thread in threads:
        thread.join()
    assert mixed == []
    reader.close()
    held.close()


def test_a_failed_materialisation_leaves_the_old_one(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    filled(lake, path)
    lake.overwrite(TABLE, TWO.drop_columns(["spend"]))
    with pytest.raises(Exception, match="spend"):
        materialize_online(lake, path, [VIEW])
    reader = OnlineReader(path)
    assert values(reader, 1, 2) == ("France", 1, 2.5, 2.0, True)
    reader.close()


def test_only_what_the_time_to_live_needs_is_kept_and_older_reads_are_refused(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    history = rows(*((1, day, day, day, 1.0, "France", True) for day in range(60)), (2, 1, 1, 9, 1.0, "Eire", True))
    assert filled(lake, path, history, START + 60 * DAY) == 10
    reader = OnlineReader(path)
    assert values(reader, 1, 50.5) == ("France", 50, 1.0, 0.5, True)
    assert values(reader, 1, 60) == ("France", 59, 1.0, 1.0, True)
    with pytest.raises(BeforeHorizonError, match="from 2024-02-20T00:00:00 on, asked was 2024-01-02"):
        values(reader, 1, 1)
    reader.close()


def test_with_nothing_that_is_needed_a_customer_has_no_values(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    assert filled(lake, path, TWO, START + 60 * DAY) == 0
    reader = OnlineReader(path)
    assert values(reader, 1, 60) is None
    reader.close()


def test_merged_rows_and_a_bulk_write_answer_alike(lake: Lake, tmp_path: Path) -> None:
    bulk, merged = tmp_path / "bulk.db", tmp_path / "merged.db"
    filled(lake, bulk)
    for part in (TWO.slice(3, 1), TWO.slice(1, 1), TWO.slice(0, 2), TWO.slice(2, 1), TWO):
        merge_rows(merged, VIEW, part)
    readers = [OnlineReader(bulk), OnlineReader(merged)]
    for day in (0, 0.5, 1, 2, 3, 7.9, 8, 13, 14):
        one, other = (reader.read(PLAN, [1, 2, 3], START + day * DAY) for reader in readers)
        assert one == other, day
    for reader in readers:
        reader.close()


def test_a_late_row_merged_later_wins_only_when_it_is_newer(tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    merge_rows(path, VIEW, rows((1, 5, 5, 2, 1.0, "Eire", True)))
    merge_rows(path, VIEW, rows((1, 4, 6, 1, 1.0, "Spain", True)))
    reader = OnlineReader(path)
    found = values(reader, 1, 7)
    assert found is not None
    assert found[0] == "Eire"
    reader.close()


def test_more_columns_than_a_mask_has_bits(lake: Lake, tmp_path: Path) -> None:
    names = [f"f{n}" for n in range(130)]
    wide = OnlineView("wide", TABLE, "customer_id", "event_timestamp", None, None, tuple((n, "int64") for n in names))
    columns: dict[str, Any] = {n: pa.array([i if i % 3 else None], pa.int64()) for i, n in enumerate(names)}
    stamp = pa.array([START], pa.timestamp("us"))
    lake.overwrite(TABLE, pa.table({"customer_id": [1], "event_timestamp": stamp, **columns}))
    materialize_online(lake, tmp_path / "online.db", [wide])
    plan = FeaturePlan(
        "w", "customer_id", (PlannedView("wide", None),), tuple(PlannedFeature(n, "wide", "int64", n) for n in names)
    )
    reader = OnlineReader(tmp_path / "online.db")
    (row,) = reader.read(plan, [1], START)
    assert row is not None
    assert row.values == tuple(i if i % 3 else None for i in range(130))
    assert Layout(wide.columns).masks == 3
    reader.close()


def test_what_is_missing_is_named(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    with pytest.raises(FileNotFoundError, match="headwater run"):
        OnlineReader(path)
    filled(lake, path)
    reader = OnlineReader(path)
    other = FeaturePlan("m", "customer_id", (PlannedView("spend", None),), ())
    typed = FeaturePlan("m", "customer_id", PLAN.views, (PlannedFeature("visits", "visits", "float64", "visits"),))
    for preloaded in (False, True):
        if preloaded:
            reader.preload()
        with pytest.raises(OnlineStoreError, match="no view 'spend'"):
            reader.read(other, [1], START)
        with pytest.raises(OnlineStoreError, match="needs visits:visits as float64; the online store has int64"):
            reader.read(typed, [1], START)
    reader.close()


def test_a_merge_with_other_columns_is_refused(lake: Lake, tmp_path: Path) -> None:
    filled(lake, tmp_path / "online.db")
    other = OnlineView("visits", TABLE, "customer_id", "event_timestamp", "created_timestamp", TTL_US, COLUMNS[:2])
    with pytest.raises(OnlineStoreError, match="materialise it anew"):
        merge_rows(tmp_path / "online.db", other, TWO)


def test_a_plan_survives_json_and_a_broken_one_is_refused() -> None:
    assert FeaturePlan.from_json(PLAN.to_json()) == PLAN
    assert FeaturePlan.from_json(PLAN.to_json()).digest() == PLAN.digest()
    for text in ("", "{}", '{"service": 1}', "[]"):
        with pytest.raises(FeatureError, match="not a feature plan"):
            FeaturePlan.from_json(text)


def test_the_serving_path_imports_neither_feast_nor_pandas() -> None:
    import subprocess

    code = "import sys, ml.features; print([m for m in ('feast', 'pandas', 'mlflow') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
