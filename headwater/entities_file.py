"""Files of entity rows (customer, instant) in, the same rows with features out: parquet or csv.

Checks what a person can get wrong in such a file, before any feature is read.

Errors: EntitiesError   the file is not a table of customer_id and event_timestamp
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

__all__ = ["EntitiesError", "output_format", "read_entities", "write_table"]

KEY, INSTANT = "customer_id", "event_timestamp"
FORMATS = (".parquet", ".csv")
_MAX_ROWS_NAMED = 5


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


def read_entities(path: Path) -> pa.Table:
    """Every row in order: customer_id int64, event_timestamp naive UTC in microseconds, other columns as they are."""
    suffix = output_format(path)
    try:
        table = pyarrow.parquet.read_table(path) if suffix == ".parquet" else pyarrow.csv.read_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise EntitiesError(f"{path}: found a file that is not {suffix[1:]} ({error})") from None
    missing = [name for name in (KEY, INSTANT) if name not in table.column_names]
    if missing or len(set(table.column_names)) != table.num_columns:
        raise EntitiesError(
            f"{path}: found columns {', '.join(table.column_names)}; needed are {KEY} and {INSTANT}, each name once"
        )
    for name, convert in ((KEY, _customers), (INSTANT, _instants)):
        position = table.column_names.index(name)
        table = table.set_column(position, name, convert(path, table[name]))
    return table


def write_table(table: pa.Table, path: Path) -> None:
    """Write parquet or csv, by the suffix."""
    if output_format(path) == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        pyarrow.csv.write_csv(table, path)


def _customers(path: Path, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_integer(column.type):
        raise EntitiesError(f"{path}: {KEY}: found type {column.type}, allowed is an integer type")
    _no_nulls(path, KEY, column)
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise EntitiesError(f"{path}: {KEY}: found {error}, allowed are 64-bit integers") from None


def _instants(path: Path, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """An instant with a time zone becomes UTC, one without is UTC, a date is its midnight."""
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        raise EntitiesError(
            f"{path}: {INSTANT}: found type {column.type}, allowed is a timestamp or a date "
            "(in csv: ISO 8601 such as 2011-09-10T00:00:00)"
        )
    _no_nulls(path, INSTANT, column)
    try:
        # A timestamp with a zone holds UTC already: dropping the zone keeps the instant. Below a microsecond is cut.
        in_utc = column.cast(pa.timestamp(column.type.unit)) if pa.types.is_timestamp(column.type) else column
        return in_utc.cast(pa.timestamp("us"), safe=False)
    except pa.ArrowInvalid as error:
        raise EntitiesError(f"{path}: {INSTANT}: found {error}") from None


def _no_nulls(path: Path, name: str, column: pa.ChunkedArray) -> None:
    if column.null_count:
        rows = pc.indices_nonzero(pc.is_null(column))[:_MAX_ROWS_NAMED].to_pylist()
        raise EntitiesError(
            f"{path}: {name}: found {column.null_count} null(s), first in row(s) "
            f"{', '.join(str(row + 1) for row in rows)}; every row needs one"
        )
