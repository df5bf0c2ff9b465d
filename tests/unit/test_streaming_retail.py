"""Retail files as they are found: other orders, types, encodings, dates; and what is refused."""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.settings import load_settings
from streaming.retail import LINE_SCHEMA, NOTES, RetailFileError, read_retail
from streaming.source import source_lines

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
    "unread": None,
}


def write_csv(tmp_path: Path, *lines: str, encoding: str = "utf-8", header: str = HEADER) -> Path:
    path = tmp_path / "retail.csv"
    path.write_bytes("\r\n".join([header, *lines, ""]).encode(encoding))
    return path


def csv(tmp_path: Path, *lines: str, encoding: str = "utf-8", header: str = HEADER) -> list[dict[str, Any]]:
    table = read_retail(write_csv(tmp_path, *lines, encoding=encoding, header=header))
    assert table.schema == LINE_SCHEMA
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def line(**values: str) -> str:
    """The first line of the UCI csv with values replaced."""
    return ",".join((dict(zip(HEADER.split(","), FIRST.split(","), strict=True)) | values).values())


def unread(row: dict[str, Any]) -> Any:
    return row["unread"] and json.loads(row["unread"])


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
            "unread": None,
        }
    ]


@pytest.mark.parametrize(
    ("column", "text", "value"),
    [
        ("CustomerID", "17850", 17850),
        ("CustomerID", "17850.0", 17850),
        ("CustomerID", "", None),
        ("CustomerID", "NA", None),
        ("CustomerID", "nan", None),
        ("CustomerID", "17850.5", None),
        ("Quantity", "6.0", 6),
        ("Quantity", "-12", -12),
        ("Quantity", "abc", None),
        ("Quantity", "6.5", None),
        ("Quantity", "1e+05", 100_000),
        ("Quantity", "15e-1", None),
        ("Quantity", "9223372036854775807", 2**63 - 1),
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
        ("InvoiceDate", "2010-12-01 08:26:00 Europe/Paris", datetime(2010, 12, 1, 7, 26)),
        ("InvoiceDate", "2010/12/01 08:26", datetime(2010, 12, 1, 8, 26)),
        ("InvoiceDate", "12/1/2010 8:26:05 PM", datetime(2010, 12, 1, 20, 26, 5)),
        ("InvoiceDate", "31/12/2010 8:26", datetime(2010, 12, 31, 8, 26)),
        ("InvoiceDate", "31.12.2010 08:26", datetime(2010, 12, 31, 8, 26)),
        ("InvoiceDate", "12-31-2010 08:26", datetime(2010, 12, 31, 8, 26)),
        ("InvoiceDate", "32/13/2010 8:26", None),
        ("InvoiceDate", "30/2/2010 8:26", None),
        ("InvoiceDate", "2/30/2010 8:26", None),
        ("InvoiceDate", "yesterday", None),
        ("InvoiceDate", "20110-12-01 08:26", None),
        ("InvoiceDate", "0011-12-01 08:26", None),
        ("InvoiceDate", "", None),
    ],
)
def test_values(tmp_path: Path, column: str, text: str, value: Any) -> None:
    [row] = csv(tmp_path, line(**{column: text}))
    name = dict(zip(HEADER.split(","), EXPECTED, strict=False))[column]
    assert row[name] == value


@pytest.mark.parametrize(
    ("column", "text", "kept"),
    [
        ("Quantity", "abc", {"quantity": "abc"}),
        ("Quantity", "6.5", {"quantity": "6.5"}),
        ("Quantity", "N/A", {"quantity": "N/A"}),
        ("Quantity", " ", None),
        ("UnitPrice", "inf", {"unit_price_gbp": "inf"}),
        ("UnitPrice", '"2,55"', {"unit_price_gbp": "2,55"}),
        ("CustomerID", "17850.5", {"customer_id": "17850.5"}),
        ("CustomerID", "n/a", None),
        ("CustomerID", "na|n/a", {"customer_id": "na|n/a"}),
        ("InvoiceDate", "32/13/2010", {"invoiced_at": "32/13/2010"}),
        ("InvoiceDate", "yesterday £", {"invoiced_at": "yesterday £"}),
        ("InvoiceDate", "20110-12-01 08:26", {"invoiced_at": "20110-12-01 08:26 (allowed are years 1900 to 2199)"}),
        ("InvoiceDate", "infinity", {"invoiced_at": "infinity"}),
        ("InvoiceDate", "", None),
        ("LandedAt", "soon", {"invoiced_at": "12/1/2010 8:26 (LandedAt soon)"}),
        ("LandedAt", "NaT", None),
        ("LandedAt", "", None),
    ],
)
def test_what_cannot_be_read_is_kept_as_text(tmp_path: Path, column: str, text: str, kept: Any) -> None:
    bad = f"{FIRST},{text}" if column == "LandedAt" else f"{line(**{column: text})},"
    first, row, last = csv(tmp_path, f"{FIRST},", bad, f"{FIRST},", header=f"{HEADER},LandedAt")
    assert unread(row) == kept
    assert first == last == EXPECTED


def test_every_value_that_cannot_be_read_is_kept(tmp_path: Path) -> None:
    [row] = csv(tmp_path, line(Quantity='"a ""b"""', InvoiceDate="then", UnitPrice="x", CustomerID="?"))
    assert unread(row) == {"quantity": 'a "b"', "invoiced_at": "then", "unit_price_gbp": "x", "customer_id": "?"}


