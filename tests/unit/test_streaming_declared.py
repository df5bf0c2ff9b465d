"""What a declaration makes: tables that nothing emits, columns that change, amounts of any size, homes of any name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog.keys import Key, cdc_topic, quarantine, raw
from catalog.load import load_catalog
from catalog.spec import Column, Source
from lake.query import query
from lake.tables import Lake, UnusablePathError, quoted
from streaming.landing import ChangedColumnsError, land, landed_health
from streaming.replay import replay
from streaming.simulator import simulate
from streaming.sqlite_log import SqliteLog

CATALOG = Path(__file__).resolve().parents[2] / "catalog"
RETURNS = """
system: shop
table: returns
description: Parcels that came back, which the shop's database does not have yet.
owner: team:test
domain: sales
columns:
  - {name: parcel_no, type: string, nullable: false, description: "Number on the parcel."}
  - {name: refund_gbp, type: float64, description: "Amount refunded in pounds sterling."}
  - {name: weighed, type: bool, description: "Whether it was weighed."}
  - {name: returned_at, type: timestamp, nullable: false, description: "Instant of arrival (UTC)."}
gate: {key: [parcel_no], event_time: returned_at, freshness_days: 7}
"""
RAW = raw("shop", "returns")
T0 = datetime(2020, 3, 2, 9)
T0_US = int((T0 - datetime(1970, 1, 1)).total_seconds()) * 1_000_000
ROW = {"parcel_no": "p1", "refund_gbp": 1.5, "weighed": True, "returned_at": T0_US}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    with SqliteLog(tmp_path / "log.db") as opened:
        yield opened


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Source, ...]:
    """The project's sources and one more file."""
    directory = tmp_path / "catalog"
    (directory / "sources").mkdir(parents=True)
    for file in (CATALOG / "sources").glob("*.yaml"):
        (directory / "sources" / file.name).write_text(file.read_text())
    (directory / "sources" / "returns.yaml").write_text(RETURNS)
    return load_catalog(directory).sources


@pytest.fixture
def returns(sources: tuple[Source, ...]) -> Source:
    return next(s for s in sources if s.table == "returns")


