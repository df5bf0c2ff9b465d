"""What tables look like in the database's catalog now: columns, key, replica identity, partitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from streaming.capture.tables import CapturedColumn, TableSchema
from streaming.postgres.pgoutput import Relation
from streaming.postgres.types import ColumnType, TypeCatalog

__all__ = ["Column", "Description", "Query", "describe", "named", "schema_of", "schema_of_relation"]

Query = Callable[[str, Sequence[Any]], Sequence[tuple[Any, ...]]]
"""Runs a statement with parameters; its rows."""


@dataclass(frozen=True)
class Column:
    """A column that is captured: a generated one is not, PostgreSQL does not send it."""

    name: str
    type_oid: int
    typmod: int
    not_null: bool


@dataclass(frozen=True)
class Leaf:
    """A partition with rows. `born`: made as a partition, so that all its rows came through the table."""

    oid: int
    name: str
    identity: str
    has_identity: bool
    born: bool


@dataclass(frozen=True)
class Description:
    """A table. `kind`: r, or p when it is partitioned; `identity`: d, n, f, i as in pg_class.relreplident.

    `key`: what its changes are keyed by: the replica identity's columns when that is an index of its own, else the
    primary key's, in key order.
    """

    oid: int
    schema: str
    table: str
    kind: str
    persistence: str
    identity: str
    has_identity: bool
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    leaves: tuple[Leaf, ...]

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def mark(self) -> list[int]:
        """Tells it from another table of that name, and its set of partitions from another one."""
        return [self.oid, *sorted(leaf.oid for leaf in self.leaves)]


_KEY_SQL = """
(SELECT array_agg(a.attname::text ORDER BY k.place)
 FROM pg_catalog.pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(number, place)
 JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
 WHERE k.place <= i.indnkeyatts AND i.indrelid = c.oid AND
"""
_TABLES_SQL = f"""
SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text,
  pg_catalog.pg_get_replica_identity_index(c.oid) IS NOT NULL,
  CASE c.relreplident WHEN 'i' THEN {_KEY_SQL} i.indisreplident) ELSE {_KEY_SQL} i.indisprimary) END
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"""
_BY_NAME = _TABLES_SQL + " WHERE (n.nspname || '.' || c.relname) = ANY(%s) AND c.relkind <> 'i'"
_BY_OID = _TABLES_SQL + " WHERE c.oid = ANY(%s)"
_COLUMNS_SQL = """
SELECT attrelid::int8, attname::text, atttypid::int8, atttypmod, attnotnull FROM pg_catalog.pg_attribute
WHERE attrelid = ANY(%s) AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attrelid, attnum
"""
# A row type is made with its table and never touched again, pg_inherits' row when it becomes a partition: when one
# transaction wrote both, the partition was empty then.
_LEAVES_SQL = """
SELECT asked.oid::int8, c.oid::int8, c.oid::regclass::text, c.relreplident::text,
  pg_catalog.pg_get_replica_identity_index(c.oid) IS NOT NULL, t.xmin = h.xmin
FROM unnest(%s::int8[]) AS asked(oid) CROSS JOIN LATERAL pg_catalog.pg_partition_tree(asked.oid::oid::regclass) AS part
JOIN pg_catalog.pg_class c ON c.oid = part.relid JOIN pg_catalog.pg_type t ON t.oid = c.reltype
JOIN pg_catalog.pg_inherits h ON h.inhrelid = c.oid WHERE part.isleaf AND part.relid <> asked.oid
"""


def named(query: Query, names: Iterable[str]) -> dict[str, Description]:
    """The tables that exist of these names (schema.table), by name."""
    return {one.name: one for one in _described(query, query(_BY_NAME, (list(names),)))}


def describe(query: Query, oid: int) -> Description | None:
    """The table of that oid; None when it is gone."""
    return next(iter(_described(query, query(_BY_OID, ([oid],)))), None)


def _described(query: Query, tables: Sequence[tuple[Any, ...]]) -> list[Description]:
    make: Callable[..., Description] = Description
    oids = [table[0] for table in tables]
    columns: dict[int, list[Column]] = {}
    for oid, *column in query(_COLUMNS_SQL, (oids,)) if oids else ():
        columns.setdefault(oid, []).append(Column(*column))
    leaves: dict[int, list[Leaf]] = {}
    partitioned = [table[0] for table in tables if table[3] == "p"]
    for oid, *leaf in query(_LEAVES_SQL, (partitioned,)) if partitioned else ():
        leaves.setdefault(oid, []).append(Leaf(*leaf))
    return [
        make(*table, tuple(key or ()), tuple(columns.get(table[0], ())), tuple(leaves.get(table[0], ())))
        for *table, key in tables
    ]


def schema_of(query: Query, types: TypeCatalog, found: Description) -> tuple[TableSchema, list[ColumnType]]:
    """The table's schema as the stream would tell it, and its columns' types."""
    kinds = types.types(query, [(column.type_oid, column.typmod) for column in found.columns])
    columns = tuple(
        CapturedColumn(column.name, kind.name, kind.lake, not column.not_null)
        for column, kind in zip(found.columns, kinds, strict=True)
    )
    return TableSchema(found.schema, found.table, columns, found.key), kinds


def schema_of_relation(
    query: Query, types: TypeCatalog, relation: Relation, known: TableSchema | None
) -> tuple[TableSchema, list[ColumnType]]:
    """The schema from which the stream's rows are read.

    A relation message says which columns there were then, but not which of them may be null or make the primary key:
    that is asked of the catalog, which may be ahead, and is taken where it still fits.
    """
    now = describe(query, relation.oid)
    kinds = types.types(query, [(column.type_oid, column.typmod) for column in relation.columns])
    if now is not None:
        not_null = {column.name for column in now.columns if column.not_null}
    else:  # dropped since
        not_null = {column.name for column in known.columns if not column.nullable} if known else set()
    columns = tuple(
        CapturedColumn(column.name, kind.name, kind.lake, column.name not in not_null)
        for column, kind in zip(relation.columns, kinds, strict=True)
    )
    key = _key(relation, now.key if now else (), known.key if known else ())
    return TableSchema(relation.schema, relation.table, columns, key), kinds


def _key(relation: Relation, now: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    names = {column.name for column in relation.columns}
    flagged = tuple(column.name for column in relation.columns if column.is_identity)
    if relation.identity in "di":
        # The message says which columns, the catalog in which order.
        return next((key for key in (now, known) if set(key) == set(flagged)), flagged)
    return next((key for key in (now, known) if key and names.issuperset(key)), ())
