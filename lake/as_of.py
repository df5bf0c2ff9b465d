"""The lake as of an instant: as it was known then or, by event time, as the source was then for all that is known now.

Raw tables, quarantine and served predictions are only appended to, so that the rows up to an instant are what there
was. What dbt makes of raw tables is made again of those rows, in memory, by dbt's own SQL. A table whose rows are
replaced has no such history; its Delta versions it has.

Errors: LakeError
          └─ NoHistoryError   the table cannot be told as of an instant
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

import duckdb

from catalog.keys import TABLE_LAYERS, Key
from lake.tables import Lake, LakeError, quoted
from lake.warehouse import relation

__all__ = ["CATALOG", "AsOf", "MadeTable", "NoHistoryError", "connect_as_of", "tables_named"]

# The database that dbt's SQL reads from: dbt-duckdb calls it after the warehouse's file.
CATALOG = "warehouse"
_LITERALS = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)
_PART = r'\s*\.\s*"?([a-z][a-z0-9_]*)"?'
_NAME = re.compile(rf'(?<![\w."])"?({"|".join(TABLE_LAYERS)})"?{_PART}{_PART}(?!["\w])', re.IGNORECASE)
_MADE_BY_DBT = ("staging", "marts", "features")
# The columns of either clock, knowledge time first, of tables that are only appended to.
_CLOCKS: Mapping[str, tuple[str, str]] = {
    "raw": ("landed_at", "event_at"),
    "quarantine": ("landed_at", "event_at"),
    "predictions": ("landed_at", "served_at"),
}


class NoHistoryError(LakeError):
    """The table cannot be told as of an instant."""


@dataclass(frozen=True)
class MadeTable:
    """How dbt makes a table: a query over `inputs`, each named `CATALOG` and as `lake.warehouse.relation` says."""

    sql: str
    inputs: tuple[Key, ...]


@dataclass(frozen=True)
class AsOf:
    """Up to and including `instant` (naive UTC): what had landed by then or, by event time, what had happened.

    `tables`: what dbt makes, asked for only when a statement reads some of it.
    """

    instant: datetime
    event_time: bool
    tables: Callable[[], Mapping[Key, MadeTable]]


def tables_named(statement: str) -> set[Key]:
    """The tables of the lake that a statement names, whether they exist or not."""
    found = _NAME.findall(_LITERALS.sub(" ", statement))
    return {Key(*(part.lower() for part in parts)) for parts in found}


def connect_as_of(lake: Lake, named: Collection[Key], as_of: AsOf) -> duckdb.DuckDBPyConnection:
    """As `Lake.connect`, with those of the `named` tables that there are, as of the instant; no other can be read.

    Raises NoHistoryError, MissingTableError for a raw table that was never landed.
    """
    made = as_of.tables() if any(key.layer in _MADE_BY_DBT for key in named) else {}
    wanted = [key for key in sorted(named) if key in made or lake.exists(key)]
    _expect_history(lake, [key for key in wanted if key not in made], as_of)
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    db.execute("SET preserve_insertion_order = false")  # as in the warehouse: tables have no order
    for layer in (CATALOG, *dict.fromkeys(key.layer for key in named)):
        db.execute(f"ATTACH ':memory:' AS {layer}")
    done: set[Key] = set()
    for key in wanted:
        _make(db, lake, key, as_of, made, done)
    for layer, subject in dict.fromkeys((key.layer, key.subject) for key in named):
        db.execute(f'CREATE SCHEMA {layer}."{subject}"')
    for key in wanted:
        db.execute(f"CREATE VIEW {quoted(key)} AS SELECT * FROM {CATALOG}.{relation(key)}")
    return db


def _make(
    db: duckdb.DuckDBPyConnection, lake: Lake, key: Key, as_of: AsOf, made: Mapping[Key, MadeTable], done: set[Key]
) -> None:
    """The table where dbt's SQL looks for it, after its inputs."""
    if key in done:
        return
    done.add(key)
    for each in made[key].inputs if key in made else ():
        _make(db, lake, each, as_of, made, done)
    db.execute(f'CREATE SCHEMA IF NOT EXISTS {CATALOG}."{key.group}"')
    if key in made:
        db.execute(f"CREATE TABLE {CATALOG}.{relation(key)} AS {made[key].sql}")
    else:
        upto = f"{_clock(key, as_of)} <= TIMESTAMP '{as_of.instant}'"
        db.execute(f"CREATE VIEW {CATALOG}.{relation(key)} AS SELECT * FROM {lake.scan_sql(key)} WHERE {upto}")


def _clock(key: Key, as_of: AsOf) -> str | None:
    return _CLOCKS[key.layer][as_of.event_time] if key.layer in _CLOCKS else None


def _expect_history(lake: Lake, tables: Collection[Key], as_of: AsOf) -> None:
    """Each of these has the clock that is asked for."""
    lacking = [key.dotted for key in tables if _clock(key, as_of) not in lake.schema(key).names]
    if lacking:
        clock = "event" if as_of.event_time else "knowledge"
        raise NoHistoryError(
            f"{', '.join(lacking)}: found no history by {clock} time. There is one of raw tables, of what dbt makes of "
            "them (staging, marts, features), of served predictions and, by knowledge time, of quarantine; any one "
            "table can be read at a Delta version with --version"
        )
