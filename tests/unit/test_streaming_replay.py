"""The replay: an independent account of every change, the prefix property, resuming, and what it refuses."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from catalog.clock import DamagedClockError, ReplayClock
from catalog.load import load_catalog
from streaming.log import TopicPartition
from streaming.replay import ReplayMismatchError, ReplayReport, replay
from streaming.replay_state import digest, topics
from streaming.retail import LINE_SCHEMA, read_retail
from streaming.shop import TABLES
from streaming.simulator import simulate
from streaming.sqlite_log import SqliteLog

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "online_retail.parquet"
CATALOG = Path(__file__).resolve().parents[2] / "catalog"
T0 = datetime(2020, 3, 2, 9)
Envelope = dict[str, Any]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    with SqliteLog(tmp_path / "log.db") as opened:
        yield opened


@pytest.fixture(scope="module")
def shop_lines() -> pa.Table:
    return simulate(seed=5, lines=6_000).lines


def lines_of(*rows: tuple[Any, ...]) -> pa.Table:
    """Rows of invoice, code, quantity, price, customer, minutes after T0; description, country, days late."""
    table = []
    for invoice, code, quantity, price, customer, minute, *rest in rows:
        description, country, late = (*rest, *(None, "UK", None)[len(rest) :])
        at = None if minute is None else T0 + timedelta(minutes=minute)
        landed = at + timedelta(days=late) if late and at else None
        table.append((invoice, code, description, quantity, at, price, customer, country, landed, None))
    columns = list(zip(*table, strict=True))
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, LINE_SCHEMA, strict=True)], schema=LINE_SCHEMA)


def read(log: SqliteLog, table: str) -> list[Envelope]:
    records = log.read(TopicPartition(topics()[table], 0), 0, 10_000_000)
    envelopes = []
    for record in records.to_pylist():
        envelope: Envelope = json.loads(record["value"])
        envelope["key"], envelope["landed_us"] = json.loads(record["key"]), record["timestamp_us"]
        envelopes.append(envelope)
    return envelopes


def replayed(log: SqliteLog, lines: pa.Table, **options: Any) -> ReplayReport:
    return replay(lines, log, log.path.with_name("replay.json"), **options)


def after(log: SqliteLog, table: str, *columns: str) -> list[tuple[Any, ...]]:
    return [(e["op"], *(e["after"][c] for c in columns)) for e in read(log, table)]


def content(log: SqliteLog) -> dict[str, pa.Table]:
    return {table: log.read(TopicPartition(topic, 0), 0, 10_000_000) for table, topic in topics().items()}


def micros(minutes: float) -> int:
    return int((T0 + timedelta(minutes=minutes) - datetime(1970, 1, 1)).total_seconds() * 1_000_000)


def test_envelopes_are_debezium_s(log: SqliteLog) -> None:
    replayed(log, lines_of(("1", "A", 2, 1.5, 7, 0, "THING"), ("1", "B", 1, 0.3, 7, 0)))
    first, second = read(log, "order_lines")
    assert first == {
        "before": None,
        "after": {
            "invoice_no": "1",
            "line_no": 1,
            "customer_id": 7,
            "stock_code": "A",
            "quantity": 2,
            "unit_price_gbp": 1.5,
            "invoiced_at": micros(0),
        },
        "source": {
            "version": "0.1.0",
            "connector": "headwater-replay",
            "name": "shop",
            "ts_ms": micros(0) // 1000,
            "snapshot": "false",
            "db": "shop",
            "ts_us": micros(0),
            "table": "order_lines",
            "txId": 1,
            "lsn": 11,
        },
        "transaction": None,
        "op": "c",
        "ts_ms": micros(0) // 1000,
        "ts_us": micros(0),
        "key": {"invoice_no": "1", "line_no": 1},
        "landed_us": micros(0),
    }
    assert second["source"]["txId"] == 1
    assert second["after"]["line_no"] == 2


def test_columns_are_those_of_the_catalog(log: SqliteLog) -> None:
    replayed(log, lines_of(("1", "A", 2, 1.5, 7, 0)))
    for source in load_catalog(CATALOG).sources:
        envelope = read(log, source.table)[0]
        assert list(envelope["after"]) == [c.name for c in source.columns]
        assert set(envelope["key"]) == set(source.gate.key)


def test_customers_move_and_products_change(log: SqliteLog) -> None:
    month = 31 * 1440
    replayed(
        log,
        lines_of(
            ("1", "A", 1, 1.0, 7, 0, "OLD", "UK"),
            ("1", "A", 1, 9.0, 7, 0, "OLD", "UK"),  # a second price in the month is no list price
            ("2", "A", 1, 1.0, 7, 5, "NEW", "UK"),
            ("3", "A", -1, 0.0, None, 6, "damaged", "UK"),  # no sale: no description
            ("4", "A", 1, 2.0, 8, month, "NEW", "EIRE"),
            ("5", "A", 1, 2.0, 7, month + 1, "NEW", "EIRE"),
            ("6", "Z", 1, 0.0, None, month + 2, None, "EIRE"),
            ("7", "Z", 1, 3.0, 8, month + 3, "ZED", "EIRE"),
        ),
    )
    assert after(log, "customers", "customer_id", "country") == [
        ("c", 7, "UK"),
        ("c", 8, "EIRE"),
        ("u", 7, "EIRE"),
    ]
    moved = read(log, "customers")[-1]
    assert moved["before"] == {"customer_id": 7, "country": "UK", "registered_at": micros(0), "updated_at": micros(0)}
    assert moved["after"]["registered_at"] == micros(0)
    assert moved["after"]["updated_at"] == micros(month + 1)
    assert after(log, "products", "stock_code", "description", "list_price_gbp") == [
        ("c", "A", "OLD", 1.0),
        ("u", "A", "NEW", 1.0),
        ("u", "A", "NEW", 2.0),
        ("c", "Z", None, None),
        ("u", "Z", "ZED", 3.0),
    ]


def test_orders_are_refunded_in_part_then_in_whole_and_extended(log: SqliteLog) -> None:
    replayed(
        log,
        lines_of(
            ("1", "A", 4, 1.0, 7, 0),
            ("1", "B", 2, 0.1, 7, 0),
            ("2", "A", 1, 1.0, 9, 1),
            ("1", "D", 1, 5.0, 7, 2),  # a later minute
            ("C3", "A", -9, 1.0, 7, 3),  # more of A than there was does not refund B
            ("C4", "B", -1, 0.1, 7, 4),
            ("C5", "B", -1, 0.2, 7, 5),
            ("C5", "D", -1, 5.0, 7, 5),
            ("C6", "A", -1, 1.0, 8, 6),  # nobody sold that to customer 8
            ("A7", "A", 1, -50.0, None, 7),
        ),
    )
    orders = after(log, "orders", "invoice_no", "kind", "refund_status", "refunded_gbp", "updated_at")
    assert [o for o in orders if o[1] == "1"] == [
        ("c", "1", "sale", "none", 0.0, micros(0)),
        ("u", "1", "sale", "none", 0.0, micros(2)),
        ("u", "1", "sale", "partial", 9.0, micros(3)),
        ("u", "1", "sale", "partial", 9.1, micros(4)),
        ("u", "1", "sale", "partial", 9.3, micros(5)),
        ("u", "1", "sale", "full", 14.3, micros(5)),
    ]
    assert [o[:4] for o in orders if o[1] not in "1"] == [
        ("c", "2", "sale", "none"),
        ("c", "C3", "refund", "none"),
        ("c", "C4", "refund", "none"),
        ("c", "C5", "refund", "none"),
        ("c", "C6", "refund", "none"),
        ("c", "A7", "adjustment", "none"),
    ]
    refund, update = [e for e in read(log, "orders") if e["source"]["txId"] == 4]
    assert refund["key"] == {"invoice_no": "C3"}
    assert update["before"]["refund_status"] == "none"
    assert update["after"]["refund_status"] == "partial"


def test_the_latest_earlier_sale_is_the_one_refunded(log: SqliteLog) -> None:
    replayed(
        log,
        lines_of(
            ("1", "A", 1, 1.0, 7, 0), ("2", "A", 1, 1.0, 7, 1), ("C3", "A", -1, 1.0, 7, 2), ("4", "A", 1, 1.0, 7, 3)
        ),
    )
    updates = [e["after"] for e in read(log, "orders") if e["op"] == "u"]
    assert [(u["invoice_no"], u["refund_status"]) for u in updates] == [("2", "full")]


def test_parents_come_first_and_sequence_numbers_grow(log: SqliteLog, shop_lines: pa.Table) -> None:
    replayed(log, shop_lines, slice_lines=700)
    known: dict[str, set[Any]] = defaultdict(set)
    every = sorted(
        ((e["source"]["lsn"], table, e) for table in TABLES for e in read(log, table)), key=lambda change: change[0]
    )
    assert len({lsn for lsn, _, _ in every}) == len(every)
    for table in TABLES:
        lsns = [e["source"]["lsn"] for e in read(log, table)]
        assert lsns == sorted(lsns)
    landed = [e["landed_us"] for _, _, e in every]
    assert landed == sorted(landed)
    for _, table, e in every:
        row, key = e["after"], json.dumps(e["key"])
        assert (e["op"] == "c") == (key not in known[table])
        assert (e["before"] is None) == (e["op"] == "c")
        known[table].add(key)
        if table == "order_lines":
            assert json.dumps({"invoice_no": row["invoice_no"]}) in known["orders"]
            assert json.dumps({"stock_code": row["stock_code"]}) in known["products"]
        if table in ("orders", "order_lines") and row["customer_id"] is not None:
            assert json.dumps({"customer_id": row["customer_id"]}) in known["customers"]


def test_before_is_always_the_after_of_the_change_before(log: SqliteLog, shop_lines: pa.Table) -> None:
    replayed(log, shop_lines)
    for table in ("customers", "products", "orders"):
        rows: dict[str, Any] = {}
        for e in read(log, table):
            assert e["before"] == rows.get(json.dumps(e["key"]))
            rows[json.dumps(e["key"])] = e["after"]


def test_refunds_equal_a_plain_account_of_the_simulated_shop(log: SqliteLog, shop_lines: pa.Table) -> None:
    """The same rules as a loop over lines in landing order."""
    replayed(log, shop_lines)
    rows = sorted(shop_lines.to_pylist(), key=lambda r: r["landed_at"] or r["invoiced_at"])
    latest: dict[tuple[int, str], str] = {}
    ordered: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    returned: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    expected: dict[str, tuple[str, float]] = {}
    for r in rows:
        invoice, code, quantity = r["invoice_no"], r["stock_code"], r["quantity"]
        if invoice[0] not in "CA" and quantity > 0 and r["unit_price_gbp"] > 0:
            ordered[invoice][code] += quantity
            if r["customer_id"]:
                latest[r["customer_id"], code] = invoice
        elif invoice[0] == "C" and (original := latest.get((r["customer_id"], code))):
            returned[original][code] -= quantity
            covered = sum(min(returned[original][c], n) for c, n in ordered[original].items())
            status = "full" if covered >= sum(ordered[original].values()) else "partial"
            amount = expected.get(original, ("", 0.0))[1] - quantity * r["unit_price_gbp"]
            expected[original] = (status, amount)
    assert len(expected) > 30
    assert {"full", "partial"} == {status for status, _ in expected.values()}
    last = {e["key"]["invoice_no"]: e["after"] for e in read(log, "orders")}
    found = {i: (o["refund_status"], pytest.approx(o["refunded_gbp"])) for i, o in last.items() if o["refunded_gbp"]}
    assert expected == found


@pytest.mark.parametrize("cut", [1, 777, 2_345, 5_000])
def test_a_longer_file_only_appends(tmp_path: Path, shop_lines: pa.Table, cut: int) -> None:
    """In stream order: file B = file A and later lines gives A's changes and then more, even within a transaction."""
    in_order = duckdb.sql("SELECT * FROM shop_lines ORDER BY coalesce(landed_at, invoiced_at)").to_arrow_table()
    in_order = in_order.cast(LINE_SCHEMA)
    with SqliteLog(tmp_path / "a" / "log.db") as short, SqliteLog(tmp_path / "b" / "log.db") as long:
        replayed(short, in_order.slice(0, cut))
        replayed(long, in_order)
        a, b = content(short), content(long)
        for table in TABLES:
            assert b[table].slice(0, a[table].num_rows).equals(a[table])
        report = replayed(short, in_order)  # and the shorter log grows into the longer one
        assert report.lines == in_order.num_rows
        assert content(short) == b