def append(log: SqliteLog, *rows: dict[str, Any]) -> None:
    """Insertions into shop.returns."""
    values = [
        json.dumps({"before": None, "after": r, "op": "c", "source": {"ts_ms": T0_US // 1000, "lsn": 1}}) for r in rows
    ]
    table = pa.table({"key": ["{}"] * len(rows), "value": values, "timestamp_us": [T0_US] * len(rows)})
    log.append({cdc_topic("shop", "returns"): table})


def changed(source: Source, *columns: Column, without: str = "") -> Source:
    """The source with columns replaced (by name), added, or left out."""
    new = {c.name: c for c in (*source.columns, *columns) if c.name != without}
    return source.model_copy(update={"columns": tuple(new.values())})


def test_a_declared_table_that_nothing_emits_is_there_and_empty(
    log: SqliteLog, lake: Lake, sources: tuple[Source, ...], returns: Source, tmp_path: Path
) -> None:
    lines = simulate(seed=3, lines=2_000).lines
    replay(lines, log, tmp_path / "replay.json")
    reports = {s.table: land(s, log, lake, 10_000) for s in sources}
    assert reports["order_lines"].landed == lines.num_rows
    assert min(r.landed for name, r in reports.items() if name != "returns") > 0
    assert (reports["returns"].read, reports["returns"].batches) == (0, 0)
    assert lake.rows(RAW) == lake.rows(quarantine("shop", "returns")) == 0
    assert landed_health(returns, lake).quarantined_pct == 0.0
    found = query(lake, "SELECT parcel_no, refund_gbp, weighed, returned_at, landed_at FROM raw.shop.returns")
    assert [str(t) for t in found.schema.types] == ["string", "double", "bool", "timestamp[us]", "timestamp[us]"]
    assert found.num_rows == 0
    append(log, ROW)  # and when it comes, it lands
    assert land(returns, log, lake, 10).landed == 1
    assert lake.read(RAW, ["parcel_no", "returned_at"]).to_pylist() == [{"parcel_no": "p1", "returned_at": T0}]


CHANNEL = Column(name="channel", type="string", description="By which way.")


@pytest.mark.parametrize(
    ("columns", "without", "found"),
    [
        (
            (CHANNEL.model_copy(update={"nullable": False}),),
            "",
            "channel: found no such column, declared is string",
        ),
        ((), "weighed", "weighed: found bool, declared is none"),
        (
            (Column(name="refund_gbp", type="int64", description="Whole pounds."),),
            "",
            "refund_gbp: found double, declared is int64",
        ),
    ],
)
def test_what_has_landed_is_not_cast_to_what_is_declared_now(
    log: SqliteLog, lake: Lake, returns: Source, columns: tuple[Column, ...], without: str, found: str
) -> None:
    """Delta itself would write a declared 1.5 into an int64 column as 1."""
    append(log, ROW)
    land(returns, log, lake, 10)
    append(log, ROW | {"refund_gbp": 2})
    before = lake.read(RAW)
    with pytest.raises(ChangedColumnsError, match=rf"raw\.shop\.returns has .*: {found}\..*runbooks/landing_changed"):
        land(changed(returns, *columns, without=without), log, lake, 10)
    assert lake.read(RAW).equals(before)
    assert land(returns, log, lake, 10).landed == 1


def test_a_column_that_is_declared_later_is_null_in_what_had_landed(
    log: SqliteLog, lake: Lake, returns: Source
) -> None:
    append(log, ROW)
    land(returns, log, lake, 10)
    append(log, ROW | {"channel": "web"})
    land(changed(returns, CHANNEL), log, lake, 10)
    assert sorted(lake.read(RAW, ["channel"])["channel"].to_pylist(), key=str) == [None, "web"]


def test_columns_in_another_order_are_the_same_columns(log: SqliteLog, lake: Lake, returns: Source) -> None:
    append(log, ROW)
    land(returns, log, lake, 10)
    append(log, ROW)
    land(returns.model_copy(update={"columns": returns.columns[::-1]}), log, lake, 10)
    first, second = lake.read(RAW, list(ROW)).to_pylist()
    assert first == second == ROW | {"returned_at": T0}


def test_a_table_in_which_nothing_landed_takes_the_columns_that_are_declared(
    log: SqliteLog, lake: Lake, returns: Source
) -> None:
    land(returns, log, lake, 10)
    other = changed(returns, CHANNEL, without="weighed")
    land(other, log, lake, 10)
    append(log, ROW | {"channel": "web"})
    land(other, log, lake, 10)
    [row] = lake.read(RAW).to_pylist()
    assert row["channel"] == "web"
    assert "weighed" not in row


# The double nearest to each is exact to the penny.
WIDE = ["1234567890123.45", "-9876543210987.65", "99999999999999.25", "1000000000000.000977", "0.000001"]


def test_amounts_beyond_a_million_millions_survive_landing(log: SqliteLog, lake: Lake, returns: Source) -> None:
    append(log, *[ROW | {"parcel_no": text, "refund_gbp": float(text)} for text in WIDE])
    assert land(returns, log, lake, 2).quarantined == 0
    landed = query(
        lake, "SELECT parcel_no, refund_gbp, refund_gbp::DECIMAL(38, 6) AS exact FROM raw.shop.returns"
    ).to_pylist()
    assert {r["parcel_no"]: r["refund_gbp"] for r in landed} == {text: float(text) for text in WIDE}
    assert all(abs(r["exact"] - Decimal(r["parcel_no"])) < Decimal("0.005") for r in landed)


def test_a_decimal_column_may_be_widened_and_is_exact_also_when_empty(lake: Lake) -> None:
    key = Key("marts", "sales", "amounts")
    narrow, wide = pa.decimal128(18, 2), pa.decimal128(38, 6)
    lake.overwrite(key, pa.table({"gbp": pa.array([Decimal("1.25")], narrow)}))
    amounts = [Decimal("12345678901234567890123456789012.345678"), Decimal("-1000000000000.000001"), None]
    lake.overwrite(key, pa.table({"gbp": pa.array(amounts, wide)}))
    assert lake.read(key)["gbp"].to_pylist() == amounts
    lake.append(key, pa.table({"gbp": pa.array([Decimal("1.000001")], wide)}))
    assert sum(v for v in lake.read(key)["gbp"].to_pylist() if v is not None) == sum(amounts[:2], Decimal("1.000001"))
    lake.overwrite(key, pa.table({"gbp": pa.array([], wide)}))
    assert lake.read(key).schema.field("gbp").type == lake.schema(key).field("gbp").type == wide


NAMES = ["a home", "größe ✓", "o'neil", 'the "home"', "100%", "%zz", "a+b&c;d=e", "star*", "~{x,y}", " . "]


@pytest.mark.parametrize("name", NAMES)
def test_a_home_may_have_such_a_name(tmp_path: Path, returns: Source, name: str) -> None:
    home = tmp_path / name / "home"
    lake = Lake(home / "lake")
    with SqliteLog(home / "log.db") as log:
        append(log, ROW, {"parcel_no": None}, ROW)
        report = land(returns, log, lake, 2)
        assert (report.landed, report.quarantined) == (2, 1)
        assert land(returns, log, Lake(home / "lake"), 2).read == 0
    assert lake.offset(RAW, "cdc.shop.returns-0") == 3
    assert lake.keys() == [RAW, quarantine("shop", "returns")]
    assert all(Path(file).is_file() and Path(file).is_relative_to(home) for file in lake.files(RAW))
    with lake.connect([]) as db:
        assert db.sql(f"SELECT count(*) FROM {lake.scan_sql(RAW)}").fetchall() == [(2,)]
    assert query(lake, f"SELECT count(*) AS n FROM {quoted(RAW)}").to_pylist() == [{"n": 2}]
    before = lake.version(RAW) or 0
    lake.overwrite(RAW, lake.schema(RAW).empty_table())
    assert (lake.rows(RAW), lake.version(RAW)) == (0, before + 1)
    assert lake.committed_at(RAW) > T0
    assert {p.name for p in tmp_path.iterdir()} == {name, "catalog"}


@pytest.mark.parametrize("name", ["a%20b", "%C3%BC", "50%25", "a#b", "a?b", "a[1]", "a^b", "a|b", "a\\b", "a\nb"])
def test_a_home_that_delta_would_look_for_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    """It decodes a path twice: what is written to `a%20b` is then read from `a b`, which may be another home."""
    other = Lake(tmp_path / "a b")
    other.append(RAW, pa.table({"n": [1]}))
    (tmp_path / "link").symlink_to(tmp_path / name)
    for root in (tmp_path / name, tmp_path / name / "lake", tmp_path / "link"):
        with pytest.raises(UnusablePathError, match=r"in the path.*HEADWATER_HOME"):
            Lake(root)
    assert not (tmp_path / name).exists()
    assert other.read(RAW)["n"].to_pylist() == [1]
