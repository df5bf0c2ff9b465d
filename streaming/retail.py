"""Reads a retail file in the UCI Online Retail schema (parquet, csv, xlsx) into one normalised table of invoice lines.

Here a file's text becomes typed values; what the lines mean is replay's. A value that cannot be read becomes null and
the line goes on: the contract at landing then quarantines it with the reason, where somebody will see it. Only a file
as a whole can be refused.

Columns, in any order, case and spacing, further ones ignored: InvoiceNo (or Invoice), StockCode, Description, Quantity,
InvoiceDate, UnitPrice (or Price), CustomerID (or Customer ID), Country. Optional is LandedAt, the instant at which the
line became known; null or absent means InvoiceDate. Dates are timestamps, ISO text, `month/day/year hour:minute` (the
UCI csv) or Excel serial numbers.

Errors: RetailFileError
"""

from __future__ import annotations

import codecs
import csv as python_csv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from streaming.change import instant_sql

__all__ = ["LINE_SCHEMA", "RetailFileError", "normalise", "read_retail"]

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
    ]
)
_NEEDED = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
# The second edition of the data set ("Online Retail II") renames three columns.
_ALIASES = {"invoice": "invoiceno", "price": "unitprice", "customer": "customerid"}
_SUFFIXES = (".parquet", ".csv", ".xlsx")


class RetailFileError(ValueError):
    """The file cannot be used as a whole: unreadable, empty, or a column is missing."""


def read_retail(path: Path) -> pa.Table:
    """The file's lines in file order, as LINE_SCHEMA. Raises RetailFileError naming the file and what was found."""
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".xlsx": _read_xlsx}
    if path.suffix.lower() not in readers:
        raise RetailFileError(f"{path}: found suffix {path.suffix!r}, allowed is one of {', '.join(_SUFFIXES)}")
    return normalise(readers[path.suffix.lower()](path), str(path))


def normalise(table: pa.Table, name: str) -> pa.Table:
    """A table with the columns above, of any type, as LINE_SCHEMA; `name` is for the message of a RetailFileError."""
    found = {_plain(column): column for column in reversed(table.column_names)}
    missing = [column for column in _NEEDED if column.lower() not in found]
    if missing:
        raise RetailFileError(
            f"{name}: found no column {', '.join(missing)}; the file has {', '.join(table.column_names) or 'none'}; "
            f"needed are {', '.join(_NEEDED)}"
        )
    if table.num_rows == 0:
        raise RetailFileError(f"{name}: found no lines, needed is at least one")
    with duckdb.connect() as connection:
        connection.register("file", table)
        # Without an order of its own a scan of an Arrow table keeps the file's order (preserve_insertion_order).
        return connection.sql(f"SELECT {_columns_sql(table, found)} FROM file").to_arrow_table().cast(LINE_SCHEMA)


def _plain(column: str) -> str:
    plain = "".join(letter for letter in column.lower() if letter.isalnum())
    return _ALIASES.get(plain, plain)


def _columns_sql(table: pa.Table, found: dict[str, str]) -> str:
    def column(name: str) -> str:
        return f'"{found[name].replace(chr(34), chr(34) * 2)}"'

    def kind(name: str) -> pa.DataType:
        return table.schema.field(found[name]).type

    landed = _instant_sql(column("landedat"), kind("landedat")) if "landedat" in found else "NULL::TIMESTAMP"
    return ", ".join(
        [
            f"{_code_sql(column('invoiceno'))} AS invoice_no",
            f"{_code_sql(column('stockcode'))} AS stock_code",
            f"{_text_sql(column('description'))} AS description",
            f"{_integer_sql(column('quantity'))} AS quantity",
            f"{_instant_sql(column('invoicedate'), kind('invoicedate'))} AS invoiced_at",
            f"{_price_sql(column('unitprice'))} AS unit_price_gbp",
            f"{_integer_sql(column('customerid'))} AS customer_id",
            f"{_text_sql(column('country'))} AS country",
            f"{landed} AS landed_at",
        ]
    )


def _text_sql(column: str) -> str:
    return f"nullif({column}::VARCHAR, '')"


def _code_sql(column: str) -> str:
    """Spreadsheets store the invoice number 536365 as 536365.0; a code is text and never ends like that."""
    text = f"nullif(trim({column}::VARCHAR), '')"
    return f"CASE WHEN {text} LIKE '%.0' THEN regexp_replace({text}, '^([0-9]+)\\.0$', '\\1') ELSE {text} END"


