"""Read-only SQL over every table of the lake, each under its dotted name, and its results as text.

Nothing that is asked here can change anything, or read a file that is not a table of the lake: only one statement that
reads is let through, and DuckDB itself is locked to the lake's directory before it sees the statement.

Errors: LakeError
          └─ QueryError              the statement failed; the message is DuckDB's
               ├─ ReadOnlyError      the statement would do something other than read the lake
               └─ UnknownTableError  no such table; the message lists near names
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, get_args

import duckdb
import pyarrow as pa

from catalog.keys import Key
from lake.as_of import AsOf, connect_as_of, tables_named
from lake.tables import Lake, LakeError

__all__ = ["FORMATS", "Format", "QueryError", "ReadOnlyError", "UnknownTableError", "format_rows", "query"]

Format = Literal["table", "csv", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)

_ALLOWED = "one statement of SELECT, WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN"
_LEADING_COMMENTS = re.compile(r"\A(\s+|--[^\n]*(\n|\Z)|/\*.*?\*/)*", re.DOTALL)
# DuckDB runs a pivot as several statements; any other such bundle (COPY of a pivot) may write.
_PIVOT = re.compile(r"(select|with|from|pivot|unpivot)\b", re.IGNORECASE)
_EXPLAIN = re.compile(r"\s*explain\s+(analyze\s+)?(\([^)]*\)\s*)?", re.IGNORECASE)
_SHOW_TABLES = re.compile(r"\s*show\s+(all\s+)?tables\s*;?\s*", re.IGNORECASE)
_TABLE_LIST = """
    SELECT database_name || '.' || schema_name || '.' || view_name AS "table", column_count AS columns
    FROM duckdb_views() WHERE NOT internal ORDER BY ALL"""


class QueryError(LakeError):
    """The statement failed."""


class ReadOnlyError(QueryError):
    """The statement would do something other than read the lake's tables."""


class UnknownTableError(QueryError):
    """A table that the statement names is not in the lake."""


def query(lake: Lake, sql: str, *, version: int | None = None, as_of: AsOf | None = None) -> pa.Table:
    """Run one statement that reads. Returns its rows; a column may bear the name of another.

    With `version` the one table that it names is read at that Delta version, with `as_of` all are as of that instant.
    Raises ReadOnlyError, UnknownTableError, UnknownVersionError, NoHistoryError, else QueryError with DuckDB's message.
    """
    try:
        statement = _reading(sql)
        with _connect(lake, statement, version, as_of) as db:
            _lock(db, lake)
            return db.sql(_TABLE_LIST if _SHOW_TABLES.fullmatch(statement) else statement).to_arrow_table()
    except duckdb.PermissionException as error:
        raise ReadOnlyError(f"only tables of the lake can be read: {_first_line(error)}") from None
    except duckdb.CatalogException as error:
        raise _catalog_error(lake, sql, error) from None
    except duckdb.Error as error:
        raise QueryError(str(error)) from None


def _connect(lake: Lake, statement: str, version: int | None, as_of: AsOf | None) -> duckdb.DuckDBPyConnection:
    if as_of is None or _SHOW_TABLES.fullmatch(statement):
        return lake.connect(versions=_versions(lake, statement, version))
    return connect_as_of(lake, tables_named(statement), as_of)


def _versions(lake: Lake, statement: str, version: int | None) -> dict[Key, int]:
    """The version of the table that the statement names. Raises QueryError when there are several, or none."""
    if version is None:
        return {}
    tables = [key for key in sorted(tables_named(statement)) if lake.exists(key)]
    if len(tables) != 1:
        found = ", ".join(key.dotted for key in tables) or "none"
        raise QueryError(f"a version belongs to one table: the statement has to name exactly one, found {found}")
    return {tables[0]: version}