def test_until_holds_back_what_lands_later(log: SqliteLog, tmp_path: Path, shop_lines: pa.Table) -> None:
    clock = ReplayClock(log.path.with_name("replay.json"))
    assert replayed(log, shop_lines, until=datetime(2023, 12, 31)).last_event_at is None
    assert log.partitions("cdc.shop.order_lines") == []
    for until in (datetime(2024, 3, 1, 12), datetime(2024, 7, 1), datetime(2024, 7, 1), datetime(2024, 2, 1)):
        replayed(log, shop_lines, until=until)
        latest = max(until, datetime(2024, 3, 1, 12)) if until.month != 2 else datetime(2024, 7, 1)
        landed = [datetime(1970, 1, 1) + timedelta(microseconds=e["landed_us"]) for e in read(log, "order_lines")]
        expected = [r["landed_at"] or r["invoiced_at"] for r in shop_lines.to_pylist()]
        assert landed == sorted(at for at in expected if at <= latest)
        assert clock.now() == landed[-1]
    replayed(log, shop_lines)
    with SqliteLog(tmp_path / "whole" / "log.db") as whole:
        replayed(whole, shop_lines)
        assert content(whole) == content(log)


class Crash(Exception):
    """Stands for a dying process."""


class DyingLog(SqliteLog):
    """Dies after (or before) its n-th append."""

    appends, dies_at, before = 0, 1, False

    def append(self, batches: Any) -> None:
        self.appends += 1
        if self.appends == self.dies_at and self.before:
            raise Crash
        super().append(batches)
        if self.appends == self.dies_at:
            raise Crash


