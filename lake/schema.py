"""Which columns a table must have, and of which type: of raw tables by the catalog, of dbt's by dbt_project's YAML.

Only declarations are read here. Whether a table keeps them is `lake.gates`' business; who fills the history columns of
a raw table is `streaming.landing`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from ruamel.yaml import YAML

from catalog.column_types import LakeType, parse_type
from catalog.keys import Key
from catalog.settings import CATALOG_DIR
from catalog.spec import HISTORY_NAMES, Column, Source

__all__ = [
    "DBT_PROJECT_DIR",
    "HISTORY_COLUMNS",
    "TableColumn",
    "arrow_type",
    "dbt_columns",
    "source_columns",
    "sql_type",
]

DBT_PROJECT_DIR = CATALOG_DIR.parent / "dbt_project"
# Delta has no time of day: a `time` is its microseconds since midnight. Text is text, also where it is JSON.
_PLAIN: Mapping[str, tuple[pa.DataType, str]] = {
    "string": (pa.string(), "VARCHAR"),
    "int64": (pa.int64(), "BIGINT"),
    "float64": (pa.float64(), "DOUBLE"),
    "bool": (pa.bool_(), "BOOLEAN"),
    "timestamp": (pa.timestamp("us"), "TIMESTAMP"),
    "date": (pa.date32(), "DATE"),
    "time": (pa.int64(), "BIGINT"),
    "binary": (pa.binary(), "BLOB"),
    "json": (pa.string(), "VARCHAR"),
}
# What makes a row of a raw table a change.
HISTORY_COLUMNS: tuple[Column, ...] = (
    Column(
        name="change_op",
        type="string",
        nullable=False,
        description="c created, u updated, d deleted, r read by a snapshot, t: the table was emptied.",
    ),
    Column(
        name="source_epoch",
        type="int64",
        nullable=False,
        description="Grows when another server is taken for the source; positions are compared within it.",
    ),
    Column(name="source_position", type="int64", nullable=False, description="Position in the source's commit order."),
    Column(name="source_order", type="int64", nullable=False, description="Order among the changes of one position."),
    Column(name="tx_id", type="int64", description="The source's transaction; null when the source gave none."),
    Column(name="event_at", type="timestamp", nullable=False, description="When the source made the change (UTC)."),
    Column(name="landed_at", type="timestamp", nullable=False, description="When the change became known to us (UTC)."),
    Column(name="log_partition", type="int64", nullable=False, description="Partition of the change log."),
    Column(name="log_offset", type="int64", nullable=False, description="Offset in that partition of the change log."),
)
assert tuple(column.name for column in HISTORY_COLUMNS) == HISTORY_NAMES


def arrow_type(kind: LakeType) -> pa.DataType:
    """The type as a table of the lake has it."""
    if kind.kind == "decimal":
        return pa.decimal128(kind.precision, kind.scale)
    return pa.list_(arrow_type(kind.element)) if kind.element else _PLAIN[kind.kind][0]


def sql_type(kind: LakeType) -> str:
    """The same as DuckDB spells it."""
    if kind.kind == "decimal":
        return f"DECIMAL({kind.precision},{kind.scale})"
    return f"{sql_type(kind.element)}[]" if kind.element else _PLAIN[kind.kind][1]


@dataclass(frozen=True)
class TableColumn:
    """One declared column: its SQL type as DuckDB spells it, and whether a row may lack it."""

    name: str
    sql_type: str
    nullable: bool = True


def source_columns(source: Source) -> tuple[TableColumn, ...]:
    """The columns of a source's raw table: the captured table's own, then the history's."""
    return tuple(
        TableColumn(c.name, sql_type(parse_type(c.type)), c.nullable) for c in (*source.columns, *HISTORY_COLUMNS)
    )


def dbt_columns(key: Key, project: Path = DBT_PROJECT_DIR) -> tuple[TableColumn, ...]:
    """The columns that dbt_project declares for a table; empty for a table that dbt does not make."""
    return _declared(project).get(key, ())


@cache
def _declared(project: Path) -> dict[Key, tuple[TableColumn, ...]]:
    return {
        _key(model["name"]): tuple(TableColumn(c["name"], str(c["data_type"]).upper()) for c in model["columns"])
        for model in _models(project)
    }


def _models(project: Path) -> Iterator[Mapping[str, Any]]:
    for file in sorted((project / "models").rglob("*.yml")):
        tree = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
        yield from tree.get("models", ())


def _key(name: str) -> Key:
    """`marts_sales__orders` is marts/sales/orders, as macros/naming.sql has it."""
    schema, table = name.split("__", 1)
    layer, subject = schema.split("_", 1)
    return Key(layer, subject, table)
