"""The tables of the shop's operational database, for PostgreSQL and for MariaDB.

Money is double precision, as the lake has it: what is captured then lands bit for bit. Instants are UTC without a zone.
There are no foreign keys: MariaDB carries out their cascades inside the storage engine, where the binary log does not
see them, and a captured copy would silently differ.

`headwater_clock` is written first in each replayed transaction: when it happened, when it became known. Its `tick`
differs from transaction to transaction, because MariaDB does not log an update that changes nothing and many
transactions share a minute. `headwater_replay` is how far the replay got, and what durability gives back to a
server that it relaxed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["CLOCK", "PROGRESS", "SHOP", "ColumnType", "Dialect", "ShopColumn", "ShopTable", "create_statements"]

Dialect = Literal["postgresql", "mariadb"]
ColumnType = Literal["string", "int64", "float64", "timestamp"]

# The longest text that both databases can index as (part of) a key, and the longest that MariaDB's `text` always holds.
_SHORT, _LONG = 255, 16_000
CLOCK, PROGRESS = "headwater_clock", "headwater_replay"


@dataclass(frozen=True)
class ShopColumn:
    """A column; `max_chars` bounds a text."""

    name: str
    type: ColumnType
    nullable: bool = False
    max_chars: int = _SHORT


@dataclass(frozen=True)
class ShopTable:
    """A table with its primary key in key order and further columns to index."""

    name: str
    columns: tuple[ShopColumn, ...]
    key: tuple[str, ...]
    indexed: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


SHOP = (
    ShopTable(
        "customers",
        (
            ShopColumn("customer_id", "int64"),
            ShopColumn("country", "string", nullable=True),
            ShopColumn("registered_at", "timestamp"),
            ShopColumn("updated_at", "timestamp"),
        ),
        key=("customer_id",),
    ),
    ShopTable(
        "products",
        (
            ShopColumn("stock_code", "string"),
            ShopColumn("description", "string", nullable=True, max_chars=_LONG),
            ShopColumn("list_price_gbp", "float64", nullable=True),
            ShopColumn("updated_at", "timestamp"),
        ),
        key=("stock_code",),
    ),
    ShopTable(
        "orders",
        (
            ShopColumn("invoice_no", "string"),
            ShopColumn("customer_id", "int64", nullable=True),
            ShopColumn("country", "string", nullable=True),
            ShopColumn("kind", "string"),
            ShopColumn("refund_status", "string"),
            ShopColumn("refunded_gbp", "float64"),
            ShopColumn("ordered_at", "timestamp"),
            ShopColumn("updated_at", "timestamp"),
        ),
        key=("invoice_no",),
        indexed=("customer_id",),
    ),
    ShopTable(
        "order_lines",
        (
            ShopColumn("invoice_no", "string"),
            ShopColumn("line_no", "int64"),
            ShopColumn("customer_id", "int64", nullable=True),
            ShopColumn("stock_code", "string"),
            ShopColumn("quantity", "int64"),
            ShopColumn("unit_price_gbp", "float64"),
            ShopColumn("invoiced_at", "timestamp"),
        ),
        key=("invoice_no", "line_no"),
    ),
)
_OURS = (
    ShopTable(
        CLOCK,
        (
            ShopColumn("id", "int64"),
            ShopColumn("event_at", "timestamp"),
            ShopColumn("landed_at", "timestamp"),
            ShopColumn("tick", "int64"),
        ),
        key=("id",),
    ),
    ShopTable(
        PROGRESS,
        (
            ShopColumn("id", "int64"),
            ShopColumn("lines_done", "int64"),
            ShopColumn("digest", "string"),
            ShopColumn("server_settings", "string", nullable=True),
        ),
        key=("id",),
    ),
)


def create_statements(dialect: Dialect, *, replay: bool) -> Iterator[str]:
    """CREATE statements of what is missing: the shop's tables and, for a replay, the clock and the progress."""
    for table in (*SHOP, *(_OURS if replay else ())):
        yield from _create(table, dialect)


def _create(table: ShopTable, dialect: Dialect) -> Iterator[str]:
    parts = [f"{c.name} {_type(c, dialect)}{'' if c.nullable else ' NOT NULL'}" for c in table.columns]
    parts.append(f"PRIMARY KEY ({', '.join(table.key)})")
    if dialect == "mariadb":
        parts += [f"KEY {table.name}_{name} ({name})" for name in table.indexed]
        # By code point and without padding: 85123A is not 85123a, and what ends in a space differs from what does not.
        options = " ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"
        yield f"CREATE TABLE IF NOT EXISTS {table.name} ({', '.join(parts)}){options}"
    else:
        yield f"CREATE TABLE IF NOT EXISTS {table.name} ({', '.join(parts)})"
        for name in table.indexed:
            yield f"CREATE INDEX IF NOT EXISTS {table.name}_{name} ON {table.name} ({name})"


def _type(column: ShopColumn, dialect: Dialect) -> str:
    if column.type == "string":
        return f"varchar({column.max_chars})" if column.max_chars == _SHORT else "text"
    if column.type == "timestamp":
        return "timestamp(6) without time zone" if dialect == "postgresql" else "datetime(6)"
    return {"int64": "bigint", "float64": "double precision"}[column.type]
