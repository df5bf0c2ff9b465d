"""dbt end to end: raw tables in, staging and marts out, on the real retail file and on a tiny shop of its own.

The raw tables are written straight from the data here: how a change log fills them is tested elsewhere.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from catalog import keys
from catalog.column_types import parse_type
from catalog.keys import Key
from catalog.load import load_catalog
from catalog.settings import CATALOG_DIR
from lake import Lake
from lake.gates import evaluate_gate
from lake.schema import DBT_PROJECT_DIR, HISTORY_COLUMNS, arrow_type, dbt_columns
from lake.warehouse import dbt_args, dbt_environment, publish, refresh_sources

# Great Expectations and dbt import modules that Python deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

RETAIL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "online_retail.parquet"
SOURCES = load_catalog(CATALOG_DIR).sources
TABLES = [
    *(Key("staging", "shop", n) for n in ("customers", "products", "orders", "order_lines", "order_line_versions")),
    *(Key("marts", "sales", n) for n in ("orders", "customers", "purchase_lines", "refunds")),
    *(Key("marts", "sales", n) for n in ("customer_daily", "customer_lines")),
]
SELECTION = ["path:models/staging", "path:models/marts"]


@dataclass(frozen=True)
class Home:
    """One data directory with its lake and warehouse."""

    path: Path

    @property
    def lake(self) -> Lake:
        return Lake(self.path / "lake")

    @property
    def warehouse(self) -> Path:
        return self.path / "warehouse.duckdb"

    def dbt(self, *select: str) -> subprocess.CompletedProcess[str]:
        refresh_sources(self.warehouse, self.lake, [keys.raw(s.system, s.table) for s in SOURCES])
        return subprocess.run(
            [sys.executable, "-m", "dbt.cli.main", *dbt_args("build", select, home=self.path)],
            cwd=DBT_PROJECT_DIR,
            env={**os.environ, **dbt_environment(self.warehouse), "DBT_PROFILES_DIR": str(DBT_PROJECT_DIR)},
            capture_output=True,
            text=True,
            check=False,
        )

    def build(self) -> None:
        done = self.dbt(*SELECTION)
        assert done.returncode == 0, done.stdout[-4000:]
        publish(self.warehouse, self.lake, TABLES)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with self.lake.connect() as db:
            return db.sql(sql).fetchall()


# The real file


@pytest.fixture(scope="module")
def retail(tmp_path_factory: pytest.TempPathFactory) -> Home:
    if not RETAIL.is_file():
        pytest.skip(f"no {RETAIL.name} in the folder shared/data beside the project")
    home = Home(tmp_path_factory.mktemp("retail"))
    _land_retail(home.lake)
    home.build()
    return home


def _land_retail(lake: Lake) -> None:
    """Each line an insert at its own instant; orders, customers and products as their last state."""
    history = """'c' AS change_op, 1::BIGINT AS source_epoch, row_number() OVER (ORDER BY t) AS source_position,
        0::BIGINT AS source_order, 1::BIGINT AS tx_id, t AS event_at, t AS landed_at, 0::BIGINT AS log_partition,
        row_number() OVER (ORDER BY t) - 1 AS log_offset"""
    with duckdb.connect() as db:
        db.execute(f"""
            CREATE TABLE line AS
            SELECT InvoiceNo AS invoice_no, row_number() OVER (PARTITION BY InvoiceNo ORDER BY place) AS line_no,
                CustomerID::BIGINT AS customer_id, StockCode AS stock_code, Quantity::BIGINT AS quantity,
                UnitPrice AS unit_price_gbp, InvoiceDate AS t, Country AS country, Description AS description
            FROM (SELECT *, row_number() OVER () AS place FROM read_parquet('{RETAIL}'))""")
        for table, sql in {
            "order_lines": f"""SELECT invoice_no, line_no, customer_id, stock_code, quantity, unit_price_gbp,
                t AS invoiced_at, {history} FROM line""",
            "orders": f"""SELECT *, t AS ordered_at, t AS updated_at, {history} FROM (
                SELECT invoice_no, any_value(customer_id) AS customer_id, any_value(country) AS country,
                    CASE left(invoice_no, 1) WHEN 'C' THEN 'refund' WHEN 'A' THEN 'adjustment' ELSE 'sale' END AS kind,
                    'none' AS refund_status, 0.0::DOUBLE AS refunded_gbp, min(t) AS t FROM line GROUP BY ALL)""",
            "customers": f"""SELECT *, t AS registered_at, t AS updated_at, {history} FROM (
                SELECT customer_id, arg_max(country, t) AS country, min(t) AS t FROM line
                WHERE customer_id IS NOT NULL GROUP BY 1)""",
            "products": f"""SELECT *, t AS updated_at, {history} FROM (
                SELECT stock_code, arg_max(description, t) AS description, arg_max(unit_price_gbp, t) AS list_price_gbp,
                    max(t) AS t FROM line GROUP BY 1)""",
        }.items():
            source = next(s for s in SOURCES if s.table == table)
            names = ", ".join(c.name for c in (*source.columns, *HISTORY_COLUMNS))
            lake.append(keys.raw("shop", table), db.sql(f"SELECT {names} FROM ({sql})").to_arrow_table())


def test_reference_facts(retail: Home) -> None:
    facts = "count(*), count(DISTINCT customer_id), count(DISTINCT invoice_no), round(sum(amount_gbp), 3)"
    assert retail.rows(f"SELECT {facts} FROM marts.sales.purchase_lines") == [(397_884, 4_338, 18_532, 8_911_407.904)]
    assert retail.rows("SELECT count(*) FROM staging.shop.order_lines") == [(541_909,)]
    refunds = "SELECT count(*), count(DISTINCT invoice_no) FROM marts.sales.refunds"
    assert retail.rows(refunds) == [(9_288, 3_836)]


def test_reference_churn_base(retail: Home) -> None:
    cutoff = "TIMESTAMP '2011-09-10'"
    base = f"SELECT DISTINCT customer_id FROM marts.sales.purchase_lines WHERE invoiced_at < {cutoff}"
    active = f"""SELECT customer_id FROM marts.sales.purchase_lines
        WHERE invoiced_at >= {cutoff} AND invoiced_at < {cutoff} + INTERVAL 90 DAY"""
    counted = f"SELECT count(*), count(*) FILTER (customer_id NOT IN ({active})) FROM ({base})"
    assert retail.rows(counted) == [(3_370, 1_451)]


def test_purchase_lines_equal_the_definition_over_the_file(retail: Home) -> None:
    definition = f"""
        SELECT CustomerID::BIGINT, InvoiceNo, StockCode, Quantity::BIGINT, UnitPrice, InvoiceDate, Country
        FROM read_parquet('{RETAIL}')
        WHERE CustomerID IS NOT NULL AND left(InvoiceNo, 1) NOT IN ('A', 'C') AND Quantity > 0 AND UnitPrice > 0"""
    ours = """SELECT customer_id, invoice_no, stock_code, quantity, unit_price_gbp, invoiced_at, country
        FROM marts.sales.purchase_lines"""
    for one, other in ((definition, ours), (ours, definition)):
        assert retail.rows(f"SELECT count(*) FROM ({one} EXCEPT ALL {other})") == [(0,)]


def test_exact_duplicates_are_kept_and_flagged(retail: Home) -> None:
    same = "invoice_no, stock_code, quantity, unit_price_gbp, invoiced_at, customer_id"
    expected = f"SELECT sum(n - 1) FROM (SELECT count(*) AS n FROM marts.sales.purchase_lines GROUP BY {same})"
    flagged = "SELECT count(*) FILTER (is_exact_duplicate) FROM marts.sales.purchase_lines"
    assert retail.rows(flagged) == retail.rows(expected)
    assert retail.rows(flagged)[0][0] > 5_000


def test_marts_agree_with_each_other(retail: Home) -> None:
    total = "SELECT round(sum({0}), 2), round(sum({1}), 2) FROM marts.sales.{2}"
    daily = retail.rows(total.format("amount_gbp", "refund_amount_gbp", "customer_daily"))
    assert retail.rows(total.format("purchase_amount_gbp", "refund_amount_gbp", "customers")) == daily
    lines = "SELECT count(*) FILTER (is_purchase), count(*) FILTER (is_refund) FROM marts.sales.customer_lines"
    known = "SELECT count(*) FROM marts.sales.refunds WHERE customer_id IS NOT NULL"
    assert retail.rows(lines) == [(397_884, retail.rows(known)[0][0])]
    booked = retail.rows("SELECT sum(lines), round(sum(amount_gbp), 2) FROM marts.sales.orders")
    assert booked == [(541_909, 9_747_747.93)]


def test_every_gate_passes_on_the_real_file(retail: Home) -> None:
    assert _broken_checks(retail, datetime(2011, 12, 9, 12, 50)) == []


def _broken_checks(home: Home, now: datetime) -> list[str]:
    catalog = load_catalog(CATALOG_DIR)
    gated = [(keys.raw(s.system, s.table), s.gate, s) for s in catalog.sources]
    marts = [(Key.parse(g.table), g, None) for g in catalog.gates if g.table and g.table.startswith("marts/")]
    outcomes = [o for key, gate, source in [*gated, *marts] for o in evaluate_gate(home.lake, key, gate, now, source)]
    return [o.message for o in outcomes if not o.passed]


# A tiny shop: everything that a history can do to a key


DAY0 = datetime(2019, 1, 1, 9, 0)


def at(days: float) -> datetime:
    return DAY0 + timedelta(days=days)


@dataclass
class History:
    """Changes of one table in log order; positions grow by themselves unless one is given."""

    table: str
    changes: list[dict[str, Any]]

    def add(self, op: str, landed: float, position: int | None = None, **row: Any) -> None:
        place = len(self.changes)
        self.changes.append(
            {**row, "change_op": op, "source_epoch": 1, "source_position": place if position is None else position,
             "source_order": 0, "tx_id": None, "event_at": at(landed),
             "landed_at": at(landed), "log_partition": 0, "log_offset": place}
        )  # fmt: skip

    def land(self, lake: Lake) -> None:
        source = next(s for s in SOURCES if s.table == self.table)
        fields = [(c.name, arrow_type(parse_type(c.type))) for c in (*source.columns, *HISTORY_COLUMNS)]
        lake.append(keys.raw("shop", self.table), pa.Table.from_pylist(self.changes, pa.schema(fields)))


def line(
    invoice: str, no: int, day: float, quantity: int = 1, price: float = 2.5, customer: int | None = 1
) -> dict[str, Any]:
    return {
        "invoice_no": invoice, "line_no": no, "customer_id": customer, "stock_code": "P1", "quantity": quantity,
        "unit_price_gbp": price, "invoiced_at": at(day),
    }  # fmt: skip


def order(
    invoice: str, day: float, customer: int | None = 1, status: str = "none", refunded: float = 0.0
) -> dict[str, Any]:
    kind = {"C": "refund", "A": "adjustment"}.get(invoice[0], "sale")
    return {
        "invoice_no": invoice, "customer_id": customer, "country": "France", "kind": kind, "refund_status": status,
        "refunded_gbp": refunded, "ordered_at": at(day), "updated_at": at(day),
    }  # fmt: skip


def random_lines(lines: History, seed: int = 5, changes: int = 400) -> None:
    """Changes to ten lines of one invoice that land repeatedly, out of order, several at one instant."""
    dice = random.Random(seed)
    written: list[dict[str, Any]] = []
    state: dict[int, bool] = {}
    for position in range(1000, 1000 + changes):
        no = dice.randrange(10)
        op = "c" if not state.get(no) else dice.choice("uud")
        state[no] = op != "d"
        written.append(
            {"op": op, "position": position, **line("R1", no, 60, quantity=dice.randrange(1, 9), customer=9)}
        )
    written += dice.choices(written, k=changes // 4)  # delivered again, any time later
    delayed = sorted(written, key=lambda c: (c["position"] + dice.choice([0, 0, 0, 8, 40]), dice.random()))
    for place, change in enumerate(delayed):
        lines.add(landed=60 + place // 3 * 0.01, **change)


@pytest.fixture(scope="module")
def shop_lines() -> History:
    lines = History("order_lines", [])
    lines.add("c", 0, **line("1", 1, 0))
    lines.add("c", 0, **line("1", 2, 0))  # exact duplicate of the line before
    lines.add("c", 0, **line("2", 1, 0, quantity=4, price=0.1, customer=2))  # one purchase ever
    lines.add("c", 1, **line("C3", 1, 1, quantity=-1))  # refund
    lines.add("c", 1, **line("A4", 1, 1, price=-9.0))  # adjustment
    lines.add("c", 1, **line("5", 1, 1, customer=None))  # unknown buyer
    lines.add("c", 1, **line("5", 2, 1, price=0.0))  # a gift
    lines.add("c", 10, **line("6", 1, 2))  # landed eight days late
    lines.add("u", 12, **line("6", 1, 2, quantity=7))  # corrected two days after
    lines.add("c", 12, **line("6", 2, 12))
    lines.add("d", 13, **line("6", 2, 12))  # deleted
    lines.add("c", 45, **line("7", 1, 45, quantity=1))  # after a month of silence
    lines.add("u", 45, **line("7", 1, 45, quantity=2))  # replaced at the very same instant
    random_lines(lines)
    return lines


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, shop_lines: History) -> Home:
    home = Home(tmp_path_factory.mktemp("shop"))
    orders = History("orders", [])
    for invoice, day, customer in [("1", 0, 1), ("2", 0, 2), ("C3", 1, 1), ("A4", 1, 1), ("5", 1, None), ("6", 2, 1)]:
        orders.add("c", day, **order(invoice, day, customer))
    orders.add("u", 1, **order("1", 0, status="partial", refunded=2.5))
    for invoice, day, customer in [("7", 45, 1), ("R1", 60, 9)]:
        orders.add("c", day, **order(invoice, day, customer))
    customers, products = History("customers", []), History("products", [])
    for op, day, customer, country in [
        ("c", 0, 1, "France"),
        ("c", 0, 2, "Spain"),
        ("u", 45, 1, "Italy"),
        ("c", 60, 9, "Peru"),
    ]:
        customers.add(op, day, customer_id=customer, country=country, registered_at=at(0), updated_at=at(day))
    for op, price in [("c", 2.5), ("u", 3.0)]:
        products.add(op, 50, stock_code="P1", description="a cup", list_price_gbp=price, updated_at=at(50))
    for history in (shop_lines, orders, customers, products):
        history.land(home.lake)
    home.build()
    return home


def test_staging_holds_the_latest_state(shop: Home) -> None:
    lines = "SELECT line_no, quantity FROM staging.shop.order_lines WHERE invoice_no = '{}' ORDER BY 1"
    assert shop.rows(lines.format("6")) == [(1, 7)]
    assert shop.rows(lines.format("7")) == [(1, 2)]
    assert shop.rows("SELECT customer_id, country FROM staging.shop.customers ORDER BY 1") == [
        (1, "Italy"), (2, "Spain"), (9, "Peru"),
    ]  # fmt: skip
    assert shop.rows("SELECT stock_code, list_price_gbp FROM staging.shop.products") == [("P1", 3.0)]
    refunded = "SELECT refund_status, refunded_gbp FROM staging.shop.orders WHERE invoice_no = '1'"
    assert shop.rows(refunded) == [("partial", 2.5)]


def test_versions_say_what_was_known_when(shop: Home) -> None:
    versions = (
        "SELECT quantity, known_from, known_to FROM staging.shop.order_line_versions WHERE {} ORDER BY known_from"
    )
    assert shop.rows(versions.format("invoice_no = '6' AND line_no = 1")) == [(1, at(10), at(12)), (7, at(12), None)]
    assert shop.rows(versions.format("invoice_no = '6' AND line_no = 2")) == [(1, at(12), at(13))]
    assert shop.rows(versions.format("invoice_no = '7'")) == [(2, at(45), None)]


def known(changes: Sequence[dict[str, Any]], instant: datetime) -> dict[int, int]:
    """Brute force: line number to quantity of invoice R1, from the furthest position that had landed by then."""
    latest: dict[int, dict[str, Any]] = {}
    for change in changes:
        no = change["line_no"]
        landed = change["invoice_no"] == "R1" and change["landed_at"] <= instant
        if landed and (no not in latest or change["source_position"] > latest[no]["source_position"]):
            latest[no] = change
    return {no: c["quantity"] for no, c in latest.items() if c["change_op"] != "d"}


def test_versions_equal_brute_force_at_every_instant(shop: Home, shop_lines: History) -> None:
    """Changes delivered twice, overtaken and late: the state known at each instant is that of the furthest position."""
    instants = sorted({c["landed_at"] for c in shop_lines.changes if c["invoice_no"] == "R1"})
    versions = shop.rows("""SELECT line_no, quantity, known_from, coalesce(known_to, TIMESTAMP '9999-01-01')
        FROM staging.shop.order_line_versions WHERE invoice_no = 'R1'""")
    assert len(instants) > 100
    for instant in instants:
        ours = {no: quantity for no, quantity, start, end in versions if start <= instant < end}
        assert ours == known(shop_lines.changes, instant)
    current = dict(shop.rows("SELECT line_no, quantity FROM staging.shop.order_lines WHERE invoice_no = 'R1'"))
    assert current == known(shop_lines.changes, instants[-1])


def test_purchase_lines_of_the_tiny_shop(shop: Home) -> None:
    lines = shop.rows("""SELECT invoice_no, line_no, amount_gbp, is_exact_duplicate FROM marts.sales.purchase_lines
        WHERE invoice_no <> 'R1' ORDER BY ALL""")
    assert lines == [
        ("1", 1, 2.5, False), ("1", 2, 2.5, True), ("2", 1, 0.4, False), ("6", 1, 17.5, False), ("7", 1, 5.0, False),
    ]  # fmt: skip


def test_customer_daily_of_the_tiny_shop(shop: Home) -> None:
    assert shop.rows("SELECT * FROM marts.sales.customer_daily WHERE customer_id < 9 ORDER BY 1, 2") == [
        (1, date(2019, 1, 1), 1, 2, 2, 5.0, 0.0),
        (1, date(2019, 1, 2), 0, 0, 0, 0.0, 2.5),
        (1, date(2019, 1, 3), 1, 1, 7, 17.5, 0.0),
        (1, date(2019, 2, 15), 1, 1, 2, 5.0, 0.0),
        (2, date(2019, 1, 1), 1, 1, 4, 0.4, 0.0),
    ]


def test_every_gate_passes_on_the_tiny_shop(shop: Home) -> None:
    assert _broken_checks(shop, at(62)) == []


def test_published_tables_have_the_declared_columns_in_order(shop: Home) -> None:
    for key in TABLES:
        described = shop.rows(f"DESCRIBE {key.dotted}")
        assert [(r[0], r[1]) for r in described] == [(c.name, c.sql_type) for c in dbt_columns(key)], key.dotted


def test_building_again_without_changes_adds_no_version(shop: Home) -> None:
    done = shop.dbt(*SELECTION)
    assert done.returncode == 0, done.stdout[-4000:]
    assert not any(p.changed for p in publish(shop.warehouse, shop.lake, TABLES).values())


def test_a_broken_table_fails_its_test_and_stops_what_follows(shop: Home, tmp_path: Path) -> None:
    """A kind that no shop has: the test on staging fails, the mart built from it is skipped."""
    home = Home(tmp_path)
    for source in SOURCES:
        home.lake.append(keys.raw("shop", source.table), shop.lake.read(keys.raw("shop", source.table)))
    orders = History("orders", [])
    orders.add("c", 61, position=9999, **{**order("8", 61), "kind": "gift"})
    orders.land(home.lake)
    done = home.dbt("staging_shop__orders", "staging_shop__order_lines+1", "marts_sales__orders")
    assert done.returncode == 1
    results = json.loads((home.path / "dbt" / "run_results.json").read_text())["results"]
    status = {r["unique_id"].split(".")[2]: r["status"] for r in results}
    assert status["staging_shop_orders_kind"] == "fail"
    assert status["marts_sales__orders"] == "skipped"


@pytest.fixture(scope="module")
def manifest(shop: Home) -> dict[str, Any]:
    return dict(json.loads((shop.path / "dbt" / "manifest.json").read_text()))


def test_every_table_and_column_is_described_and_owned(manifest: dict[str, Any]) -> None:
    models = [n for n in manifest["nodes"].values() if n["resource_type"] == "model"]
    for node in [*models, *manifest["sources"].values()]:
        assert node["description"], node["name"]
        assert node["columns"], node["name"]
        assert all(c["description"] and c["data_type"] for c in node["columns"].values()), node["name"]
    assert all(n["config"]["meta"]["dagster"]["owners"] for n in models)


def test_every_table_is_tested(manifest: dict[str, Any]) -> None:
    tested = {n["attached_node"] for n in manifest["nodes"].values() if n["resource_type"] == "test"}
    assert {n for n, node in manifest["nodes"].items() if node["resource_type"] == "model"} <= tested


@pytest.fixture
def lineage(shop: Home, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from dagster_dbt import DbtCliResource
    from dagster_dbt.core.dbt_event_iterator import DbtEventIterator

    for name, value in dbt_environment(shop.warehouse).items():
        monkeypatch.setenv(name, value)
    project, dbt = str(DBT_PROJECT_DIR), str(Path(sys.executable).parent / "dbt")
    resource = DbtCliResource(project_dir=project, profiles_dir=project, dbt_executable=dbt)
    arguments = dbt_args("run", SELECTION, home=shop.path)
    invocation = resource.cli(arguments, manifest=manifest, target_path=shop.path / "dbt")
    events = DbtEventIterator(iter(list(invocation.stream())), invocation).fetch_column_metadata()
    found = {}
    for event in events:
        unique_id = str(event.metadata["unique_id"].value).split(".")[-1]
        found[unique_id] = event.metadata["dagster/column_lineage"].value.deps_by_column  # type: ignore[union-attr]
    return found


def test_column_lineage_reaches_the_raw_columns(lineage: dict[str, Any]) -> None:
    def parents(table: str, column: str) -> set[str]:
        return {f"{'/'.join(d.asset_key.path)}.{d.column_name}" for d in lineage[table][column]}

    bought = {"staging_shop__order_lines.quantity", "staging_shop__order_lines.unit_price_gbp"}
    assert parents("marts_sales__purchase_lines", "amount_gbp") == bought
    assert parents("staging_shop__order_lines", "quantity") == {"staging_shop__order_line_versions.quantity"}
    assert parents("staging_shop__order_line_versions", "quantity") == {"raw/shop/order_lines.quantity"}
    assert parents("staging_shop__customers", "country") == {"raw/shop/customers.country"}
    assert all(columns[c] for columns in lineage.values() for c in columns), "a column without any parent"
