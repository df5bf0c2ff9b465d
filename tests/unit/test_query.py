"""Read-only SQL over the lake: what it answers, what it refuses, and how rows are written out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from catalog.keys import Key
from lake import Lake
from lake.as_of import AsOf, MadeTable, NoHistoryError, tables_named
from lake.query import QueryError, ReadOnlyError, UnknownTableError, format_rows, query
from lake.tables import UnknownVersionError

LINES = Key("raw", "shop", "order_lines")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path / "lake")
    lake.append(LINES, pa.table({"invoice_no": ["1", "2"], "quantity": [3, 4]}))
    lake.append(Key("marts", "sales", "purchase_lines"), pa.table({"amount_gbp": [1.5]}))
    return lake


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT count(*) AS n FROM raw.shop.order_lines", [{"n": 2}]),
        ("select sum(quantity) as n from raw.shop.order_lines;", [{"n": 7}]),
        ("WITH a AS (SELECT 1 AS n) FROM a", [{"n": 1}]),
        ("-- a comment\nSELECT amount_gbp FROM marts.sales.purchase_lines", [{"amount_gbp": 1.5}]),
        ("SELECT quantity AS q FROM raw.shop.order_lines JOIN marts.sales.purchase_lines ON quantity = 3", [{"q": 3}]),
        ("SHOW TABLES", [{"table": "marts.sales.purchase_lines", "columns": 1}, {"table": LINES.dotted, "columns": 2}]),
        ("PIVOT (SELECT quantity FROM raw.shop.order_lines) ON quantity USING count(*)", [{"3": 1, "4": 1}]),
    ],
)  # fmt: skip
def test_reads(lake: Lake, sql: str, rows: list[dict[str, object]]) -> None:
    assert json.loads(format_rows(query(lake, sql), "json")) == rows


@pytest.mark.parametrize("sql", ["DESCRIBE raw.shop.order_lines", "SUMMARIZE raw.shop.order_lines", "EXPLAIN SELECT 1"])
def test_inspects(lake: Lake, sql: str) -> None:
    assert query(lake, sql).num_rows


@pytest.mark.parametrize(
    "sql",
    [
        "DROP VIEW raw.shop.order_lines",
        "CREATE TABLE t AS SELECT 1",
        "INSERT INTO raw.shop.order_lines VALUES ('3', 5)",
        "WITH a AS (SELECT 1) INSERT INTO t FROM a",
        "DELETE FROM raw.shop.order_lines",
        "COPY (SELECT 1) TO '{lake}/x.csv'",
        "COPY (PIVOT raw.shop.order_lines ON quantity USING count(*)) TO '{lake}/x.csv'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{lake}/x.csv'",
        "/* ; */ EXPLAIN (FORMAT json) COPY (SELECT 1) TO '{lake}/x.csv'",
        "EXPORT DATABASE '{lake}/x'",
        "ATTACH '{lake}/x.duckdb' AS x",
        "INSTALL httpfs",
        "SET threads = 1",
        "RESET lock_configuration",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "USE raw",
        "BEGIN",
        "PREPARE p AS SELECT 1",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY (SELECT 1) TO '{lake}/x.csv'",
        "",
        "-- nothing",
    ],
)
def test_refuses_whatever_does_not_read(lake: Lake, sql: str) -> None:
    before = sorted(lake.root.rglob("*"))
    with pytest.raises(ReadOnlyError, match="allowed is one statement of SELECT"):
        query(lake, sql.format(lake=lake.root))
    assert sorted(lake.root.rglob("*")) == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_parquet('{lake}/../outside.parquet')",
        "SELECT * FROM read_csv('https://example.org/a.csv')",
    ],
)
def test_reads_no_file_outside_the_lake(lake: Lake, sql: str) -> None:
    (lake.root.parent / "outside.parquet").write_bytes(b"")
    with pytest.raises(QueryError):
        query(lake, sql.format(lake=lake.root))


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("raw.shop.order_line", "near names are raw.shop.order_lines"),
        ("raw.store.order_lines", "near names are raw.shop.order_lines"),
        ("order_lines", "near names are raw.shop.order_lines"),
        ("marts.sales.zzzzzzzzzzzzzzzzz", "marts.sales.purchase_lines"),
    ],
)
def test_unknown_table_names_the_near_ones(lake: Lake, asked: str, near: str) -> None:
    with pytest.raises(UnknownTableError, match=near) as caught:
        query(lake, f"SELECT * FROM {asked}")
    assert f"no table {asked} in the lake" in str(caught.value)


def test_unknown_table_of_an_empty_lake_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UnknownTableError, match="headwater run"):
        query(Lake(tmp_path), "SELECT * FROM raw.shop.orders")


@pytest.mark.parametrize("sql", ["SELECT nope FROM raw.shop.order_lines", "SELECT FROM WHERE", "SELECT nope(1)"])
def test_other_mistakes_keep_the_engines_message(lake: Lake, sql: str) -> None:
    with pytest.raises(QueryError, match="Error"):
        query(lake, sql)


ROWS = pa.table(
    {
        "n": pa.array([1, None], pa.int64()),
        "x": [0.5, float("nan")],
        "inf": [float("inf"), 2.0],
        "at": [datetime(2011, 9, 10, 0, 0), datetime(2011, 9, 10, 1, 2, 3, 4)],
        "day": [date(2011, 9, 10), None],
        "total": pa.array([Decimal("12"), Decimal("1")], pa.decimal128(38, 0)),
        "price": pa.array([Decimal("1.50"), None], pa.decimal128(6, 2)),
        "flag": [True, False],
        "text": ['a "quoted", one', "é"],
        "list": [[1.0, float("nan")], []],
    }
)


def test_json_has_iso_instants_and_null_for_what_is_no_number() -> None:
    first, second = json.loads(format_rows(ROWS, "json"))
    assert first == {
        "n": 1, "x": 0.5, "inf": None, "at": "2011-09-10T00:00:00", "day": "2011-09-10", "total": 12, "price": 1.5,
        "flag": True, "text": 'a "quoted", one', "list": [1.0, None],
    }  # fmt: skip
    assert (second["n"], second["x"], second["at"], second["day"]) == (None, None, "2011-09-10T01:02:03.000004", None)


def test_json_keeps_both_of_two_columns_with_one_name(lake: Lake) -> None:
    assert json.loads(format_rows(query(lake, "SELECT 1 AS a, 2 AS a"), "json")) == [{"a": 1, "a_2": 2}]


def test_a_decimal_keeps_its_digits() -> None:
    digits = "12345678901234567890.123456789012345678"
    table = pa.table({"n": pa.array([Decimal(digits), Decimal("0.10")], pa.decimal128(38, 18))})
    assert json.loads(format_rows(table, "json")) == [{"n": digits}, {"n": 0.1}]
    assert format_rows(table, "csv").splitlines() == ["n", digits, "0.1"]


def test_csv_reads_back() -> None:
    header, first, second = csv.reader(io.StringIO(format_rows(ROWS, "csv")))
    assert header == ROWS.column_names
    assert first[:2] == ["1", "0.5"]
    assert first[7:9] == ["true", 'a "quoted", one']
    assert second[:2] == ["", ""]


def test_table_aligns_numbers_to_the_right() -> None:
    table = pa.table({"name": ["a", "long"], "n": [1, 100]})
    assert format_rows(table, "table").splitlines() == ["name    n", "----  ---", "a       1", "long  100"]


@pytest.mark.parametrize(("fmt", "text"), [("json", "[]"), ("csv", "n"), ("table", "n\n-")])
def test_no_rows(fmt: str, text: str) -> None:
    assert format_rows(pa.table({"n": pa.array([], pa.int64())}), fmt) == text  # type: ignore[arg-type]


def test_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed is one of table, csv, json"):
        format_rows(ROWS, "xml")  # type: ignore[arg-type]


def test_a_table_is_read_at_an_earlier_version(tmp_path: Path) -> None:
    lake, table, other = Lake(tmp_path), Key("marts", "sales", "past"), Key("marts", "sales", "other")
    for rows in ([1], [2, 3]):
        lake.overwrite(table, pa.table({"n": rows}))
    lake.overwrite(other, pa.table({"n": [1]}))
    read = "SELECT sum(n)::BIGINT AS n FROM marts.sales.past"
    assert [query(lake, read, version=v)["n"].to_pylist() for v in (0, 1, None)] == [[1], [5], [5]]
    with pytest.raises(UnknownVersionError, match=r"marts\.sales\.past has no version 9; its versions end at 1"):
        query(lake, read, version=9)
    with pytest.raises(QueryError, match=r"exactly one, found marts\.sales\.other, marts\.sales\.past"):
        query(lake, "SELECT * FROM marts.sales.past, marts.sales.other", version=0)


def as_of(text: str, *, event_time: bool = False, tables: Mapping[Key, MadeTable] | None = None) -> AsOf:
    return AsOf(datetime.fromisoformat(text), event_time, lambda: tables or {})


@pytest.fixture
def history(tmp_path: Path) -> Lake:
    """Change 1 happened and landed on the 1st; change 2 happened on the 2nd and landed on the 3rd."""
    lake = Lake(tmp_path / "lake")
    landed, happened = [datetime(2024, 1, 1), datetime(2024, 1, 3)], [datetime(2024, 1, 1), datetime(2024, 1, 2)]
    lake.append(LINES, pa.table({"quantity": [1, 2], "landed_at": landed, "event_at": happened}))
    lake.append(Key("quarantine", "shop", "order_lines"), pa.table({"reason": ["a", "b"], "landed_at": landed}))
    lake.append(Key("predictions", "churn", "served"), pa.table({"landed_at": landed, "served_at": happened}))
    lake.append(Key("predictions", "churn", "scores"), pa.table({"prediction": [0.5]}))
    lake.append(Key("models", "churn", "training_set"), pa.table({"landed_at": landed}))
    return lake


@pytest.mark.parametrize("table", ["raw.shop.order_lines", "quarantine.shop.order_lines", "predictions.churn.served"])
@pytest.mark.parametrize(
    ("instant", "rows"), [("2023-12-31", 0), ("2024-01-01", 1), ("2024-01-02T23:59", 1), ("2024-01-03", 2)]
)
def test_what_was_known_by_an_instant(history: Lake, table: str, instant: str, rows: int) -> None:
    assert query(history, f"SELECT * FROM {table}", as_of=as_of(instant)).num_rows == rows


@pytest.mark.parametrize("table", ['RAW.shop."order_lines"', "predictions . churn . served"])
def test_what_had_happened_by_an_instant(history: Lake, table: str) -> None:
    assert query(history, f"FROM {table}", as_of=as_of("2024-01-02", event_time=True)).num_rows == 2


@pytest.mark.parametrize(
    ("sql", "event_time", "named"),
    [
        ("FROM models.churn.training_set", False, "models.churn.training_set: found no history by knowledge time"),
        ("FROM predictions.churn.scores", False, "predictions.churn.scores: found no history by knowledge time"),
        ("FROM quarantine.shop.order_lines", True, "quarantine.shop.order_lines: found no history by event time"),
    ],
)
def test_what_has_no_history_is_refused(history: Lake, sql: str, event_time: bool, named: str) -> None:
    with pytest.raises(NoHistoryError, match=named):
        query(history, sql, as_of=as_of("2024-01-02", event_time=event_time))


def test_a_made_table_is_made_of_what_was_known(history: Lake) -> None:
    staging, mart = Key("staging", "shop", "lines"), Key("marts", "sales", "lines")
    made = {
        staging: MadeTable('SELECT * FROM "warehouse"."raw_shop"."order_lines"', (LINES,)),
        mart: MadeTable('SELECT sum(quantity) AS n FROM "warehouse"."staging_shop"."lines"', (staging,)),
    }
    asked = "SELECT n, (SELECT count(*) FROM raw.shop.order_lines) AS rows FROM marts.sales.lines"
    for instant, found in (("2024-01-02", {"n": 1, "rows": 1}), ("2024-01-03", {"n": 3, "rows": 2})):
        assert query(history, asked, as_of=as_of(instant, tables=made)).to_pylist() == [found]


def test_nothing_but_what_is_named_can_be_read_as_of_an_instant(history: Lake) -> None:
    for asked in ("FROM raw.shop.nothing", "FROM marts.sales.orders", "FROM query_table('raw.shop.order_lines')"):
        with pytest.raises(QueryError):
            query(history, asked, as_of=as_of("2024-01-02"))
    assert query(history, "SHOW TABLES", as_of=as_of("2024-01-02")).num_rows == 5


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("FROM raw.shop.orders JOIN marts.sales.orders USING (a)", {"raw.shop.orders", "marts.sales.orders"}),
        ("PIVOT raw.shop.orders ON a USING count(*)", {"raw.shop.orders"}),
        ("SELECT 'raw.shop.a it''s raw.shop.b' -- raw.shop.c\n/* raw.shop.d */ FROM x.raw.shop.e, raw.shop", set()),
        ('SELECT marts.sales.orders.a FROM "Marts"."sales".orders', {"marts.sales.orders"}),
    ],
)
def test_the_tables_that_a_statement_names(statement: str, named: set[str]) -> None:
    assert {key.dotted for key in tables_named(statement)} == named


def test_a_version_of_a_table_that_is_joined_by_name(lake: Lake) -> None:
    lake.append(LINES, pa.table({"invoice_no": ["3"], "quantity": [5]}))
    asked = "SELECT * FROM raw.shop.order_lines a JOIN raw.shop.order_lines b USING (invoice_no)"
    assert query(lake, asked, version=0).num_rows == 2