def _reading(sql: str) -> str:
    """The statement itself, if it is a single one that reads."""
    statements = duckdb.extract_statements(sql)
    if len(statements) != 1:
        raise ReadOnlyError(f"found {len(statements)} statements, allowed is {_ALLOWED}")
    [statement] = statements
    kind, text = statement.type, str(statement.query)
    bare = _LEADING_COMMENTS.sub("", text)
    if kind == duckdb.StatementType.EXPLAIN:
        _reading(_EXPLAIN.sub("", bare, count=1))  # EXPLAIN ANALYZE runs what it explains
    elif kind != duckdb.StatementType.SELECT and not (kind == duckdb.StatementType.MULTI and _PIVOT.match(bare)):
        raise ReadOnlyError(f"found {kind.name}, allowed is {_ALLOWED}: the lake is only read here")
    return text


def _lock(db: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    """From here on this connection reads the lake's directory and nothing else, whatever it is told."""
    directory = str(lake.root.absolute()).replace("'", "''")
    db.execute(f"SET allowed_directories = ['{directory}']")
    db.execute("SET enable_external_access = false")
    db.execute("SET lock_configuration = true")


def _catalog_error(lake: Lake, sql: str, error: duckdb.Error) -> QueryError:
    """Names the tables nearest to what was asked for; a missing function stays DuckDB's own message."""
    message = _first_line(error)
    missing = re.search(r'Table with name "?([^" ]+)"? does not exist', message)
    if not missing:
        return QueryError(str(error))
    last = missing.group(1).split(".")[-1]
    asked = next(iter(re.findall(rf"[\w.]*\b{re.escape(last)}\b", sql)), last)
    names = [key.dotted for key in sorted(lake.keys())]
    near = difflib.get_close_matches(asked, names, n=3, cutoff=0.5) or [n for n in names if n.split(".")[-1] == last]
    hint = (
        f"near names are {', '.join(near)}"
        if near
        else f"there are: {', '.join(names) or 'none yet, run `headwater run`'}"
    )
    return UnknownTableError(f"no table {asked} in the lake; {hint}")


def _first_line(error: duckdb.Error) -> str:
    return str(error).splitlines()[0]


def format_rows(table: pa.Table, fmt: Format) -> str:
    """The rows as aligned text, CSV with a header, or a JSON list of objects.

    Instants are ISO 8601; a decimal with more digits than a float has is text in JSON. NaN, infinities and nulls are
    null in JSON and empty elsewhere. Raises ValueError for another format.
    """
    if fmt not in FORMATS:
        raise ValueError(f"found format {fmt!r}, allowed is one of {', '.join(FORMATS)}")
    names, rows = list(table.column_names), _rows(table)
    if fmt == "json":
        unique = _unique(names)
        return json.dumps([dict(zip(unique, row, strict=True)) for row in rows], ensure_ascii=False, indent=1)
    if fmt == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_cell(value) for value in row] for row in rows)
        return text.getvalue().removesuffix("\n")
    return _aligned(names, list(rows))


def _unique(names: Sequence[str]) -> list[str]:
    """A JSON object has each name once: the second `a` is `a_2`."""
    return [f"{n}_{names[: i + 1].count(n)}" if n in names[:i] else n for i, n in enumerate(names)]


def _rows(table: pa.Table) -> Iterator[list[Any]]:
    for batch in table.to_batches():
        columns = [column.to_pylist() for column in batch.columns]
        for values in zip(*columns, strict=True):
            yield [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, date | time | datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _decimal(value: Decimal) -> int | float | str:
    """A number; text where a float would have other digits."""
    if value == value.to_integral_value():
        return int(value)
    near = float(value)
    return near if Decimal(repr(near)) == value else f"{value:f}"


def _aligned(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns padded to their widest value; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(n), *(len(row[i]) for row in cells)) if cells else len(n) for i, n in enumerate(names)]
    right = [bool(rows) and all(_is_number(row[i]) or row[i] is None for row in rows) for i in range(len(names))]

    def line(values: Sequence[str]) -> str:
        padded = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(names), "  ".join("-" * w for w in widths), *map(line, cells)])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | dict | list) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