def test_a_ragged_line_is_kept_in_its_place_as_text(tmp_path: Path) -> None:
    rows = csv(tmp_path, "a £,b", FIRST, "536366,22633,too few", ",,,,,,,", "", f"{FIRST},one more", FIRST)
    nothing = dict.fromkeys(EXPECTED)
    assert rows == [
        {**nothing, "unread": '"a £,b"'},
        EXPECTED,
        {**nothing, "unread": '"536366,22633,too few"'},
        nothing,
        {**nothing, "unread": f'"{FIRST},one more"'},
        EXPECTED,
    ]


def test_lines_keep_the_order_of_the_file(tmp_path: Path) -> None:
    """Large enough for several threads, with a ragged line in a later block and all that makes the query longer."""
    count = 300_000
    lines = [f"{i},A,D,{i},1/2/2011 8:26,{'x' if i % 1000 == 7 else 1},{i % 3 or ''},UK," for i in range(count)]
    lines[250_000] = "ragged"
    table = read_retail(write_csv(tmp_path, *lines, header=f"{HEADER},LandedAt"))
    assert table["quantity"].to_pylist() == [i if i != 250_000 else None for i in range(count)]
    assert [i for i, text in enumerate(table["unread"].to_pylist()) if text and "ragged" in text] == [250_000]
    assert table["unread"].null_count == count - 301


def dates(tmp_path: Path, *texts: str) -> pa.Table:
    return read_retail(write_csv(tmp_path, *[line(InvoiceDate=text) for text in texts]))


JAN_2, FEB_1, ISO = datetime(2011, 1, 2, 8), datetime(2011, 2, 1, 8), datetime(2011, 1, 2, 8)


@pytest.mark.parametrize(
    ("texts", "read", "is_noted"),
    [
        (["1/2/2011 8:00", "31/1/2011 8:00"], [FEB_1, datetime(2011, 1, 31, 8)], False),
        (["1/2/2011 8:00", "1/31/2011 8:00"], [JAN_2, datetime(2011, 1, 31, 8)], False),
        (["1/2/11 8:00", "2011-01-02 08:00", "32/13/2010"], [JAN_2, ISO, None], True),
        (["01-02-2011 08:00", "31/1/11"], [FEB_1, datetime(2011, 1, 31)], False),
        (["5/5/2011", "2011-01-02 08:00"], [datetime(2011, 5, 5), ISO], False),
        (["2011-01-02 08:00", "2011-01-13 08:00"], [ISO, datetime(2011, 1, 13, 8)], False),
        (["1/2/2011 8:00", "31/2/2011", "2/31/2011"], [JAN_2, None, None], True),
    ],
)
def test_one_order_of_day_and_month_for_the_whole_file(
    tmp_path: Path, texts: list[str], read: list[datetime | None], is_noted: bool
) -> None:
    table = dates(tmp_path, *texts)
    assert table["invoiced_at"].to_pylist() == read
    notes = (table.schema.metadata or {}).get(NOTES, b"").decode()
    assert ("InvoiceDate '1/2/" in notes and "month first" in notes) == is_noted
    assert is_noted or not notes


def test_a_guessed_order_is_logged_by_every_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_csv(tmp_path, line(InvoiceDate="1/2/2011"))
    settings = load_settings({"HEADWATER_HOME": str(tmp_path / "home"), "HEADWATER_RETAIL_DATA": str(file)})
    for _ in range(2):  # from the file, then from the cache
        caplog.clear()
        assert source_lines(settings)["invoiced_at"].to_pylist() == [datetime(2011, 1, 2)]
        assert [r.levelname for r in caplog.records] == ["WARNING"]
        assert f"{file}: InvoiceDate '1/2/2011' and the like are read month first" in caplog.text


def test_dates_of_two_orders_are_refused_with_an_example_of_each(tmp_path: Path) -> None:
    with pytest.raises(
        RetailFileError,
        match=r"retail\.csv: found InvoiceDate '13/1/2011 8:00' in row 4, which can only be day first, and InvoiceDate "
        r"'1/14/2011 9:00' in row 6, which can only be month first; allowed is one order.*ISO",
    ):
        dates(tmp_path, "1/2/2011 8:00", "1/2/2011 8:00", "13/1/2011 8:00", "14/1/2011", "1/14/2011 9:00", "1/15/2011")


def test_both_date_columns_have_one_order(tmp_path: Path) -> None:
    header = f"{HEADER},LandedAt"
    [row] = csv(tmp_path, f"{line(InvoiceDate='1/2/2011')},13/2/2011", header=header)
    assert (row["invoiced_at"], row["landed_at"]) == (datetime(2011, 2, 1), datetime(2011, 2, 13))
    with pytest.raises(RetailFileError, match=r"LandedAt '13/2/2011' in row 2.*InvoiceDate '1/31/2011' in row 3"):
        csv(tmp_path, f"{line(InvoiceDate='1/2/2011')},13/2/2011", f"{line(InvoiceDate='1/31/2011')},", header=header)


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


def test_a_typed_date_out_of_range_is_kept_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", InvoiceDate=[datetime(2500, 1, 1), datetime(2010, 12, 1)])
    bad, good = read_retail(path).to_pylist()
    assert (bad["invoiced_at"], good["unread"]) == (None, None)
    assert unread(bad) == {"invoiced_at": "2500-01-01 00:00:00 (allowed are years 1900 to 2199)"}


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
        "unread": '{"quantity":"abc"}',
    }


def test_a_second_sheet_is_not_read_and_said_so(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "Year 1"
    book.active.append(HEADER.split(","))
    book.active.append(FIRST.split(","))
    book.create_sheet("Year 2").append(HEADER.split(","))
    book.save(tmp_path / "retail.xlsx")
    table = read_retail(tmp_path / "retail.xlsx")
    assert table.num_rows == 1
    assert b"the sheet 'Year 1' is read, and 'Year 2' is not" in table.schema.metadata[NOTES]


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