@pytest.mark.parametrize("before", [True, False])
def test_a_crash_at_any_append_leaves_nothing_out_and_repeats_nothing(
    tmp_path: Path, shop_lines: pa.Table, before: bool
) -> None:
    with SqliteLog(tmp_path / "whole" / "log.db") as whole:
        replayed(whole, shop_lines)
        expected = content(whole)
    for dies_at in range(1, 5):
        path = tmp_path / str(dies_at) / "log.db"
        with DyingLog(path) as dying:
            dying.dies_at, dying.before = dies_at, before
            with pytest.raises(Crash):
                replayed(dying, shop_lines, slice_lines=1_500)
        with SqliteLog(path) as log:
            replayed(log, shop_lines, slice_lines=900)
            assert content(log) == expected


def test_a_log_that_is_not_atomic_over_topics_is_completed(tmp_path: Path, shop_lines: pa.Table) -> None:
    """Kafka may hold one topic's changes and miss another's: each is resumed from its own end."""
    with SqliteLog(tmp_path / "whole" / "log.db") as whole, SqliteLog(tmp_path / "part" / "log.db") as part:
        replayed(whole, shop_lines)
        for table, share in (("customers", 0.9), ("orders", 0.2), ("order_lines", 0.5)):
            records = content(whole)[table]
            part.append({topics()[table]: records.slice(0, int(records.num_rows * share)).drop_columns(["offset"])})
        replayed(part, shop_lines, slice_lines=1_000)
        assert content(part) == content(whole)


