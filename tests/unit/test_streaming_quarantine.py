"""From a retail file to quarantine: what could not be read lands nowhere else, and in its own words."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog.keys import quarantine, raw
from catalog.load import load_catalog
from lake.tables import Lake
from streaming.landing import land
from streaming.replay import replay
from streaming.retail import read_retail
from streaming.sqlite_log import SqliteLog

CATALOG = Path(__file__).resolve().parents[2] / "catalog"
HEADER = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"]
GOOD = ["536365", "85123A", "WHITE HANGING HEART", "6", "2010-12-01 8:26", "2.55", "17850", "United Kingdom"]


def landed(home: Path, lines: list[list[str]], header: list[str] = HEADER) -> tuple[list[Any], list[Any]]:
    """The rows of raw.shop.order_lines and of its quarantine, in order of the log, after the lines were replayed."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "retail.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines])
    lake = Lake(home / "lake")
    with SqliteLog(home / "log.db") as log:
        replay(read_retail(home / "retail.csv"), log, home / "replay.json")
        land(load_catalog(CATALOG).source("order_lines"), log, lake, 100)
    good, bad = (lake.read(make("shop", "order_lines")).sort_by("log_offset").to_pylist() for make in (raw, quarantine))
    return good, bad


def line(**values: str) -> list[str]:
    return list((dict(zip(HEADER, GOOD, strict=True)) | values).values())


@pytest.mark.parametrize(
    ("values", "reason", "after"),
    [
        (
            {"InvoiceDate": "32/13/2010 8:26"},
            'invoiced_at: not a timestamp, found "32/13/2010 8:26"',
            {"invoiced_at": "32/13/2010 8:26"},
        ),
        (
            {"InvoiceDate": "20110-12-01 8:26"},
            'invoiced_at: not a timestamp, found "20110-12-01 8:26 (allowed are years 1900 to 2199)"',
            {"invoiced_at": "20110-12-01 8:26 (allowed are years 1900 to 2199)"},
        ),
        ({"Quantity": "six"}, 'quantity: not an int64, found "six"', {"quantity": "six"}),
        ({"UnitPrice": "£2.55"}, 'unit_price_gbp: not a float64, found "£2.55"', {"unit_price_gbp": "£2.55"}),
        ({"CustomerID": "17850.5"}, 'customer_id: not an int64, found "17850.5"', {"customer_id": "17850.5"}),
        (
            {"Quantity": "six", "InvoiceDate": 'in "June"', "StockCode": ""},
            "stock_code: null, but must not be",
            {"quantity": "six", "invoiced_at": 'in "June"', "stock_code": None},
        ),
        ({"InvoiceDate": ""}, "invoiced_at: null, but must not be", {"invoiced_at": None}),
        ({"Quantity": ""}, "quantity: null, but must not be", {"quantity": None}),
    ],
)
def test_the_original_text_is_in_quarantine(
    tmp_path: Path, values: dict[str, str], reason: str, after: dict[str, Any]
) -> None:
    good, [bad] = landed(tmp_path, [GOOD, line(**values), GOOD])
    assert [row["line_no"] for row in good] == [1, 3]
    assert bad["reason"] == reason
    envelope = json.loads(bad["value"])
    expected = {
        "invoice_no": "536365",
        "line_no": 2,
        "customer_id": 17850,
        "stock_code": "85123A",
        "quantity": 6,
        "unit_price_gbp": 2.55,
        "invoiced_at": 1291191960000000,
    }
    assert envelope["after"] == expected | after
    assert (envelope["op"], envelope["before"], envelope["source"]["lsn"]) == ("c", None, 19)


def test_an_unreadable_landing_time_is_not_taken_for_an_early_one(tmp_path: Path) -> None:
    good, [bad] = landed(tmp_path, [[*GOOD, ""], [*GOOD, "next week"]], [*HEADER, "LandedAt"])
    assert len(good) == 1
    assert bad["reason"] == 'invoiced_at: not a timestamp, found "2010-12-01 8:26 (LandedAt next week)"'


def test_a_line_that_cannot_be_taken_apart_is_there_as_a_whole(tmp_path: Path) -> None:
    good, bad = landed(tmp_path, [GOOD, ["536366", "a £", "too few"], GOOD])
    assert len(good) == 2
    assert [b["reason"] for b in bad] == [
        'after: not a JSON object (before, for a delete), found "536366,a £,too few"',
    ]
    assert bad[0]["log_offset"] == 1
    assert json.loads(bad[0]["value"])["after"] == "536366,a £,too few"


def test_a_new_reason_replays_and_resumes_as_before(tmp_path: Path) -> None:
    """The position in the log is found again by the very record, text of unread values included."""
    lines = [GOOD, line(InvoiceDate="then"), ["ragged"], line(Quantity="x")]
    landed(tmp_path, lines)
    good, bad = landed(tmp_path, [*lines, GOOD, line(UnitPrice="?")])
    assert [row["log_offset"] for row in good] == [0, 4]
    assert [row["log_offset"] for row in bad] == [1, 2, 3, 5]


# No second number above 12: that could only be a day, and a file with both orders is refused as a whole.
DATES = r"[0-9]{1,6}[-/. ](0?[1-9]|1[0-2])[-/. ][0-9]{1,6}( [0-9]{1,2}:[0-9]{2}( ?[A-Z+-][A-Za-z0-9/]*)?)?"
TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12),
    st.from_regex(DATES, fullmatch=True),
    st.from_regex(r"[+-]?[0-9]{0,20}[.,]?[0-9]{0,3}(e[+-]?[0-9]{1,3})?", fullmatch=True),
    st.sampled_from(
        ["infinity", "-infinity", "epoch", "now", "nan", "NULL", "true", "0x10", "1_000", "{}", "[]", '""']
    ),
)
NAMES = {
    "Quantity": "quantity",
    "InvoiceDate": "invoiced_at",
    "UnitPrice": "unit_price_gbp",
    "CustomerID": "customer_id",
}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(column=st.sampled_from(list(NAMES)), texts=st.lists(TEXTS, min_size=40, max_size=60, unique=True))
def test_a_value_is_read_or_quarantined_and_never_replaced(
    tmp_path_factory: pytest.TempPathFactory, column: str, texts: list[str]
) -> None:
    """Each line lands with a value, or is in quarantine with its text; only a customer may be unknown."""
    lines = [line(InvoiceNo=str(i), **{column: text}) for i, text in enumerate(texts)]
    good, bad = landed(tmp_path_factory.mktemp("home"), lines)
    assert len(good) + len(bad) == len(texts)
    for row in good:
        text = texts[int(row["invoice_no"])].strip().lower()
        assert row[NAMES[column]] is not None or (column == "CustomerID" and text in ("", "nan", "null", "-"))
    for row in bad:
        after = json.loads(row["value"])["after"]
        text = texts[int(after["invoice_no"])]
        assert (after[NAMES[column]] or "").startswith(text) or not text.strip()
