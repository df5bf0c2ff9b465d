"""Reads a retail file in the UCI Online Retail schema (parquet, csv, xlsx) into one normalised table of invoice lines.

Here a file's text becomes typed values; what the lines mean is replay's. A value that cannot be read becomes null, its
text is kept in `unread`, and the line goes on: the contract at landing then quarantines it with that text, where
somebody will see it. Only a file as a whole can be refused.

Columns, in any order, case and spacing, further ones ignored: InvoiceNo (or Invoice), StockCode, Description, Quantity,
InvoiceDate, UnitPrice (or Price), CustomerID (or Customer ID), Country. Optional is LandedAt, the instant at which the
line became known; null or absent means InvoiceDate. Dates are timestamps, ISO text, Excel serial numbers, or a day, a
month and a year: a file with 13/1/2011 in it is day first, one with 1/13/2011 month first, one with both is refused.
Where no date tells, it is month first as the UCI csv is, and NOTES say so. Of an xlsx the first sheet is read.

Errors: RetailFileError
"""

from __future__ import annotations

import codecs
import csv as python_csv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from streaming.change import instant_sql
from streaming.retail_dates import YEARS, DateOrder, Witness, read_dates

__all__ = ["LINE_SCHEMA", "NOTES", "RetailFileError", "read_retail"]

# `unread` is null where all could be read. Else it is JSON: an object with the text of each value that could not, by
# column; or the text of the whole line where its values could not be told apart.
LINE_SCHEMA = pa.schema(
    [
        ("invoice_no", pa.string()),
        ("stock_code", pa.string()),
        ("description", pa.string()),
        ("quantity", pa.int64()),
        ("invoiced_at", pa.timestamp("us")),
        ("unit_price_gbp", pa.float64()),
        ("customer_id", pa.int64()),
        ("country", pa.string()),
        ("landed_at", pa.timestamp("us")),
        ("unread", pa.string()),
    ]
)
# The key in the table's schema metadata of what had to be assumed to read the file; absent where nothing had.
NOTES = b"notes"

# The file's columns and the line's that they become.
_NEEDED = {
    "InvoiceNo": "invoice_no",
    "StockCode": "stock_code",
    "Description": "description",
    "Quantity": "quantity",
    "InvoiceDate": "invoiced_at",
    "UnitPrice": "unit_price_gbp",
    "CustomerID": "customer_id",
    "Country": "country",
}
_OPTIONAL = {"LandedAt": "landed_at"}
_DATES = {"InvoiceDate": "invoiced_at", **_OPTIONAL}
# The second edition of the data set ("Online Retail II") renames three columns.
_ALIASES = {"invoice": "invoiceno", "price": "unitprice", "customer": "customerid"}
_SUFFIXES = (".parquet", ".csv", ".xlsx")
# What R, pandas and spreadsheets write for nothing. It counts as nothing where nothing is allowed.
_NOTHING = ("", "na", "n/a", "#n/a", "<na>", "nan", "nat", "null", "none", "-")


class RetailFileError(ValueError):
    """The file cannot be used as a whole: unreadable, empty, without a column, or with dates of two orders."""


@dataclass(frozen=True)
class _File:
    """What a file holds, as it is. `first_row` is what its first line is called: 2 below a header.

    `ragged` has the text of the lines that have too few or too many values, null for all others.
    """

    table: pa.Table
    first_row: int = 2
    ragged: pa.Array | None = None
    notes: tuple[str, ...] = ()


def read_retail(path: Path) -> pa.Table:
    """The file's lines in file order, as LINE_SCHEMA. Raises RetailFileError naming the file and what was found."""
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".xlsx": _read_xlsx}
    if path.suffix.lower() not in readers:
        raise RetailFileError(f"{path}: found suffix {path.suffix!r}, allowed is one of {', '.join(_SUFFIXES)}")
    return _normalised(readers[path.suffix.lower()](path), str(path))