def test_unchanged_input_appends_nothing(log: SqliteLog, shop_lines: pa.Table) -> None:
    first = replayed(log, shop_lines)
    assert first.changes > shop_lines.num_rows
    state = log.path.with_name("replay.json").read_text()
    again = replayed(log, pa.concat_tables([shop_lines.slice(0, 10), shop_lines.slice(10)]))  # other chunks
    assert again.changes == 0
    assert again.lines == first.lines
    assert again.last_event_at == first.last_event_at
    assert log.path.with_name("replay.json").read_text() == state


@pytest.mark.parametrize("keep_state", [True, False])
def test_other_lines_are_refused(log: SqliteLog, shop_lines: pa.Table, keep_state: bool) -> None:
    replayed(log, shop_lines)
    before = content(log)
    if not keep_state:  # as after a crash between the append and the state
        log.path.with_name("replay.json").unlink()
    for other in (simulate(seed=6, lines=6_000).lines, simulate(seed=6, lines=9_000).lines, shop_lines.slice(0, 3_000)):
        with pytest.raises(ReplayMismatchError, match="set HEADWATER_HOME to a new directory"):
            replayed(log, other)
    assert content(log) == before
    if not keep_state:
        replayed(log, shop_lines)
        assert content(log) == before


@pytest.mark.parametrize("damaged", ["", "{", "[]", "{}", '{"last_event_at": 3}'])
def test_a_damaged_state_is_refused_and_without_it_the_log_is_continued(
    log: SqliteLog, shop_lines: pa.Table, damaged: str
) -> None:
    first = shop_lines.slice(0, 500)
    replayed(log, first)
    before, path = content(log), log.path.with_name("replay.json")
    path.write_text(damaged)
    for read_it in (lambda: replayed(log, first), ReplayClock(path).now):
        with pytest.raises(DamagedClockError, match=r"replay\.json: tried to read where the replay is, found"):
            read_it()
    path.unlink()
    assert replayed(log, first).changes == 0
    assert content(log) == before


