"""Landing: what fits the contract lands, the rest goes to quarantine with its reason, each exactly once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog.keys import Key, quarantine, raw, served, served_topic
from catalog.load import load_catalog
from catalog.spec import Source
from lake.tables import Lake, MissingTableError
from streaming.landing import GROUP, LostLogError, land, land_served, landed_health
from streaming.log import TopicPartition
from streaming.sqlite_log import SqliteLog

CATALOG = Path(__file__).resolve().parents[2] / "catalog"
TOPIC = "cdc.shop.order_lines"
RAW, QUARANTINE = raw("shop", "order_lines"), quarantine("shop", "order_lines")
T0 = datetime(2020, 3, 2, 9)
T0_US = int((T0 - datetime(1970, 1, 1)).total_seconds()) * 1_000_000
ROW = {
    "invoice_no": "1",
    "line_no": 1,
    "customer_id": 7,
    "stock_code": "A",
    "quantity": 2,
    "unit_price_gbp": 1.5,
    "invoiced_at": T0_US,
}
NO_VALUES = dict.fromkeys(name for name in ROW if name not in ("invoice_no", "line_no"))
LANDED = {
    **ROW,
    "invoiced_at": T0,
    "change_op": "c",
    "source_epoch": 1,
    "source_position": 11,
    "source_order": 0,
    "tx_id": 4,
    "event_at": T0,
    "landed_at": T0 + timedelta(minutes=5),
    "log_partition": 0,
    "log_offset": 0,
}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    with SqliteLog(tmp_path / "log.db") as opened:
        yield opened


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture(scope="module")
def source() -> Source:
    return load_catalog(CATALOG).source("order_lines")


def envelope(**changed: Any) -> dict[str, Any]:
    """A good envelope with parts replaced; a part that is ... is left out."""
    whole = {
        "before": None,
        "after": ROW,
        "op": "c",
        "ts_ms": T0_US // 1000,
        "source": {"ts_ms": T0_US // 1000, "lsn": 11, "txId": 4},
    }
    return {name: part for name, part in (whole | changed).items() if part is not ...}


def row(**changed: Any) -> dict[str, Any]:
    """A good row with values replaced; a value that is ... is left out."""
    return {name: value for name, value in (ROW | changed).items() if value is not ...}


def append(log: SqliteLog, *values: Any, topic: str = TOPIC, key: str | None = "{}") -> None:
    texts = [v if isinstance(v, str) or v is None else json.dumps(v) for v in values]
    at = [T0_US + 300_000_000] * len(texts)
    log.append(
        {topic: pa.table({"key": pa.array([key] * len(texts), pa.string()), "value": texts, "timestamp_us": at})}
        if any(texts)
        else {
            topic: pa.table({"key": [key] * len(texts), "value": pa.nulls(len(texts), pa.string()), "timestamp_us": at})
        }
    )


def rows(lake: Lake, key: Key) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lake.read(key).sort_by("log_offset").to_pylist()
    return found


def test_a_row_lands_with_both_clocks_and_its_place(log: SqliteLog, lake: Lake, source: Source) -> None:
    append(log, envelope())
    report = land(source, log, lake, 100)
    assert rows(lake, RAW) == [LANDED]
    assert (report.key, report.read, report.landed, report.quarantined, report.batches) == (RAW, 1, 1, 0, 1)
    assert report.version == lake.version(RAW)
    assert lake.offset(RAW, f"{TOPIC}-0") == 1
    assert log.committed(GROUP, TopicPartition(TOPIC, 0)) == 1
    assert rows(lake, QUARANTINE) == []


@pytest.mark.parametrize(
    ("value", "landed"),
    [
        (envelope(op="u", before=ROW, after=row(quantity=3)), {"change_op": "u", "quantity": 3}),
        (envelope(op="d", before=row(quantity=9), after=None), {"change_op": "d", "quantity": 9}),
        (envelope(op="r"), {"change_op": "r"}),
        (envelope(after=row(customer_id=None)), {"customer_id": None}),
        (envelope(after=row(customer_id=...)), {"customer_id": None}),
        (envelope(after=row(extra={"a": [1]})), {}),
        (envelope(after=row(stock_code='a"b\\c\né£')), {"stock_code": 'a"b\\c\né£'}),
        (envelope(after=row(stock_code="")), {"stock_code": ""}),
        (envelope(after=row(unit_price_gbp=2)), {"unit_price_gbp": 2.0}),
        (envelope(after=row(unit_price_gbp=-1e-7)), {"unit_price_gbp": -1e-7}),
        (envelope(after=row(quantity=-(2**63))), {"quantity": -(2**63)}),
        (envelope(after=row(invoiced_at="2020-03-02T11:00:00+02:00")), {}),
        (envelope(after=row(invoiced_at="2020-03-02T09:00:00Z")), {}),
        (envelope(after=row(invoiced_at=-1)), {"invoiced_at": datetime(1969, 12, 31, 23, 59, 59, 999_999)}),
        (
            envelope(source={"ts_us": T0_US + 1, "ts_ms": 5, "lsn": 11, "txId": 4}),
            {"event_at": T0 + timedelta(microseconds=1)},
        ),
        (envelope(source={"ts_ms": T0_US // 1000, "lsn": 11}), {"tx_id": None}),
        (envelope(after=row(invoiced_at="2020-03-02 10:00:00 Europe/Paris")), {}),
        (envelope(after=row(invoiced_at="9999-12-31T23:59:59.999999")), {"invoiced_at": datetime.max}),
        (envelope(op="d", before={"invoice_no": "1", "line_no": 1}, after=None), {**NO_VALUES, "change_op": "d"}),
        (envelope(op="d", before=row(**NO_VALUES), after=None), {**NO_VALUES, "change_op": "d"}),
        (envelope(op="d", before=row(quantity="abc"), after=None), {"change_op": "d", "quantity": None}),
    ],
)
def test_what_lands(log: SqliteLog, lake: Lake, source: Source, value: Any, landed: dict[str, Any]) -> None:
    append(log, value)
    report = land(source, log, lake, 100)
    assert report.reasons == {}
    assert rows(lake, RAW) == [LANDED | landed]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "value: not a JSON object, found "),
        ("{not json", "value: not a JSON object, found {not json"),
        ("[1, 2]", "op: not one of c, u, d, r, t, found none"),
        ('"text"', "op: not one of c, u, d, r, t, found none"),
        (envelope(op="m"), "op: not one of c, u, d, r, t, found m"),
        (envelope(op=...), "op: not one of c, u, d, r, t, found none"),
        (envelope(op=7), "op: not one of c, u, d, r, t, found 7"),
        (envelope(after=None), "after: missing or null (before, for a delete)"),
        (envelope(after=...), "after: missing or null (before, for a delete)"),
        (envelope(op="d"), "after: missing or null (before, for a delete)"),
        (envelope(op="d", before=7), "after: not a JSON object (before, for a delete), found 7"),
        (envelope(after="1,A,2"), 'after: not a JSON object (before, for a delete), found "1,A,2"'),
        (envelope(after=[1, 2]), "after: not a JSON object (before, for a delete), found [1,2]"),
        (envelope(after={}), "invoice_no: missing, but required"),
        (envelope(after=row(quantity=...)), "quantity: missing, but required"),
        (envelope(op="d", before=row(line_no=...), after=None), "line_no: missing, but required"),
        (envelope(op="d", before=row(line_no=None), after=None), "line_no: null, but must not be"),
        (envelope(op="d", before=row(line_no="abc"), after=None), 'line_no: not an int64, found "abc"'),
        (envelope(after=row(quantity=None)), "quantity: null, but must not be"),
        (envelope(after=row(invoice_no=None)), "invoice_no: null, but must not be"),
        (envelope(after=row(quantity="abc")), 'quantity: not an int64, found "abc"'),
        (envelope(after=row(quantity="12")), 'quantity: not an int64, found "12"'),
        (envelope(after=row(quantity=12.5)), "quantity: not an int64, found 12.5"),
        (envelope(after=row(quantity=True)), "quantity: not an int64, found true"),
        (envelope(after=row(quantity=2**63)), "quantity: not an int64, found 9223372036854775808"),
        (envelope(after=row(quantity=[1])), "quantity: not an int64, found [1]"),
        (envelope(after=row(customer_id="x")), 'customer_id: not an int64, found "x"'),
        (envelope(after=row(stock_code=85123)), "stock_code: not a string, found 85123"),
        (envelope(after=row(stock_code={"a": 1})), 'stock_code: not a string, found {"a":1}'),
        (envelope(after=row(unit_price_gbp="1.5")), 'unit_price_gbp: not a float64, found "1.5"'),
        (envelope(after=row(unit_price_gbp=float("nan"))), "unit_price_gbp: not a float64, found NaN"),
        (envelope(after=row(unit_price_gbp=float("inf"))), "unit_price_gbp: not a float64, found Infinity"),
        (envelope(after=row(invoiced_at="soon")), 'invoiced_at: not a timestamp, found "soon"'),
        (envelope(after=row(invoiced_at=10**18)), "invoiced_at: not a timestamp, found 1000000000000000000"),
        (envelope(after=row(invoiced_at="infinity")), 'invoiced_at: not a timestamp, found "infinity"'),
        (envelope(after=row(invoiced_at="epoch")), 'invoiced_at: not a timestamp, found "epoch"'),
        (envelope(after=row(invoiced_at="-infinity")), 'invoiced_at: not a timestamp, found "-infinity"'),
        (envelope(after=row(invoiced_at="20200-03-02")), 'invoiced_at: not a timestamp, found "20200-03-02"'),
        (envelope(after=row(stock_code=["x" * 100])), 'stock_code: not a string, found ["' + "x" * 58),
        (envelope(source=...), "source.ts_ms: missing or out of range"),
        (envelope(source={"ts_ms": "x"}), "source.ts_ms: missing or out of range"),
        (envelope(source={"ts_ms": 2**62}), "source.ts_ms: missing or out of range"),
        (envelope(source={"ts_ms": T0_US // 1000}), "source.lsn: missing or not an integer"),
        (
            envelope(source={"ts_ms": T0_US // 1000, "lsn": "0/1A"}),
            'source.lsn: missing or not an integer, found "0/1A"',
        ),
    ],
)
def test_what_goes_to_quarantine_and_why(log: SqliteLog, lake: Lake, source: Source, value: Any, reason: str) -> None:
    append(log, envelope(), value, envelope())
    report = land(source, log, lake, 100)
    assert [r["log_offset"] for r in rows(lake, RAW)] == [0, 2]
    (held,) = rows(lake, QUARANTINE)
    assert held == {
        "reason": reason,
        "topic": TOPIC,
        "log_partition": 0,
        "log_offset": 1,
        "landed_at": T0 + timedelta(minutes=5),
        "key": "{}",
        "value": value if isinstance(value, str) else json.dumps(value),
    }
    assert report.reasons == {reason.split(", found ")[0]: 1}


def test_a_record_without_a_possible_time_does_not_stop_the_others(log: SqliteLog, lake: Lake, source: Source) -> None:
    value = json.dumps(envelope())
    log.append({TOPIC: pa.table({"key": ["{}"] * 2, "value": [value] * 2, "timestamp_us": [2**63 - 1, T0_US]})})
    assert land(source, log, lake, 100).reasons == {"timestamp: out of range": 1}
    assert [r["landed_at"] for r in rows(lake, RAW)] == [T0]
    assert [r["landed_at"] for r in rows(lake, QUARANTINE)] == [None]


def test_a_null_key_is_quarantined(log: SqliteLog, lake: Lake, source: Source) -> None:
    append(log, envelope(), key=None)
    assert land(source, log, lake, 100).reasons == {"key: null": 1}


def test_tombstones_are_read_and_nothing_more(log: SqliteLog, lake: Lake, source: Source) -> None:
    append(log, envelope(op="d", before=ROW, after=None))
    append(log, None)
    report = land(source, log, lake, 100)
    assert (report.read, report.landed, report.quarantined, report.tombstones) == (2, 1, 0, 1)
    assert land(source, log, lake, 100).read == 0


def test_a_batch_that_is_all_quarantine_moves_on(log: SqliteLog, lake: Lake, source: Source) -> None:
    append(log, *["bad"] * 5)
    first = land(source, log, lake, 2)
    assert (first.landed, first.quarantined, first.batches) == (0, 5, 3)
    assert land(source, log, lake, 2).read == 0
    assert lake.rows(RAW) == 0
    assert lake.rows(QUARANTINE) == 5


def test_null_shares_count_what_was_read(log: SqliteLog, lake: Lake, source: Source) -> None:
    append(log, envelope(), envelope(after=row(quantity=None)), envelope(after=row(customer_id=...)), "bad")
    report = land(source, log, lake, 3)
    assert report.null_shares["quantity"] == 0.5
    assert report.null_shares["customer_id"] == 0.5
    assert report.null_shares["line_no"] == 0.25


def test_nothing_appended_leaves_empty_tables(log: SqliteLog, lake: Lake, source: Source) -> None:
    with pytest.raises(MissingTableError):
        landed_health(source, lake)
    report = land(source, log, lake, 10)
    assert (report.read, report.batches) == (0, 0)
    assert lake.rows(RAW) == lake.rows(QUARANTINE) == 0
    health = landed_health(source, lake)
    assert (health.landed, health.quarantined, health.quarantined_pct) == (0, 0, 0.0)


def test_health_is_there_for_a_run_without_news(log: SqliteLog, lake: Lake, source: Source) -> None:
    append(log, *[envelope()] * 90, *[envelope(after=row(quantity=None)), envelope(after=row(quantity="x"))] * 5)
    land(source, log, lake, 30)
    lifetime, newest = landed_health(source, lake), landed_health(source, lake, last=20)
    assert (lifetime.landed, lifetime.quarantined, lifetime.quarantined_pct) == (90, 10, 10.0)
    assert lifetime.reasons == {"quantity: null, but must not be": 5, "quantity: not an int64": 5}
    assert (newest.landed, newest.quarantined_pct) == (10, 50.0)


def test_a_log_that_was_lost_is_noticed(tmp_path: Path, log: SqliteLog, lake: Lake, source: Source) -> None:
    append(log, envelope(), envelope())
    land(source, log, lake, 10)
    with SqliteLog(tmp_path / "other.db") as other:
        append(other, envelope())
        with pytest.raises(
            LostLogError, match=r"landed up to offset 2 .* that log ends at 1.*runbooks/landing_lost_log"
        ):
            land(source, other, lake, 10)


class Crash(Exception):
    """Stands for a dying process."""


class DyingLake(Lake):
    """Dies before or after its n-th write; with `offsets_first` it commits offsets in a transaction of their own."""

    dies_at = 1
    before = False
    offsets_first = False
    writes = 0

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def append(self, key: Key, rows: pa.Table, offsets: Mapping[str, int] | None = None, **how: Any) -> int:
        self.writes += 1
        if self.writes == self.dies_at and self.before:
            raise Crash
        if self.offsets_first and offsets:
            super().append(key, rows.slice(0, 0), offsets, **how)
            if self.writes == self.dies_at:
                raise Crash
            return super().append(key, rows, **how)
        version = super().append(key, rows, offsets, **how)
        if self.writes == self.dies_at:
            raise Crash
        return version


@pytest.fixture
def mixed(log: SqliteLog) -> SqliteLog:
    """Twenty records, every third of which breaks the contract."""
    append(log, *[envelope(after=row(line_no=i, quantity=i if i % 3 else None)) for i in range(20)])
    return log


def crash_and_go_on(root: Path, log: SqliteLog, source: Source, dies_at: int, **how: Any) -> list[list[dict[str, Any]]]:
    dying = DyingLake(root)
    for name, value in {"dies_at": dies_at, **how}.items():
        setattr(dying, name, value)
    with pytest.raises(Crash):
        land(source, log, dying, 6)
    land(source, log, Lake(root), 9)  # cut elsewhere: a batch's limits are no part of the guarantee
    return [rows(Lake(root), key) for key in (RAW, QUARANTINE)]


@pytest.mark.parametrize("before", [True, False])
def test_a_crash_at_any_write_loses_and_repeats_nothing(
    tmp_path: Path, mixed: SqliteLog, source: Source, before: bool
) -> None:
    land(source, mixed, Lake(tmp_path / "whole"), 100)
    expected = [rows(Lake(tmp_path / "whole"), key) for key in (RAW, QUARANTINE)]
    assert [len(e) for e in expected] == [13, 7]
    for dies_at in range(1, 11):  # two tables are made, then four batches of two writes each
        found = crash_and_go_on(tmp_path / f"{dies_at}", mixed, source, dies_at, before=before)
        assert found == expected


def test_offsets_committed_before_the_rows_would_lose_them(tmp_path: Path, mixed: SqliteLog, source: Source) -> None:
    """The check above can fail: with the offset in a transaction of its own it does."""
    land(source, mixed, Lake(tmp_path / "whole"), 100)
    expected = [rows(Lake(tmp_path / "whole"), key) for key in (RAW, QUARANTINE)]
    for dies_at in (3, 4, 6):
        assert crash_and_go_on(tmp_path / f"{dies_at}", mixed, source, dies_at, offsets_first=True) != expected


class CompactedLog(SqliteLog):
    """Only records at offsets divisible by four are left, as compaction or transactions leave a log of Kafka's."""

    def read(self, source: TopicPartition, offset: int, max_records: int) -> pa.Table:
        rest = super().read(source, offset, self.end(source))
        return rest.filter([at % 4 == 0 for at in rest["offset"].to_pylist()]).slice(0, max_records)