def _normalised(file: _File, name: str) -> pa.Table:
    columns = _chosen(file.table, name)
    texts = {file_name: columns[f"file_{line}"] for file_name, line in _DATES.items() if f"file_{line}" in columns}
    dates = read_dates(texts)
    if dates.order.day_first and dates.order.month_first:
        raise _mixed(name, file.first_row, dates.order.day_first, dates.order.month_first)
    columns |= {_DATES[file_name]: instants for file_name, instants in dates.instants.items()}
    if file.ragged is not None:
        columns["ragged"] = pa.chunked_array([file.ragged])
    with duckdb.connect() as connection:
        table = pa.table(columns)
        connection.register("file", table)
        # Without an order of its own a scan of an Arrow table keeps the file's order (preserve_insertion_order).
        lines = connection.sql(_lines_sql(table.schema)).to_arrow_table().cast(LINE_SCHEMA)
    notes = "\n".join([*file.notes, *_assumed(dates.order)])
    return lines.replace_schema_metadata({NOTES: notes.encode()} if notes else None)


def _chosen(table: pa.Table, name: str) -> dict[str, pa.ChunkedArray]:
    """The columns that are wanted, as `file_` and the name of what they become."""
    found: dict[str, int] = {}
    for place, column in enumerate(table.column_names):
        found.setdefault(_plain(column), place)
    missing = [column for column in _NEEDED if column.lower() not in found]
    if missing:
        raise RetailFileError(
            f"{name}: found no column {', '.join(missing)}; the file has {', '.join(table.column_names) or 'none'}; "
            f"needed are {', '.join(_NEEDED)}"
        )
    if table.num_rows == 0:
        raise RetailFileError(f"{name}: found no lines, needed is at least one")
    wanted = {c: line for c, line in {**_NEEDED, **_OPTIONAL}.items() if c.lower() in found}
    return {f"file_{line}": table.column(found[c.lower()]) for c, line in wanted.items()}


def _plain(column: str) -> str:
    plain = "".join(letter for letter in column.lower() if letter.isalnum())
    return _ALIASES.get(plain, plain)


def _mixed(name: str, first_row: int, day_first: Witness, month_first: Witness) -> RetailFileError:
    def told(witness: Witness) -> str:
        return f"{witness.column} {witness.text!r} in row {witness.row + first_row}"

    return RetailFileError(
        f"{name}: found {told(day_first)}, which can only be day first, and {told(month_first)}, which can only be "
        "month first; allowed is one order in the whole file, or ISO dates such as 2011-01-13T08:26"
    )


def _assumed(order: DateOrder) -> Iterator[str]:
    if order.is_guess and order.ambiguous:
        yield (
            f"{order.ambiguous.column} {order.ambiguous.text!r} and the like are read month first, as in the UCI file: "
            "no date in the file tells which order it has"
        )


def _lines_sql(file: pa.Schema) -> str:
    values = {
        "invoice_no": _code_sql("file_invoice_no"),
        "stock_code": _code_sql("file_stock_code"),
        "description": _text_sql("file_description"),
        "quantity": _integer_sql("file_quantity", file.field("file_quantity").type),
        "unit_price_gbp": _price_sql("file_unit_price_gbp", file.field("file_unit_price_gbp").type),
        "customer_id": _integer_sql("file_customer_id", file.field("file_customer_id").type),
        "country": _text_sql("file_country"),
    }
    if "file_landed_at" not in file.names:
        values |= {"landed_at": "NULL::TIMESTAMP", "file_landed_at": "NULL::VARCHAR"}
    if "ragged" not in file.names:
        values["ragged"] = "NULL::VARCHAR"
    named = ", ".join(f"{value} AS {name}" for name, value in values.items())
    return f"""
        SELECT {", ".join(LINE_SCHEMA.names[:-1])}, {_unread_sql()} AS unread
        FROM (SELECT *, {named} FROM file)"""