def test_one_changed_value_is_noticed(log: SqliteLog, shop_lines: pa.Table) -> None:
    replayed(log, shop_lines)
    prices = shop_lines["unit_price_gbp"].to_pylist()
    prices[3_210] += 0.01
    with pytest.raises(ReplayMismatchError, match="do not begin with the"):
        replayed(log, shop_lines.set_column(5, LINE_SCHEMA.field(5), pa.array(prices)))


def test_broken_lines_survive_as_nulls_in_their_place(log: SqliteLog) -> None:
    replayed(
        log,
        lines_of(
            ("1", "A", 1, 1.0, 7, 0),
            (None, "A", 1, 1.0, 7, 1),
            ("2", "A", None, 1.0, 7, None),
            (None, None, None, None, None, None, None, None),
            ("3", "A", 1, 1e300, 7, 2),
            ("3", "A", 2**62, 1.0, 7, 2),
            ("C4", "A", -(2**63), 1e300, 7, 3),
        ),
    )
    rows = read(log, "order_lines")
    assert [(r["after"]["invoice_no"], r["after"]["quantity"]) for r in rows[:4]] == [
        ("1", 1),
        (None, 1),
        ("2", None),
        (None, None),
    ]
    assert [r["after"]["invoiced_at"] for r in rows[:4]] == [micros(0), micros(1), None, None]
    assert [r["landed_us"] for r in rows[:4]] == [micros(0), micros(1), micros(1), micros(1)]
    assert rows[1]["key"] == {"invoice_no": None, "line_no": 1}
    assert [o[1] for o in after(log, "orders", "invoice_no")] == ["1", "2", "3", "C4", "3"]


