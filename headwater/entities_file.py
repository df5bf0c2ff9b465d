"""Files of entity rows (customer, instant) in, the same rows with features out: parquet or csv.

Checks what a person can get wrong in such a file, before any feature is read.

Errors: EntitiesError   the file is not a table of customer_id and event_timestamp
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from catalog.clock import parse_instant

__all__ = ["EntitiesError", "as_given", "output_format", "read_entities", "read_table", "write_table"]

KEY, INSTANT = "customer_id", "event_timestamp"
FORMATS = (".parquet", ".csv")
_MAX_ROWS_NAMED = 5
_EXACT_BELOW = 2.0**53
_ISO = "2011-09-10T00:00:00"


class EntitiesError(ValueError):
    """The file cannot be used; the message says what was found and what is allowed."""


def output_format(path: Path) -> str:
    """`.parquet` or `.csv`. Raises EntitiesError, also when there is no folder to write to."""
    if not path.absolute().parent.is_dir():
        raise EntitiesError(f"{path}: found no directory {path.parent}, allowed is one that exists")
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise EntitiesError(f"{path}: found suffix {suffix!r}, allowed is one of {', '.join(FORMATS)}")
    return suffix


def read_table(path: Path) -> pa.Table:
    """The file as it is. Raises EntitiesError."""
    suffix = output_format(path)
    try:
        return pyarrow.parquet.read_table(path) if suffix == ".parquet" else pyarrow.csv.read_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise EntitiesError(f"{path}: found a file that is not {suffix[1:]} ({error})") from None


def read_entities(path: Path, table: pa.Table) -> pa.Table:
    """Every row of the file's table in order: customer_id int64, event_timestamp naive UTC in microseconds, the other
    columns as they are. Raises EntitiesError.
    """
    missing = [name for name in (KEY, INSTANT) if name not in table.column_names]
    if missing or len(set(table.column_names)) != table.num_columns:
        raise EntitiesError(
            f"{path}: found columns {', '.join(table.column_names)}; needed are {KEY} and {INSTANT}, each name once"
        )
    for name, convert in ((KEY, _customers), (INSTANT, _instants)):
        position = table.column_names.index(name)
        table = table.set_column(position, name, convert(path, table[name]))
    return table


def as_given(found: pa.Table, given: pa.Table) -> pa.Table:
    """The same rows with customer_id and event_timestamp as the file had them, so that they join with it."""
    for name in (KEY, INSTANT):
        found = found.set_column(found.column_names.index(name), given.schema.field(name), given[name])
    return found


def write_table(table: pa.Table, path: Path) -> None:
    """Write parquet or csv, by the suffix."""
    if output_format(path) == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        pyarrow.csv.write_csv(table, path)


def _customers(path: Path, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Integers, also where a data frame with a gap has made them floats."""
    if pa.types.is_floating(column.type):
        return _integral(path, column)
    if not pa.types.is_integer(column.type):
        raise EntitiesError(f"{path}: {KEY}: found type {column.type}, allowed is an integer type")
    _no_nulls(path, KEY, column)
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise EntitiesError(f"{path}: {KEY}: found {error}, allowed are 64-bit integers") from None


def _integral(path: Path, column: pa.ChunkedArray) -> pa.ChunkedArray:
    values = column.cast(pa.float64())
    _no_nulls(path, KEY, pc.if_else(pc.is_nan(values), None, values))
    # Beyond it neighbouring integers are one and the same float.
    exact = pc.and_(pc.equal(values, pc.round(values)), pc.less(pc.abs(values), _EXACT_BELOW))
    _no_other(path, KEY, values, exact, "integers")
    return values.cast(pa.int64())


def _instants(path: Path, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """An instant with a time zone becomes UTC, one without is UTC, a date is its midnight; text is ISO 8601."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    _no_nulls(path, INSTANT, column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return _read_instants(path, column)
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        raise EntitiesError(
            f"{path}: {INSTANT}: found type {column.type}, allowed is a timestamp, a date or text such as {_ISO}"
        )
    try:
        # A timestamp with a zone holds UTC already: dropping the zone keeps the instant. Below a microsecond is cut.
        in_utc = column.cast(pa.timestamp(column.type.unit)) if pa.types.is_timestamp(column.type) else column
        return in_utc.cast(pa.timestamp("us"), safe=False)
    except pa.ArrowInvalid as error:
        raise EntitiesError(f"{path}: {INSTANT}: found {error}") from None


def _read_instants(path: Path, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each text is read once, however many rows have it."""
    coded = column.combine_chunks().dictionary_encode()
    read = pa.array([_instant(text) for text in coded.dictionary.to_pylist()], pa.timestamp("us"))
    instants = pa.chunked_array([read.take(coded.indices)])
    _no_other(path, INSTANT, column, pc.is_valid(instants), f"ISO 8601 such as {_ISO}")
    return instants


def _instant(text: str) -> datetime | None:
    try:
        return parse_instant(text.strip())
    except (ValueError, OverflowError):
        return None


def _no_nulls(path: Path, name: str, column: pa.ChunkedArray) -> None:
    if column.null_count:
        raise EntitiesError(
            f"{path}: {name}: found {column.null_count} null(s), first in row(s) "
            f"{', '.join(str(row + 1) for row in _first_rows(pc.is_null(column)))}; every row needs one"
        )


def _no_other(path: Path, name: str, column: pa.ChunkedArray, good: pa.ChunkedArray, allowed: str) -> None:
    if rows := _first_rows(pc.invert(good)):
        count = len(column) - pc.sum(good).as_py()
        found = ", ".join(f"{column[row].as_py()!r} in row {row + 1}" for row in rows)
        more = f" and {count - len(rows)} more" if count > len(rows) else ""
        raise EntitiesError(f"{path}: {name}: found {found}{more}; allowed are {allowed}")


def _first_rows(wanted: pa.ChunkedArray) -> list[int]:
    # Arrow's kernel does not survive a column without chunks.
    rows: list[int] = pc.indices_nonzero(wanted.combine_chunks())[:_MAX_ROWS_NAMED].to_pylist()
    return rows
