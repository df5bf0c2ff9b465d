"""The staged changes of streaming.shop as the SQL statements that make them, in the same order. Pure text, no database.

Neighbouring inserts into one table become one statement with several rows, never across two transactions. What the
database cannot hold (a value that the file had as unreadable text, nothing where something must be, a text too long) is
left out with its reason. Of a row whose first change was left out, the next is what inserts it.

A literal doubles its quotes and nothing else: the session has standard_conforming_strings (PostgreSQL) or
NO_BACKSLASH_ESCAPES (MariaDB), see connect.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from streaming.shop import LSN_STEP, stage_changes
from streaming.shop_database.ddl import SHOP, Dialect, ShopColumn, ShopTable

__all__ = ["LeftOut", "Transaction", "left_out", "stage_statements", "transactions"]

# Rows of one INSERT: more make no difference to its speed, and a server bounds the length of a statement.
_INSERT_ROWS = 500


@dataclass(frozen=True)
class Transaction:
    """What one transaction of the shop wrote. `last_line` is the place in the stream (from 1) of its last line.

    `event_at` and `landed_at` are literals. No statements: nothing of it can be held.
    """

    last_line: int
    event_at: str
    landed_at: str
    rows: int
    statements: tuple[str, ...]


@dataclass(frozen=True)
class LeftOut:
    """Rows of a table that the database cannot hold for the same reason; `key` and `found` are those of the first."""

    table: str
    problem: str
    rows: int
    key: str
    found: str | None

    def __str__(self) -> str:
        found = f", found {self.found}" if self.found else ""
        return f"{self.table}: {self.rows} row(s) left out, {self.problem}; the first is {self.key}{found}"


def stage_statements(connection: duckdb.DuckDBPyConnection, ordered: pa.Table, dialect: Dialect) -> None:
    """Make the relation `statement` of all changes of `ordered` (shop.order_lines' result)."""
    stage_changes(connection, ordered)
    parts = " UNION ALL ".join(f"({_changes_sql(table, place, dialect)})" for place, table in enumerate(SHOP))
    connection.execute(f"CREATE TEMP TABLE statement AS {parts}")


def transactions(
    connection: duckdb.DuckDBPyConnection, first: int, last: int, split_after: int = 0
) -> Iterator[Transaction]:
    """The transactions of the lines at places first to last, in order; one that spans `split_after` is parted there.

    A transaction of the shop whose lines landed at different instants is one transaction for each instant.
    """
    found = connection.execute(_TRANSACTIONS, {"first": first, "last": last, "split": split_after}).fetchall()
    for last_line, event_at, landed_at, rows, statements in found:
        yield Transaction(last_line, event_at, landed_at, rows, tuple(statements or ()))


def left_out(connection: duckdb.DuckDBPyConnection, lines: int) -> tuple[LeftOut, ...]:
    """What of the first `lines` lines the database cannot hold."""
    found = connection.execute(_LEFT_OUT, {"lines": lines}).fetchall()
    return tuple(LeftOut(*row) for row in found)


_PLACES = " ".join(f"WHEN {place} THEN '{table.name}'" for place, table in enumerate(SHOP))
_LEFT_OUT = f"""
SELECT CASE place {_PLACES} END, problem, count(*), left(arg_min(key, lsn), 60), left(arg_min(found, lsn), 60)
FROM statement WHERE problem IS NOT NULL AND line <= $lines GROUP BY place, problem ORDER BY place, problem"""

_HEADS = " ".join(
    f"WHEN {place} THEN 'INSERT INTO {table.name} ({', '.join(table.names)}) VALUES '"
    for place, table in enumerate(SHOP)
)
_TRANSACTIONS = f"""
WITH chosen AS (
    SELECT *, line <= $split AS is_before FROM statement WHERE line BETWEEN $first AND $last),
held AS (
    SELECT *, row_number() OVER w AS number,
        NOT is_insert OR lag(place) OVER w IS DISTINCT FROM place OR NOT lag(is_insert) OVER w AS differs
    FROM chosen WHERE problem IS NULL WINDOW w AS (PARTITION BY tx_id, landed_at, is_before ORDER BY lsn)),
runs AS (
    SELECT *, sum((differs OR number % {_INSERT_ROWS} = 0)::INT) OVER (
        PARTITION BY tx_id, landed_at, is_before ORDER BY lsn ROWS UNBOUNDED PRECEDING) AS run FROM held),
said AS (
    SELECT tx_id, landed_at, is_before, run, count(*) AS rows, CASE WHEN any_value(is_insert)
        THEN CASE any_value(place) {_HEADS} END || string_agg(body, ',' ORDER BY lsn) ELSE any_value(body) END AS said
    FROM runs GROUP BY ALL),
bodies AS (
    SELECT tx_id, landed_at, is_before, sum(rows) AS rows, list(said ORDER BY run) AS statements
    FROM said GROUP BY ALL),
spans AS (
    SELECT tx_id, landed_at, is_before, max(line) AS last_line, any_value(event_at) AS event_at
    FROM chosen GROUP BY ALL)
SELECT last_line, strftime(event_at, '''%Y-%m-%d %H:%M:%S.%f'''), strftime(landed_at, '''%Y-%m-%d %H:%M:%S.%f'''),
    coalesce(rows, 0)::BIGINT, statements
FROM spans LEFT JOIN bodies USING (tx_id, landed_at, is_before) ORDER BY last_line"""


def _changes_sql(table: ShopTable, place: int, dialect: Dialect) -> str:
    """One table's changes: where they are in the stream, whether they can be held, and what is to be said."""
    row = " || ',' || ".join(_literal_sql(column) for column in table.columns)
    sets = " || ',' || ".join(f"'{c.name}=' || {_literal_sql(c)}" for c in table.columns if c.name not in table.key)
    key = " || ' AND ' || ".join(f"'{c.name}=' || {_literal_sql(c)}" for c in table.columns if c.name in table.key)
    # Whether something of the same row was held before; of order lines the staging makes inserts alone.
    is_insert = "NOT coalesce(bool_or(problem IS NULL) OVER (PARTITION BY key ORDER BY lsn ROWS BETWEEN UNBOUNDED "
    is_insert += "PRECEDING AND 1 PRECEDING), false)"
    return f"""
        WITH judged AS (
            SELECT *, CASE {_problems_sql(table, dialect)} END AS problem FROM {table.name}),
        told AS (SELECT *, {"true" if table.name == "order_lines" else is_insert} AS is_insert FROM judged)
        SELECT lsn, lsn // {LSN_STEP} AS line, tx_id, event_at, landed_at, {place}::UTINYINT AS place, is_insert,
            to_json(key)::VARCHAR AS key, problem, unread AS found,
            CASE WHEN problem IS NOT NULL THEN NULL WHEN is_insert THEN '(' || {row} || ')'
                ELSE 'UPDATE {table.name} SET ' || {sets} || ' WHERE ' || {key} END AS body
        FROM told"""


def _literal_sql(column: ShopColumn) -> str:
    """Quoted but for integers: with a quoted one MariaDB would compare keys as floating point."""
    value = f"after.{column.name}"
    if column.type == "string":
        literal = f"'''' || replace({value}, '''', '''''') || ''''"
    elif column.type == "float64":  # the shortest text that reads back as the same number
        literal = f"'''' || {value}::VARCHAR || ''''"
    elif column.type == "timestamp":
        literal = f"strftime(make_timestamp({value}), '''%Y-%m-%d %H:%M:%S.%f''')"
    else:
        literal = f"{value}::VARCHAR"
    return f"coalesce({literal}, 'NULL')"


def _problems_sql(table: ShopTable, dialect: Dialect) -> str:
    """WHEN branches; the first that applies is the reason why the database cannot hold the row."""
    return " ".join(
        f"WHEN {when} THEN '{problem}'"
        for when, problem in (
            ("unread IS NOT NULL", "a value that could not be read as its type"),
            *(branch for column in table.columns for branch in _column_problems(column, dialect)),
        )
    )


def _column_problems(column: ShopColumn, dialect: Dialect) -> Iterator[tuple[str, str]]:
    value = f"after.{column.name}"
    if not column.nullable:
        yield f"{value} IS NULL", f"{column.name} is null, but must not be"
    if column.type == "float64":
        yield f"NOT isfinite({value})", f"{column.name} is not a finite number"
    if column.type == "string":
        yield f"length({value}) > {column.max_chars}", f"{column.name} is longer than {column.max_chars} characters"
        if dialect == "postgresql":
            yield f"contains({value}, chr(0))", f"{column.name} has a NUL character, which PostgreSQL cannot hold"