def test_a_file_without_any_readable_date_is_replayed(log: SqliteLog) -> None:
    replayed(log, lines_of(("1", "A", 1, 1.0, 7, None), ("2", "A", 1, 1.0, 7, None)))
    assert [e["landed_us"] for e in read(log, "order_lines")] == [0, 0]


def test_late_lines_insert_what_is_missing_and_change_nothing(log: SqliteLog) -> None:
    replayed(
        log,
        lines_of(
            ("1", "A", 1, 1.0, 7, 0, "OLD", "UK", 3),
            ("2", "B", 1, 1.0, 8, 1, "B", "UK"),
            ("3", "B", 1, 5.0, 8, 2, "LATE B", "EIRE", 40),
        ),
    )
    assert after(log, "products", "stock_code", "description") == [("c", "B", "B"), ("c", "A", "OLD")]
    assert after(log, "customers", "customer_id", "country") == [("c", 8, "UK"), ("c", 7, "UK")]
    assert [e["after"]["invoice_no"] for e in read(log, "order_lines")] == ["2", "1", "3"]
    late = read(log, "order_lines")[1]
    assert late["source"]["ts_us"] == micros(0)
    assert late["landed_us"] == micros(3 * 1440)


def test_digest_sees_values_and_nulls_only(shop_lines: pa.Table) -> None:
    assert digest(shop_lines.slice(100, 500)) == digest(shop_lines.take(list(range(100, 600))))
    nulls = lines_of(("", "A", 0, 0.0, 0, 0))
    assert digest(nulls) != digest(lines_of((None, "A", 0, 0.0, 0, 0)))
    assert digest(nulls) != digest(lines_of(("", "A", 0, 0.0, None, 0)))


@pytest.mark.skipif(not REAL.exists(), reason="needs shared/data/online_retail.parquet beside the project")
def test_the_real_file(log: SqliteLog) -> None:
    """Counts of the data's README, taken from the log."""
    lines = read_retail(REAL)
    report = replayed(log, lines)
    assert report.last_event_at == datetime(2011, 12, 9, 12, 50)
    assert report.appended["order_lines"] == 541_909
    records = content(log)
    orders, customers = records["orders"], records["customers"]
    products, order_lines = records["products"], records["order_lines"]
    assert products.num_rows < 40_000

    def one(sql: str) -> tuple[Any, ...]:
        names = {"orders": orders, "customers": customers, "products": products, "order_lines": order_lines}
        with duckdb.connect() as connection:
            for name, table in names.items():
                connection.register(name, table)
            row: tuple[Any, ...] = connection.sql(sql).fetchall()[0]
        return row

    assert one("SELECT count(*) FROM orders WHERE value->>'$.op' = 'c'") == (25_900,)
    assert one("SELECT count(*) FROM customers WHERE value->>'$.op' = 'c'") == (4_372,)
    assert one("SELECT count(*) FROM products WHERE value->>'$.op' = 'c'") == (4_070,)
    assert one("SELECT count(*) FILTER (value->>'$.after.kind' = 'refund') FROM orders WHERE value->>'$.op' = 'c'") == (
        3_836,
    )
    assert one(
        "SELECT count(DISTINCT key) FROM orders WHERE value->>'$.op' = 'u' AND value->>'$.after.refund_status' = 'none'"
    ) == (43,)
    customers_missing, revenue = one(
        """SELECT count(*) FILTER (value->>'$.after.customer_id' IS NULL),
            sum((value->>'$.after.quantity')::BIGINT * (value->>'$.after.unit_price_gbp')::DECIMAL(18, 4))
        FROM order_lines"""
    )
    assert customers_missing == 135_080
    assert float(revenue) == pytest.approx(9_747_747.934)