def test_a_log_with_gaps_lands_each_record_once(tmp_path: Path, mixed: SqliteLog, source: Source) -> None:
    lake = Lake(tmp_path / "lake")
    with CompactedLog(mixed.path) as log:
        assert land(source, log, lake, 2).read == 5
        assert land(source, log, lake, 2).read == 0
    assert [r["log_offset"] for r in rows(lake, RAW)] == [4, 8, 16]
    assert [r["log_offset"] for r in rows(lake, QUARANTINE)] == [0, 12]


def test_two_at_once_land_each_row_once(mixed: SqliteLog, lake: Lake, source: Source) -> None:
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: land(source, mixed, lake, 3), range(4)))
    assert sum(r.read for r in reports) == 20
    assert [r["log_offset"] for r in rows(lake, RAW)] == [i for i in range(20) if i % 3]
    assert [r["log_offset"] for r in rows(lake, QUARANTINE)] == list(range(0, 20, 3))


SERVED = {
    "prediction_id": "p1",
    "request_id": "r1",
    "model": "churn",
    "version": "3",
    "customer_id": 17850,
    "prediction": 0.25,
    "features": {"txn_count_7d": 2, "country": 'a"b'},
    "features_as_of": None,
    "served_at": "2011-12-09T12:50:00",
}


def test_served_predictions_land_with_their_features(log: SqliteLog, lake: Lake) -> None:
    good = [SERVED, SERVED | {"prediction_id": "p2", "features_as_of": "2011-12-09T11:00:00.5"}]
    append(log, *good, SERVED | {"prediction": None}, "x", topic=served_topic("churn"), key=None)
    report = land_served("churn", log, lake)
    assert (report.key, report.landed, report.quarantined) == (served("churn"), 2, 2)
    first, second = rows(lake, served("churn"))
    assert json.loads(first.pop("features")) == SERVED["features"]
    assert first == {
        **{name: value for name, value in SERVED.items() if name != "features"},
        "served_at": datetime(2011, 12, 9, 12, 50),
        "landed_at": T0 + timedelta(minutes=5),
        "log_partition": 0,
        "log_offset": 0,
    }
    assert second["features_as_of"] == datetime(2011, 12, 9, 11, 0, 0, 500_000)
    reasons = [r["reason"] for r in rows(lake, quarantine("predictions", "churn"))]
    assert reasons == ["prediction: null, but must not be", "value: not a JSON object, found x"]
    assert land_served("churn", log, lake).read == 0
