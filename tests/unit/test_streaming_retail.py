"""Retail files as they are found: other orders, types, encodings, dates; and what is refused."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.retail import LINE_SCHEMA, RetailFileError, read_retail

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
FIRST = "536365,85123A,WHITE HANGING HEART,6,12/1/2010 8:26,2.55,17850.0,United Kingdom"
EXPECTED = {
    "invoice_no": "536365",
    "stock_code": "85123A",
    "description": "WHITE HANGING HEART",
    "quantity": 6,
    "invoiced_at": datetime(2010, 12, 1, 8, 26),
    "unit_price_gbp": 2.55,
    "customer_id": 17850,
    "country": "United Kingdom",
    "landed_at": None,
}


def csv(tmp_path: Path, *lines: str, encoding: str = "utf-8", header: str = HEADER) -> list[dict[str, Any]]:
    path = tmp_path / "retail.csv"
    path.write_bytes("\r\n".join([header, *lines, ""]).encode(encoding))
    table = read_retail(path)
    assert table.schema == LINE_SCHEMA
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def cell(tmp_path: Path, column: str, text: str) -> Any:
    """What the text in one column of a csv becomes."""
    values = dict(zip(HEADER.split(","), FIRST.split(","), strict=True))
    values[column] = text
    names = dict(zip(HEADER.split(","), EXPECTED, strict=False))
    return csv(tmp_path, ",".join(values.values()))[0][names[column]]


def test_the_uci_csv(tmp_path: Path) -> None:
    assert csv(tmp_path, FIRST) == [EXPECTED]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_byte_order_mark_and_latin_1(tmp_path: Path, encoding: str) -> None:
    assert csv(tmp_path, FIRST.replace("HEART", "£1 CAFÉ"), encoding=encoding) == [
        {**EXPECTED, "description": "WHITE HANGING £1 CAFÉ"}
    ]


def test_any_column_order_extra_columns_quotes_and_other_spellings(tmp_path: Path) -> None:
    header = "Country;extra;customer id;Price;INVOICE;Quantity;InvoiceDate;Description;StockCode;LandedAt"
    line = 'EIRE;x;12345;1.5;C1;-2;2011-01-31T10:00:00;"A ""B""; C\nD";M;2011-02-03 00:00'
    assert csv(tmp_path, line, header=header) == [
        {
            "invoice_no": "C1",
            "stock_code": "M",
            "description": 'A "B"; C\nD',
            "quantity": -2,
            "invoiced_at": datetime(2011, 1, 31, 10),
            "unit_price_gbp": 1.5,
            "customer_id": 12345,
            "country": "EIRE",
            "landed_at": datetime(2011, 2, 3),
        }
    ]


@pytest.mark.parametrize(
    ("column", "text", "value"),
    [
        ("CustomerID", "17850", 17850),
        ("CustomerID", "17850.0", 17850),
        ("CustomerID", "", None),
        ("CustomerID", "17850.5", None),
        ("Quantity", "6.0", 6),
        ("Quantity", "-12", -12),
        ("Quantity", "abc", None),
        ("Quantity", "6.5", None),
        ("Quantity", "1e300", None),
        ("Quantity", "99999999999999999999", None),
        ("UnitPrice", "0", 0.0),
        ("UnitPrice", "-11062.06", -11062.06),
        ("UnitPrice", "nan", None),
        ("UnitPrice", "inf", None),
        ("UnitPrice", "free", None),
        ("InvoiceNo", "536365.0", "536365"),
        ("InvoiceNo", "C536379", "C536379"),
        ("InvoiceNo", "", None),
        ("InvoiceNo", "  ", None),
        ("StockCode", "22752.0", "22752"),
        ("StockCode", "DCGS0003", "DCGS0003"),
        ("Description", "", None),
        ("Description", "NULL", "NULL"),
        ("Description", "1.0", "1.0"),
        ("InvoiceDate", "1/31/2011 17:05", datetime(2011, 1, 31, 17, 5)),
        ("InvoiceDate", "01/02/2011 07:05:09", datetime(2011, 1, 2, 7, 5, 9)),
        ("InvoiceDate", "2/1/11 8:26", datetime(2011, 2, 1, 8, 26)),
        ("InvoiceDate", "2010-12-01 08:26:00", datetime(2010, 12, 1, 8, 26)),
        ("InvoiceDate", "2010-12-01T08:26:00Z", datetime(2010, 12, 1, 8, 26)),
        ("InvoiceDate", "2010-12-01T08:26:00+02:00", datetime(2010, 12, 1, 6, 26)),
        ("InvoiceDate", "2010-12-01", datetime(2010, 12, 1)),
        ("InvoiceDate", "40513.351388888885", datetime(2010, 12, 1, 8, 26)),
        ("InvoiceDate", "31/12/2010 8:26", None),
        ("InvoiceDate", "yesterday", None),
        ("InvoiceDate", "20110-12-01 08:26", None),
        ("InvoiceDate", "0011-12-01 08:26", None),
        ("InvoiceDate", "", None),
    ],
)
def test_values(tmp_path: Path, column: str, text: str, value: Any) -> None:
    assert cell(tmp_path, column, text) == value


def test_a_ragged_line_and_an_empty_line_of_commas_are_kept_as_nulls(tmp_path: Path) -> None:
    rows = csv(tmp_path, FIRST, "536366,22633,too few", ",,,,,,,", FIRST)
    nothing = dict.fromkeys(EXPECTED)
    assert rows == [EXPECTED, nothing, EXPECTED, nothing]


def write(path: Path, **changed: Any) -> Path:
    columns = {
        "InvoiceNo": ["536365", "536366"],
        "StockCode": ["85123A", "22752"],
        "Description": ["A", None],
        "Quantity": [6, 2],
        "InvoiceDate": [datetime(2010, 12, 1, 8, 26), datetime(2010, 12, 1, 8, 28)],
        "UnitPrice": [2.55, 1.0],
        "CustomerID": [17850, None],
        "Country": ["United Kingdom", "EIRE"],
    } | changed
    pq.write_table(pa.table({name: values for name, values in columns.items() if values is not None}), path)
    return path


@pytest.mark.parametrize(
    "changed",
    [
        {"InvoiceNo": [536365, 536366]},
        {"InvoiceNo": [536365.0, 536366.0]},
        {"Quantity": ["6", "2"]},
        {"Quantity": pa.array([6, 2], pa.int16())},
        {"CustomerID": [17850.0, None]},
        {"CustomerID": ["17850", ""]},
        {"UnitPrice": pa.array([2.55, 1.0]).cast(pa.decimal128(10, 2))},
        {"InvoiceDate": pa.array([1291191960000000000, 1291192080000000000], pa.timestamp("ns"))},
        {"InvoiceDate": pa.array([1291191960000, 1291192080000], pa.timestamp("ms", "America/New_York"))},
        {"InvoiceDate": ["12/1/2010 8:26", "2010-12-01T08:28:00"]},
        {"StockCode": pa.array(["85123A", "22752"]).dictionary_encode()},
    ],
)
def test_parquet_of_any_types(tmp_path: Path, changed: dict[str, Any]) -> None:
    rows = read_retail(write(tmp_path / "a.parquet", **changed)).to_pylist()
    plain = read_retail(write(tmp_path / "b.parquet")).to_pylist()
    assert rows == plain
    assert rows[0] == {**EXPECTED, "description": "A"}


def test_parquet_with_days_and_landing_times(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        InvoiceDate=[date(2010, 12, 1), date(2010, 12, 2)],
        LandedAt=[None, datetime(2010, 12, 5)],
    )
    table = read_retail(path)
    assert table["invoiced_at"].to_pylist() == [datetime(2010, 12, 1), datetime(2010, 12, 2)]
    assert table["landed_at"].to_pylist() == [None, datetime(2010, 12, 5)]


def test_xlsx(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append([*HEADER.split(","), "Note"])
    sheet.append(
        [536365, "85123A", "WHITE HANGING HEART", 6, datetime(2010, 12, 1, 8, 26), 2.55, 17850, "United Kingdom"]
    )
    sheet.append(["C536379", 22752, None, "abc", "12/1/2010 9:41", -1, None, "EIRE", "x"])
    book.save(tmp_path / "retail.xlsx")
    first, second = read_retail(tmp_path / "retail.xlsx").to_pylist()
    assert first == EXPECTED
    assert second == {
        "invoice_no": "C536379",
        "stock_code": "22752",
        "description": None,
        "quantity": None,
        "invoiced_at": datetime(2010, 12, 1, 9, 41),
        "unit_price_gbp": -1.0,
        "customer_id": None,
        "country": "EIRE",
        "landed_at": None,
    }


def test_a_missing_column_is_named_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(
        RetailFileError, match=r"a\.parquet: found no column Quantity; the file has InvoiceNo.*needed are"
    ):
        read_retail(write(tmp_path / "a.parquet", Quantity=None))


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.xlsx"])
@pytest.mark.parametrize("content", [b"", b"\x00\x01 not a table at all \xff" * 50])
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RetailFileError, match=name.replace(".", r"\.")):
        read_retail(tmp_path / name)


def test_files_without_lines_and_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RetailFileError, match="found no lines"):
        csv(tmp_path)
    with pytest.raises(RetailFileError, match=r"'\.json', allowed is one of \.parquet, \.csv, \.xlsx"):
        read_retail(tmp_path / "a.json")
    with pytest.raises(RetailFileError, match=r"gone\.parquet"):
        read_retail(tmp_path / "gone.parquet")