def _unread_sql() -> str:
    """JSON of the texts that could not be read; null where that is none."""
    known, late = (f"{name} IS NULL AND NOT {_is_nothing_sql(f'file_{name}')}" for name in ("customer_id", "landed_at"))
    texts = {
        "quantity": "CASE WHEN quantity IS NULL THEN file_quantity::VARCHAR END",
        "invoiced_at": _unread_instant_sql(late),
        "unit_price_gbp": "CASE WHEN unit_price_gbp IS NULL THEN file_unit_price_gbp::VARCHAR END",
        "customer_id": f"CASE WHEN {known} THEN file_customer_id::VARCHAR END",
    }
    found = ", ".join(f"'{name}': CASE WHEN trim({text}) <> '' THEN {text} END" for name, text in texts.items())
    # A merge patch leaves out what is null.
    return (
        "CASE WHEN ragged IS NOT NULL THEN to_json(ragged)::VARCHAR "
        f"WHEN quantity IS NULL OR invoiced_at IS NULL OR unit_price_gbp IS NULL OR ({known}) OR ({late}) "
        f"THEN nullif(json_merge_patch('{{}}', to_json({{{found}}}))::VARCHAR, '{{}}') END"
    )


def _is_nothing_sql(column: str) -> str:
    """Not by IN: of that DuckDB makes a join, and the lines come out of it in another order."""
    text = f"lower(trim({column}::VARCHAR))"
    return "(" + " OR ".join(f"{text} = '{nothing}'" for nothing in _NOTHING) + ")"


def _unread_instant_sql(late: str) -> str:
    """The text of InvoiceDate, with what is wrong with it where landing would otherwise take it for an instant.

    A line whose landing time cannot be read was not known at its InvoiceDate: taking that would be a look ahead.
    """
    text = "coalesce(file_invoiced_at::VARCHAR, '')"
    return (
        f"CASE WHEN {late} THEN {text} || ' (LandedAt ' || file_landed_at::VARCHAR || ')' "
        f"WHEN invoiced_at IS NULL AND ({instant_sql(text)}) IS NOT NULL "
        f"THEN {text} || ' (allowed are years {YEARS[0]} to {YEARS[1]})' WHEN invoiced_at IS NULL THEN {text} END"
    )


def _text_sql(column: str) -> str:
    return f"nullif({column}::VARCHAR, '')"


def _code_sql(column: str) -> str:
    """Spreadsheets store the invoice number 536365 as 536365.0; a code is text and never ends like that."""
    text = f"nullif(trim({column}::VARCHAR), '')"
    return f"CASE WHEN {text} LIKE '%.0' THEN regexp_replace({text}, '^([0-9]+)\\.0$', '\\1') ELSE {text} END"


def _integer_sql(column: str, kind: pa.DataType) -> str:
    """17850, "17850" and "17850.0" are the integer; 1.5 and 15e-1 are none, and rounding would invent a value."""
    if pa.types.is_integer(kind):
        return f"TRY_CAST({column} AS BIGINT)"
    text = f"{column}::VARCHAR"
    number = f"TRY_CAST({text} AS DOUBLE)"
    return (
        f"coalesce(CASE WHEN TRY_CAST({text} AS BIGINT)::VARCHAR = {text} THEN TRY_CAST({text} AS BIGINT) END, "
        f"CASE WHEN isfinite({number}) AND {number} = floor({number}) AND abs({number}) < 9007199254740992 "
        f"THEN TRY_CAST({number} AS BIGINT) END)"
    )


def _price_sql(column: str, kind: pa.DataType) -> str:
    """By its text, which is what a price in a narrower type than double was meant to be."""
    number = column if pa.types.is_float64(kind) else f"TRY_CAST({column}::VARCHAR AS DOUBLE)"
    return f"CASE WHEN isfinite({number}) THEN {number} END"


