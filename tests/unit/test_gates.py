"""The gates: a good table passes all five checks, and each way to break one fails the check that is meant for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog import keys
from catalog.keys import Key
from catalog.load import load_catalog
from catalog.settings import CATALOG_DIR
from catalog.spec import Column, Expectation, Gate, Source
from lake import Lake
from lake.gates import CHECK_NAMES, CheckOutcome, evaluate_gate
from lake.schema import TableColumn, dbt_columns

# Great Expectations 1.24 imports modules that Python deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NOW = datetime(2011, 12, 9, 12, 50)
RAW = keys.raw("shop", "lines")
ASIDE = keys.quarantine("shop", "lines")
TOPIC = f"{keys.cdc_topic('shop', 'lines')}-0"
MART = Key("marts", "sales", "lines")

BETWEEN = Expectation(
    expect="expect_column_values_to_be_between", column="quantity", arguments={"min_value": -10, "max_value": 10}
)
KNOWN = Expectation(expect="expect_column_values_to_not_be_null", column="customer_id", mostly=0.6)
GATE = Gate(key=("invoice_no", "line_no"), event_time="booked_at", freshness_days=7, expectations=(BETWEEN, KNOWN))
SOURCE = Source(
    system="shop",
    table="lines",
    description="Lines of a small shop.",
    owner="team:test",
    domain="sales",
    columns=(
        Column(name="invoice_no", type="string", nullable=False, description="number"),
        Column(name="line_no", type="int64", nullable=False, description="line"),
        Column(name="customer_id", type="int64", description="customer"),
        Column(name="quantity", type="int64", nullable=False, description="units"),
        Column(name="booked_at", type="timestamp", nullable=False, description="instant"),
    ),
    gate=GATE,
)
MART_COLUMNS = tuple(
    TableColumn(name, kind)
    for name, kind in [
        ("invoice_no", "VARCHAR"),
        ("line_no", "BIGINT"),
        ("customer_id", "BIGINT"),
        ("quantity", "BIGINT"),
        ("booked_at", "TIMESTAMP"),
    ]
)


def mart_rows(count: int = 10) -> pa.Table:
    return pa.table(
        {
            "invoice_no": pa.array([str(n // 2) for n in range(count)], pa.string()),
            "line_no": pa.array([n % 2 for n in range(count)], pa.int64()),
            "customer_id": pa.array([n if n % 4 else None for n in range(count)], pa.int64()),
            "quantity": pa.array([n % 5 for n in range(count)], pa.int64()),
            "booked_at": pa.array([NOW - timedelta(days=n) for n in range(count)], pa.timestamp("us")),
        }
    )


def raw_rows(count: int = 10, first_offset: int = 0) -> pa.Table:
    rows = mart_rows(count)
    offsets = pa.array(range(first_offset, first_offset + count), pa.int64())
    at = pa.array([NOW] * count, pa.timestamp("us"))
    history: dict[str, pa.Array] = {
        "change_op": pa.array(["c"] * count),
        "source_epoch": offsets,
        "source_position": offsets,
        "source_order": offsets,
        "tx_id": offsets,
        "event_at": at,
        "landed_at": at,
        "log_partition": pa.array([0] * count, pa.int64()),
        "log_offset": offsets,
    }
    for name, values in history.items():
        rows = rows.append_column(name, values)
    return rows


def replace(rows: pa.Table, name: str, values: list[Any]) -> pa.Table:
    place = rows.schema.get_field_index(name)
    return rows.set_column(place, name, pa.array(values, rows.schema.field(name).type))


def quarantined(count: int, first_offset: int = 0) -> pa.Table:
    return pa.table(
        {
            "reason": pa.array([f"quantity is null, found {n}" for n in range(count)], pa.string()),
            "log_partition": pa.array([0] * count, pa.int64()),
            "log_offset": pa.array(range(first_offset, first_offset + count), pa.int64()),
        }
    )


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def check_mart(lake: Lake, rows: pa.Table, gate: Gate = GATE) -> dict[str, CheckOutcome]:
    lake.overwrite(MART, rows)
    return {o.name: o for o in evaluate_gate(lake, MART, gate, NOW, columns=MART_COLUMNS)}


def check_raw(lake: Lake, rows: pa.Table) -> dict[str, CheckOutcome]:
    lake.overwrite(RAW, rows)
    return {o.name: o for o in evaluate_gate(lake, RAW, GATE, NOW, SOURCE)}


def failed(outcomes: dict[str, CheckOutcome]) -> set[str]:
    return {name for name, outcome in outcomes.items() if not outcome.passed}


def test_a_good_mart_passes(lake: Lake) -> None:
    outcomes = check_mart(lake, mart_rows())
    assert tuple(outcomes) == CHECK_NAMES
    assert failed(outcomes) == set()
    assert all(MART.dotted in o.message for o in outcomes.values())
    assert outcomes["volume"].metadata["rows"] == 10
    assert outcomes["freshness"].metadata["age_days"] == 0


def test_a_good_history_passes_with_many_rows_for_one_key(lake: Lake) -> None:
    rows = replace(raw_rows(), "invoice_no", ["1"] * 10)
    assert failed(check_raw(lake, replace(rows, "line_no", [1] * 10))) == set()


def with_nulls(name: str, nulls: int) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: replace(rows, name, [None] * nulls + rows[name].to_pylist()[nulls:])


MART_BREAKS: dict[str, tuple[Callable[[pa.Table], pa.Table], set[str], str, str]] = {
    "a column that the contract needs is gone": (
        lambda rows: rows.drop_columns(["quantity"]), {"schema", "contract"}, "schema", "misses column quantity"
    ),
    "a key column is gone": (
        lambda rows: rows.drop_columns(["line_no"]), {"schema", "keys"}, "keys", "has no column line_no"
    ),
    "the event time is gone": (
        lambda rows: rows.drop_columns(["booked_at"]), {"schema", "freshness"}, "freshness", "no column booked_at"
    ),
    "a type changed": (
        lambda rows: rows.set_column(3, "quantity", rows["quantity"].cast(pa.float64())),
        {"schema"}, "schema", "column quantity is DOUBLE, allowed is BIGINT",
    ),
    "no rows": (lambda rows: rows.slice(0, 0), {"volume", "freshness"}, "volume", "has 0 rows, allowed are 1 or more"),
    "half the rows null": (
        with_nulls("customer_id", 5), {"contract"}, "contract", "expect_column_values_to_not_be_null(customer_id)"
    ),
    "values out of range": (
        lambda rows: replace(rows, "quantity", [99] * 10), {"contract"}, "contract", "broken by 10 of 10 rows"
    ),
    "a repeated key": (
        lambda rows: pa.concat_tables([rows, rows.slice(3, 2)]), {"keys"}, "keys", "such as invoice_no 1, line_no 1"
    ),
    "a null in the key": (with_nulls("invoice_no", 3), {"keys"}, "keys", "3 rows with a null in their key"),
    "too old": (
        lambda rows: replace(rows, "booked_at", [NOW - timedelta(days=8)] * 10),
        {"freshness"}, "freshness", "8.00 days before 2011-12-09T12:50:00; allowed are 7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MART_BREAKS)
def test_a_broken_mart_fails_the_check_meant_for_it(lake: Lake, case: str) -> None:
    broken, checks, named, message = MART_BREAKS[case]
    outcomes = check_mart(lake, broken(mart_rows()))
    assert failed(outcomes) == checks
    assert message in outcomes[named].message
    assert outcomes[named].message.startswith(MART.dotted)


def test_only_freshness_may_warn(lake: Lake) -> None:
    for declared in ("warn", "block"):
        outcomes = check_mart(lake, mart_rows(), GATE.model_copy(update={"freshness": declared}))
        assert {o.name: o.severity for o in outcomes.values()} == {
            **dict.fromkeys(CHECK_NAMES, "block"),
            "freshness": declared,
        }


def test_an_added_column_is_reported_and_passes(lake: Lake) -> None:
    schema = check_mart(lake, mart_rows().append_column("extra", pa.array([1] * 10)))["schema"]
    assert schema.passed
    assert "not declared, but there: extra" in schema.message


def test_a_table_that_may_be_empty_passes_when_it_is(lake: Lake) -> None:
    assert failed(check_mart(lake, mart_rows(0), GATE.model_copy(update={"min_rows": 0}))) == set()


def test_a_table_that_was_never_written_fails_everything(lake: Lake) -> None:
    outcomes = evaluate_gate(lake, MART, GATE, NOW)
    assert [(o.name, o.passed, o.severity) for o in outcomes] == [(n, False, "block") for n in CHECK_NAMES]
    assert all(o.message == "marts.sales.lines does not exist: it was never written" for o in outcomes)


RAW_BREAKS: dict[str, tuple[Callable[[pa.Table], pa.Table], set[str], str, str]] = {
    "a column is gone": (lambda rows: rows.drop_columns(["tx_id"]), {"schema"}, "schema", "misses column tx_id"),
    "half the rows null": (with_nulls("quantity", 5), {"schema"}, "schema", "column quantity is null on 5 rows"),
    "landed twice": (
        lambda rows: pa.concat_tables([rows, rows]), {"keys"}, "keys", "10 rows beyond the first"
    ),
    "no rows": (lambda rows: rows.slice(0, 0), {"volume", "freshness"}, "volume", "has 0 rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", RAW_BREAKS)
def test_a_broken_history_fails_the_check_meant_for_it(lake: Lake, case: str) -> None:
    broken, checks, named, message = RAW_BREAKS[case]
    outcomes = check_raw(lake, broken(raw_rows()))
    assert failed(outcomes) == checks
    assert message in outcomes[named].message


def test_deletions_may_carry_their_key_alone(lake: Lake) -> None:
    rows = with_nulls("quantity", 2)(raw_rows())
    assert failed(check_raw(lake, rows)) == {"schema"}
    assert failed(check_raw(lake, replace(rows, "change_op", ["d", "d", *["c"] * 8]))) == set()


def test_an_update_of_a_table_without_key_is_two_rows_of_one_record(lake: Lake) -> None:
    rows = replace(raw_rows(), "log_offset", [n // 2 for n in range(10)])
    assert failed(check_raw(lake, replace(rows, "change_op", ["d", "u"] * 5))) == {"keys"}
    lake.overwrite(RAW, replace(rows, "change_op", ["d", "u"] * 5))
    gate = GATE.model_copy(update={"key": ()})
    keyless = SOURCE.model_copy(update={"keyless": True, "gate": gate})
    assert failed({o.name: o for o in evaluate_gate(lake, RAW, gate, NOW, keyless)}) == set()
    lake.overwrite(RAW, rows)
    assert failed({o.name: o for o in evaluate_gate(lake, RAW, gate, NOW, keyless)}) == {"keys"}


@pytest.mark.parametrize(("bad", "passes"), [(0, True), (2, True), (3, False), (1000, False)])
def test_quarantine_bounds_the_table(lake: Lake, bad: int, passes: bool) -> None:
    """20 % are allowed: 2 of 12 rows pass, 3 of 13 do not."""
    lake.append(ASIDE, quarantined(bad, first_offset=10))
    volume = check_raw(lake, raw_rows())["volume"]
    assert volume.passed is passes
    if not passes:
        assert "to quarantine, allowed are 20 %; most often because: quantity is null" in volume.message
        assert f"({bad:,})" in volume.message


@pytest.mark.parametrize(
    ("good", "bad", "passes"),
    [(100, 20, True), (50, 50, False), (0, 100, False), (0, 99, True)],
)
def test_quarantine_bounds_the_newest_landing_too(lake: Lake, good: int, bad: int, passes: bool) -> None:
    """A broken batch hides in a long history; a handful of bad rows does not stop a trickle."""
    lake.append(RAW, raw_rows(1000), {TOPIC: 1000})
    lake.append(ASIDE, quarantined(bad, first_offset=1000), {TOPIC: 1000 + bad + good})
    lake.append(RAW, raw_rows(good, first_offset=1000 + bad), {TOPIC: 1000 + bad + good})
    volume = evaluate_gate(lake, RAW, GATE, NOW, SOURCE)[1]
    assert volume.passed is passes
    assert passes or "of newest" in volume.message


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        (Expectation(expect="expect_column_values_to_be_betwen", column="quantity"), "_to_be_between?"),
        (Expectation(expect="expect_column_values_to_be_between", column="quantity", arguments={"min": 1}), "min"),
        (Expectation(expect="expect_column_values_to_be_between", column="nope", arguments={"min_value": 1}), "nope"),
    ],
)  # fmt: skip
def test_an_expectation_that_cannot_be_evaluated_lets_nothing_through(
    lake: Lake, expectation: Expectation, message: str
) -> None:
    outcome = check_mart(lake, mart_rows(), GATE.model_copy(update={"expectations": (BETWEEN, expectation)}))[
        "contract"
    ]
    assert not outcome.passed
    assert message in outcome.message


def test_equal_expectations_and_table_wide_ones_keep_their_order(lake: Lake) -> None:
    wide = Expectation(expect="expect_table_row_count_to_be_between", arguments={"min_value": 11})
    outcome = check_mart(lake, mart_rows(), GATE.model_copy(update={"expectations": (BETWEEN, BETWEEN, wide)}))[
        "contract"
    ]
    assert outcome.metadata["expectations"] == 3
    assert outcome.metadata["broken"] == 1
    assert "expect_table_row_count_to_be_between with min_value 11 found 10" in outcome.message


GATES = load_catalog(CATALOG_DIR).gates


def test_every_mart_has_a_gate() -> None:
    gated = {g.table for g in GATES}
    wanted = {"orders", "customers", "purchase_lines", "refunds", "customer_daily", "customer_lines"}
    assert {f"marts/sales/{name}" for name in wanted} <= gated


@pytest.mark.parametrize("gate", [g for g in GATES if g.table and g.table.startswith("marts/")], ids=lambda g: g.table)
def test_gates_name_columns_that_their_tables_have(gate: Gate) -> None:
    assert gate.table is not None
    declared = {c.name for c in dbt_columns(Key.parse(gate.table))}
    used = {*gate.key, gate.event_time, *(e.column for e in gate.expectations if e.column)}
    assert used <= declared