def _integer_sql(column: str) -> str:
    """17850, "17850" and "17850.0" are the integer; 1.5 is none, and rounding it would invent a value."""
    number = f"TRY_CAST({column}::VARCHAR AS DOUBLE)"
    return (
        f"coalesce(CASE WHEN {column}::VARCHAR NOT LIKE '%.%' THEN TRY_CAST({column}::VARCHAR AS BIGINT) END, "
        f"CASE WHEN isfinite({number}) AND {number} = floor({number}) AND abs({number}) < 9007199254740992 "
        f"THEN TRY_CAST({number} AS BIGINT) END)"
    )


def _price_sql(column: str) -> str:
    number = f"TRY_CAST({column}::VARCHAR AS DOUBLE)"
    return f"CASE WHEN isfinite({number}) THEN {number} END"


def _instant_sql(column: str, kind: pa.DataType) -> str:
    """A date outside 1900 to 2199 is a typing error, and one in the year 20110 would become everybody's present."""
    instant = _any_instant_sql(column, kind)
    return f"CASE WHEN year({instant}) BETWEEN 1900 AND 2199 THEN {instant} END"


def _any_instant_sql(column: str, kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        # An instant with a zone becomes its UTC clock reading; the session's zone must not shift it.
        return f"({column} AT TIME ZONE 'UTC')" if kind.tz else f"{column}::TIMESTAMP"
    if pa.types.is_date(kind):
        return f"{column}::TIMESTAMP"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _serial_sql(f"{column}::DOUBLE")
    formats = "['%m/%d/%y %H:%M', '%m/%d/%Y %H:%M', '%m/%d/%Y %H:%M:%S', '%m/%d/%Y']"
    text = f"nullif(trim({column}::VARCHAR), '')"
    return (
        f"CASE WHEN contains({text}, '/') THEN try_strptime({text}, {formats}) "
        f"ELSE coalesce({instant_sql(text)}, {_serial_sql(f'TRY_CAST({text} AS DOUBLE)')}) END"
    )


def _serial_sql(number: str) -> str:
    """Excel counts days from 1899-12-30 (its 1900 is a leap year); the bounds are 1927 and 2173, rounded to seconds."""
    return (
        f"CASE WHEN {number} BETWEEN 10000 AND 100000 "
        f"THEN TIMESTAMP '1899-12-30' + to_seconds(round({number} * 86400)) END"
    )


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _read_csv(path: Path) -> pa.Table:
    from pyarrow import csv

    try:
        encoding = "utf-8" if _is_utf8(path) else "latin-1"
        with path.open(encoding=encoding, newline="") as file:
            header = file.readline().removeprefix("\ufeff")
        delimiter = ";" if header.count(";") > header.count(",") else ","
        names = next(python_csv.reader([header], delimiter=delimiter), [])
        read = csv.ReadOptions(encoding=encoding, skip_rows=1, column_names=names)
        parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        return _read_csv_text(path, read, parse) if header.strip() else pa.table({})
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


def _read_csv_text(path: Path, read: Any, parse: Any) -> pa.Table:
    """Every column as text, so that one bad value spoils a value and not the file."""
    from pyarrow import csv

    ragged: list[int] = []

    def note(row: Any) -> str:
        ragged.append(row.actual_columns)
        return "skip"

    parse.invalid_row_handler = note
    convert = csv.ConvertOptions(column_types={n: pa.string() for n in read.column_names}, strings_can_be_null=False)
    table = csv.read_csv(path, read, parse, convert)
    # A line with too few or too many values has no readable field: it goes to the end, all null, to be quarantined.
    return pa.concat_tables([table, _nothing(table, len(ragged))])


def _nothing(table: pa.Table, rows: int) -> pa.Table:
    return pa.Table.from_arrays([pa.nulls(rows, pa.string())] * table.num_columns, schema=table.schema)


def _read_xlsx(path: Path) -> pa.Table:
    import python_calamine

    try:
        workbook = python_calamine.CalamineWorkbook.from_path(str(path))
        rows: Iterator[list[Any]] = iter(workbook.get_sheet_by_index(0).to_python(skip_empty_area=True))
        names = [str(cell) for cell in next(rows, [])]
        columns = list(zip(*rows, strict=True)) or [() for _ in names]
    except (OSError, ValueError, zipfile.BadZipFile, python_calamine.CalamineError) as error:
        raise _unreadable(path, error) from error
    wanted = [i for i, name in enumerate(names) if name and name not in names[:i]]
    return pa.table({names[i]: pa.array(map(_cell, columns[i]), pa.string()) for i in wanted})


def _cell(cell: Any) -> str | None:
    """A spreadsheet's cell as text: a column may mix numbers, dates and text."""
    return None if cell == "" else str(cell)


def _unreadable(path: Path, error: BaseException) -> RetailFileError:
    return RetailFileError(
        f"{path}: cannot be read as {path.suffix.lower()[1:]} ({error}); set HEADWATER_RETAIL_DATA to a file in the "
        f"UCI Online Retail schema with the columns {', '.join(_NEEDED)}"
    )