def _read_parquet(path: Path) -> _File:
    import pyarrow.parquet as pq

    try:
        return _File(pq.ParquetFile(path).read(), first_row=1)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _read_csv(path: Path) -> _File:
    try:
        encoding = "utf-8" if _is_utf8(path) else "latin-1"
        with path.open(encoding=encoding, newline="") as file:
            header = file.readline().removeprefix("\ufeff")
        if not header.strip():
            return _File(pa.table({}))
        delimiter = ";" if header.count(";") > header.count(",") else ","
        names = next(python_csv.reader([header], delimiter=delimiter), [])
        table, ragged = _csv_table(path, encoding, delimiter, names, in_order=False)
        if not ragged:
            return _File(table)
        # Only a reader with one thread knows where they were.
        return _with_ragged(*_csv_table(path, encoding, delimiter, names, in_order=True))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _is_utf8(path: Path) -> bool:
    """Whether the whole file is UTF-8: one pound sign in Latin-1 may come a hundred megabytes in."""
    decoder = codecs.getincrementaldecoder("utf8")()
    with path.open("rb") as file:
        try:
            for block in iter(lambda: file.read(1 << 22), b""):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _csv_table(
    path: Path, encoding: str, delimiter: str, names: list[str], *, in_order: bool
) -> tuple[pa.Table, dict[int, str]]:
    """Every column as text, so that one bad value spoils a value and not the file; and the ragged lines left out of it.

    Those are texts by their place among all lines, from 0; the places are right only when read `in_order`.
    """
    from pyarrow import csv

    ragged: dict[int, str] = {}

    def note(row: Any) -> str:
        ragged[row.number - 2 if in_order else len(ragged)] = row.text  # the header is row 1
        return "skip"

    table = csv.read_csv(
        path,
        csv.ReadOptions(encoding=encoding, skip_rows=1, column_names=names, use_threads=not in_order),
        csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note),
        csv.ConvertOptions(column_types={n: pa.string() for n in names}, strings_can_be_null=False),
    )
    return table, ragged


def _with_ragged(table: pa.Table, ragged: dict[int, str]) -> _File:
    """A line whose values cannot be told apart keeps its place, all null."""
    is_ragged = np.zeros(table.num_rows + len(ragged), dtype=bool)
    is_ragged[list(ragged)] = True
    places = pa.array(np.cumsum(~is_ragged) - 1, mask=is_ragged)
    texts = pa.array([ragged[place] for place in sorted(ragged)], pa.string())
    return _File(table.take(places), ragged=texts.take(pa.array(np.cumsum(is_ragged) - 1, mask=~is_ragged)))


def _read_xlsx(path: Path) -> _File:
    import python_calamine

    try:
        workbook = python_calamine.CalamineWorkbook.from_path(str(path))
        rows: Iterator[list[Any]] = iter(workbook.get_sheet_by_index(0).to_python(skip_empty_area=True))
        names = [str(cell) for cell in next(rows, [])]
        columns = list(zip(*rows, strict=True)) or [() for _ in names]
    except (OSError, ValueError, zipfile.BadZipFile, python_calamine.CalamineError) as error:
        raise _unreadable(path, error) from error
    first, *others = workbook.sheet_names
    notes = [f"the sheet {first!r} is read, and {', '.join(map(repr, others))} is not"] if others else []
    wanted = [i for i, name in enumerate(names) if name and name not in names[:i]]
    table = pa.table({names[i]: pa.array(map(_cell, columns[i]), pa.string()) for i in wanted})
    return _File(table, notes=tuple(notes))


def _cell(cell: Any) -> str | None:
    """A spreadsheet's cell as text: a column may mix numbers, dates and text."""
    return None if cell == "" else str(cell)


def _unreadable(path: Path, error: BaseException) -> RetailFileError:
    return RetailFileError(
        f"{path}: cannot be read as {path.suffix.lower()[1:]} ({error}); set HEADWATER_RETAIL_DATA to a file in the "
        f"UCI Online Retail schema with the columns {', '.join(_NEEDED)}"
    )
