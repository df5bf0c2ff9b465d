"""What the replay says to a database: its statements, what it leaves out, and how content is compared."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from catalog.load import load_catalog
from streaming.capture.credentials import AddressError
from streaming.retail import LINE_SCHEMA
from streaming.shop import order_lines
from streaming.shop_database.compare import content_hash
from streaming.shop_database.connect import Unreachable, open_database
from streaming.shop_database.ddl import SHOP, Dialect, create_statements
from streaming.shop_database.statements import LeftOut, Transaction, left_out, stage_statements, transactions

CATALOG = Path(__file__).resolve().parents[2] / "catalog"
T0 = datetime(2020, 3, 2, 9)
CLOCK = "'2020-03-02 09:00:00.000000'"


def line(invoice: str | None = "1", code: str | None = "A", quantity: int | None = 2, **values: Any) -> dict[str, Any]:
    """One line of the file; `minute` after T0."""
    at = T0 + timedelta(minutes=values.pop("minute", 0))
    known = {"invoice_no": invoice, "stock_code": code, "quantity": quantity, "invoiced_at": at, "unit_price_gbp": 1.5}
    return {**dict.fromkeys(LINE_SCHEMA.names), **known, "customer_id": 7, "country": "UK", **values}


def said(
    *lines: dict[str, Any], dialect: Dialect = "postgresql", split_after: int = 0
) -> tuple[list[Transaction], tuple[LeftOut, ...]]:
    with duckdb.connect() as connection:
        stage_statements(connection, order_lines(pa.Table.from_pylist(list(lines), LINE_SCHEMA)), dialect)
        return list(transactions(connection, 1, len(lines), split_after)), left_out(connection, len(lines))


def test_an_invoice_is_one_transaction_in_the_order_of_its_changes() -> None:
    found, left = said(line(), line(code="B"), line("2", minute=1))
    assert left == ()
    assert [(t.last_line, t.rows, t.event_at) for t in found] == [
        (2, 6, CLOCK),
        (3, 2, "'2020-03-02 09:01:00.000000'"),
    ]
    assert found[0].statements == (
        f"INSERT INTO customers (customer_id, country, registered_at, updated_at) VALUES (7,'UK',{CLOCK},{CLOCK})",
        f"INSERT INTO products (stock_code, description, list_price_gbp, updated_at) VALUES ('A',NULL,'1.5',{CLOCK})",
        "INSERT INTO orders (invoice_no, customer_id, country, kind, refund_status, refunded_gbp, ordered_at, "
        f"updated_at) VALUES ('1',7,'UK','sale','none','0.0',{CLOCK},{CLOCK})",
        "INSERT INTO order_lines (invoice_no, line_no, customer_id, stock_code, quantity, unit_price_gbp, invoiced_at) "
        f"VALUES ('1',1,7,'A',2,'1.5',{CLOCK})",
        f"INSERT INTO products (stock_code, description, list_price_gbp, updated_at) VALUES ('B',NULL,'1.5',{CLOCK})",
        "INSERT INTO order_lines (invoice_no, line_no, customer_id, stock_code, quantity, unit_price_gbp, invoiced_at) "
        f"VALUES ('1',2,7,'B',2,'1.5',{CLOCK})",
    )


def test_neighbouring_inserts_are_one_statement_and_updates_are_one_each() -> None:
    found, _ = said(line(), line(), line(), line("C2", quantity=-1, minute=1), line("C2", quantity=-1, minute=1))
    assert found[0].statements[-1].count("),(") == 2
    updates = [s for s in found[1].statements if s.startswith("UPDATE orders")]
    assert updates[1] == (
        "UPDATE orders SET customer_id=7,country='UK',kind='sale',refund_status='partial',refunded_gbp='3.0',"
        f"ordered_at={CLOCK},updated_at='2020-03-02 09:01:00.000000' WHERE invoice_no='1'"
    )


def test_long_runs_are_parted_and_nothing_is_lost() -> None:
    found, _ = said(*(line() for _ in range(1_234)))
    lines = [s for s in found[0].statements if s.startswith("INSERT INTO order_lines")]
    assert len(lines) == 3
    assert sum(s.count("),(") + 1 for s in lines) == 1_234


@pytest.mark.parametrize("text", ["it's", "back\\slash'", "a;b--", "'; DROP TABLE orders; --", "日本 ☕", "%s {x}"])
def test_a_text_is_a_literal_whatever_is_in_it(text: str) -> None:
    """DuckDB reads literals as the SQL standard has them, as both databases do in our sessions."""
    found, _ = said(line(description=text))
    values = found[0].statements[1].partition("VALUES ")[2]
    assert duckdb.sql(f"SELECT * FROM (VALUES {values})").fetchall()[0][1] == text


def test_lines_of_one_invoice_that_landed_at_two_instants_are_two_transactions() -> None:
    found, _ = said(line(), line(code="B", landed_at=T0 + timedelta(days=1)))
    assert [(t.event_at, t.landed_at) for t in found] == [(CLOCK, CLOCK), (CLOCK, "'2020-03-03 09:00:00.000000'")]


def test_a_transaction_is_parted_where_a_shorter_file_ended() -> None:
    whole, _ = said(line(), line(code="B"))
    parted, _ = said(line(), line(code="B"), split_after=1)
    short, _ = said(line())
    assert [t.last_line for t in parted] == [1, 2]
    assert parted[0] == short[0]
    assert [s for t in parted for s in t.statements] == list(whole[0].statements)


def test_what_cannot_be_held_is_left_out_with_its_reason() -> None:
    broken = [
        line(quantity=None, unread='{"quantity":"two"}'),
        line(quantity=None),
        line(code=None),
        line("i" * 256, minute=1),
        line(description="a\0b", code="N", minute=2),
    ]
    found, left = said(*broken)
    assert [str(row) for row in left] == [
        "products: 1 row(s) left out, description has a NUL character, which PostgreSQL cannot hold; the first is "
        '{"stock_code":"N"}',
        f'orders: 1 row(s) left out, invoice_no is longer than 255 characters; the first is {{"invoice_no":"{"i" * 45}',
        "order_lines: 1 row(s) left out, a value that could not be read as its type; the first is "
        '{"invoice_no":"1","line_no":1}, found {"quantity":"two"}',
        "order_lines: 1 row(s) left out, invoice_no is longer than 255 characters; the first is "
        f'{{"invoice_no":"{"i" * 45}',
        "order_lines: 1 row(s) left out, quantity is null, but must not be; the first is "
        '{"invoice_no":"1","line_no":2}',
        "order_lines: 1 row(s) left out, stock_code is null, but must not be; the first is "
        '{"invoice_no":"1","line_no":3}',
    ]
    assert [t.last_line for t in found] == [3, 4, 5]
    assert found[1].statements == (
        "UPDATE products SET description=NULL,list_price_gbp='1.5',updated_at='2020-03-02 09:01:00.000000' "
        "WHERE stock_code='A'",
    )
    assert not any("NUL" in str(row) for row in said(*broken, dialect="mariadb")[1])


def test_the_next_change_of_a_row_that_was_left_out_inserts_it() -> None:
    found, _ = said(line(description="x" * 20_000), line("2", description="short", minute=1))
    assert next(s for s in found[1].statements if "products" in s).startswith("INSERT INTO products")


def test_the_tables_are_those_that_the_catalog_declares() -> None:
    sources = {source.table: source for source in load_catalog(CATALOG).sources}
    for table in SHOP:
        declared = sources[table.name]
        assert [(c.name, c.type, c.nullable) for c in table.columns] == [
            (c.name, c.type, c.nullable) for c in declared.columns
        ]
        assert list(table.key) == list(declared.gate.key)


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_the_tables_of_a_replay_are_made_only_for_one(dialect: Dialect) -> None:
    plain, replay = list(create_statements(dialect, replay=False)), list(create_statements(dialect, replay=True))
    assert set(plain) < set(replay)
    assert not any("headwater" in statement for statement in plain)


def test_content_is_the_same_in_any_order_type_and_chunking() -> None:
    at = datetime(2024, 1, 1, 12)
    one = pa.table(
        {"n": pa.array([1, 2, None]), "x": [0.0, 2.5, None], "at": pa.array([at, None, at], pa.timestamp("us"))}
    )
    two = pa.table(
        {
            "at": pa.chunked_array(
                [[at.replace(tzinfo=UTC)], [at.replace(tzinfo=UTC), None]], pa.timestamp("ms", "UTC")
            ),
            "x": pa.array([None, -0.0, 2.5], pa.float32()),
            "n": pa.array([None, 1, 2], pa.int16()),
        }
    )
    assert content_hash(one) == content_hash(two)
    assert content_hash(one, ["n"]) == content_hash(two, ["n"]) != content_hash(one, ["x"])


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (["a", None], ["a", ""]),
        (["a", "a", "b"], ["a", "b", "b"]),
        (["a"], ["a", "a"]),
        ([None], ["null"]),
        ([1.0], [1.0000000000000002]),
        ([True], [False]),
        ([date(2024, 1, 1)], [date(2024, 1, 2)]),
        ([Decimal("1.10")], [Decimal("1.11")]),
        ([b"a"], [b"b"]),
    ],
)
def test_content_that_differs_has_another_hash(left: list[Any], right: list[Any]) -> None:
    assert content_hash(pa.table({"v": left})) != content_hash(pa.table({"v": right}))


def test_values_do_not_run_into_the_next_column() -> None:
    assert content_hash(pa.table({"a": ["x1:y"], "b": ["z"]})) != content_hash(pa.table({"a": ["x"], "b": ["y1:z"]}))


def test_an_address_that_is_no_database_is_refused() -> None:
    with pytest.raises(AddressError, match="allowed are postgresql"):
        open_database("oracle://user@host/shop")
    for options in ("ssl=perhaps", "tls=on", "ssl_ca=/none"):
        with pytest.raises(AddressError, match="ssl"):
            open_database(f"mysql://user@host/shop?{options}")
    for url in ("postgresql://me:secret@127.0.0.1:1/shop", "mysql://me:secret@127.0.0.1:1/shop"):
        with pytest.raises(Unreachable) as refused:
            open_database(url)
        assert "secret" not in str(refused.value)
