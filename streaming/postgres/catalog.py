"""What tables look like in the database's catalog now: columns, key, replica identity, partitions, publication.

Everything is read from the catalog's own tables: its convenient functions and views open a table to answer, and would
wait for whoever holds a lock on it, and the stream with them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from streaming.capture.tables import CapturedColumn, TableSchema
from streaming.postgres.pgoutput import Relation
from streaming.postgres.types import ColumnType, TypeCatalog

__all__ = ["Catalog", "Column", "Description", "Leaf", "Mark", "Query"]

# Of an altered table, when its first change arrives: together longer than a commit takes to be seen.
_LOOKS, _BETWEEN_LOOKS_S = 10, 0.02

Query = Callable[[str, Sequence[Any]], Sequence[tuple[Any, ...]]]
"""Runs a statement with parameters; its rows."""


class Mark(TypedDict):
    """What of a table may change unseen by the stream; kept in checkpoints.

    `published`: versions of what publishes it; `columns`: number and version of each, by name, and an enum's labels, by
    their oids; `last_number`: of any column that there ever was; `files`: a table that is rewritten gets other ones.
    """

    oid: int
    key: list[str]
    leaves: list[int]
    published: list[int | None]
    columns: dict[str, list[Any]]
    last_number: int
    files: list[int]


@dataclass(frozen=True)
class Column:
    """A column that is sent: generated ones are not, nor what a publication's list of columns leaves out."""

    number: int
    name: str
    type_oid: int
    typmod: int
    not_null: bool
    version: int
    has_default: bool
    labels: Mapping[str, str] | None = None

    @property
    def mark(self) -> list[Any]:
        return [self.number, self.version, *([self.labels] if self.labels else [])]


@dataclass(frozen=True)
class Leaf:
    """A partition with rows. `born`: made as a partition, so that all its rows came through the table."""

    oid: int
    name: str
    file: int
    identity: str
    has_identity: bool
    born: bool


@dataclass(frozen=True)
class Description:
    """A table. `kind`: r, or p when it is partitioned; `identity`: d, n, f, i as in pg_class.relreplident.

    `is_published`: in our publication, `is_filtered` with a condition on its rows.

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
    is_published: bool
    is_filtered: bool
    published: tuple[int | None, ...]
    last_number: int
    file: int
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    leaves: tuple[Leaf, ...]

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def mark(self) -> Mark:
        """What it is now."""
        return {
            "oid": self.oid,
            "key": list(self.key),
            "leaves": sorted(leaf.oid for leaf in self.leaves),
            "published": list(self.published),
            "columns": {column.name: column.mark for column in self.columns},
            "last_number": self.last_number,
            "files": sorted({self.file, *(leaf.file for leaf in self.leaves)}),
        }


_HAS_IDENTITY_SQL = """
EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND CASE c.relreplident
  WHEN 'i' THEN i.indisreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate END)
"""
_IN_SCHEMA_SQL = """
OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s WHERE s.pnpubid = p.oid AND s.pnnspid = c.relnamespace)
"""
_TABLES_SQL = """
SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text,
  {has_identity}, p.oid IS NOT NULL AND (p.puballtables OR r.oid IS NOT NULL {in_schema}), {filtered},
  ARRAY[p.oid::int8, p.xmin::text::int8, r.oid::int8], c.relnatts, c.relfilenode::int8,
  (SELECT array_agg(a.attname::text ORDER BY k.place)
   FROM pg_catalog.pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(number, place)
   JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
   WHERE k.place <= i.indnkeyatts AND i.indrelid = c.oid
     AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END),
  {columns}
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_publication p ON p.pubname = %s
LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
"""
# An enum's labels, whether it is the column's type, its elements' or its domain's.
_COLUMNS_SQL = """
SELECT attrelid::int8, attnum, attname::text, atttypid::int8, atttypmod, attnotnull, a.xmin::text::int8,
  atthasdef OR atthasmissing,
  (SELECT jsonb_object_agg(e.oid, e.enumlabel) FROM pg_catalog.pg_enum e
   WHERE e.enumtypid IN (t.oid, t.typelem, t.typbasetype))
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = atttypid
WHERE attrelid = ANY(%s) AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attrelid, attnum
"""
# A row type is made with its table and never touched again, pg_inherits' row when it becomes a partition: when one
# transaction wrote both, the partition was empty then.
_LEAVES_SQL = f"""
WITH RECURSIVE tree(root, oid) AS (
  SELECT inhparent, inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = ANY(%s::oid[]) AND NOT inhdetachpending
  UNION ALL SELECT tree.root, h.inhrelid FROM tree JOIN pg_catalog.pg_inherits h ON h.inhparent = tree.oid
)
SELECT tree.root::int8, c.oid::int8, format('%%I.%%I', n.nspname, c.relname), c.relfilenode::int8, c.relreplident::text,
  {_HAS_IDENTITY_SQL}, t.xmin = h.xmin
FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_type t ON t.oid = c.reltype JOIN pg_catalog.pg_inherits h ON h.inhrelid = c.oid
WHERE c.relkind <> 'p'
"""
_COMPARED_BY_SQL = """
SELECT DISTINCT n.nspname::text FROM pg_catalog.pg_index i CROSS JOIN LATERAL unnest(i.indclass::oid[]) AS class(oid)
JOIN pg_catalog.pg_opclass c ON c.oid = class.oid
JOIN pg_catalog.pg_amop o ON o.amopfamily = c.opcfamily AND o.amopstrategy = 5
  AND o.amoplefttype = c.opcintype AND o.amoprighttype = c.opcintype
JOIN pg_catalog.pg_operator g ON g.oid = o.amopopr JOIN pg_catalog.pg_namespace n ON n.oid = g.oprnamespace
WHERE i.indrelid = %s AND (i.indisprimary OR i.indisreplident) AND n.nspname <> 'pg_catalog'
"""


class Catalog:
    """Reads it with whatever connection's `query` it is given; remembers types."""

    def __init__(self, publication: str, version: int, *, checked_encoding: bool) -> None:
        """`checked_encoding`: whether the database makes sure that text is what its encoding says."""
        self._publication = publication
        self._types = TypeCatalog(checked_encoding=checked_encoding)
        newer = version >= 150_000  # conditions, lists of columns and schemas in publications
        self._tables_sql = _TABLES_SQL.format(
            has_identity=_HAS_IDENTITY_SQL,
            in_schema=_IN_SCHEMA_SQL if newer else "",
            filtered="r.prqual IS NOT NULL" if newer else "false",
            columns="r.prattrs::int2[]" if newer else "NULL::int2[]",
        )

    def named(self, query: Query, names: Iterable[str]) -> dict[str, Description]:
        """The tables that exist of these names (schema.table), by name."""
        where = " WHERE (n.nspname || '.' || c.relname) = ANY(%s) AND c.relkind <> 'i'"
        return {one.name: one for one in self._described(query, where, list(names))}

    def described(self, query: Query, oid: int) -> Description | None:
        """The table of that oid; None when it is gone."""
        return next(iter(self._described(query, " WHERE c.oid = ANY(%s::oid[])", [oid])), None)

    def _described(self, query: Query, where: str, wanted: list[Any]) -> list[Description]:
        make: Callable[..., Description] = Description
        tables = query(self._tables_sql + where, (self._publication, wanted))
        oids = [table[0] for table in tables]
        columns: dict[int, list[Column]] = {}
        for oid, *column in query(_COLUMNS_SQL, (oids,)) if oids else ():
            columns.setdefault(oid, []).append(Column(*column))
        leaves: dict[int, list[Leaf]] = {}
        partitioned = [table[0] for table in tables if table[3] == "p"]
        for oid, *leaf in query(_LEAVES_SQL, (partitioned,)) if partitioned else ():
            leaves.setdefault(oid, []).append(Leaf(*leaf))
        return [
            make(
                *table,
                tuple(published),
                number,
                file,
                tuple(key or ()),
                _listed(columns.get(table[0], []), listed),
                tuple(leaves.get(table[0], ())),
            )
            for *table, published, number, file, key, listed in tables
        ]

    def schema(self, query: Query, found: Description) -> tuple[TableSchema, list[ColumnType]]:
        """The table's schema as the stream would tell it, and its columns' types."""
        kinds = self._types.types(query, [(column.type_oid, column.typmod) for column in found.columns])
        columns = tuple(
            CapturedColumn(column.name, kind.name, kind.lake, not column.not_null, column.number)
            for column, kind in zip(found.columns, kinds, strict=True)
        )
        return TableSchema(found.schema, found.table, columns, found.key), kinds

    def schema_of_relation(
        self, query: Query, relation: Relation, known: TableSchema | None
    ) -> tuple[TableSchema, list[ColumnType]]:
        """The schema from which the stream's rows are read.

        A relation message says which columns there were then, but not which of them may be null or make the primary
        key: that is asked of the catalog, which may be ahead, and is taken where it still fits.
        """
        now = self._fitting(query, relation)
        kinds = self._types.types(query, [(column.type_oid, column.typmod) for column in relation.columns])
        if now is not None:
            not_null = {column.name for column in now.columns if column.not_null}
        else:  # dropped since
            not_null = {column.name for column in known.columns if not column.nullable} if known else set()
        recorded = now or known
        numbers = {column.name: column.number for column in recorded.columns} if recorded else {}
        columns = tuple(
            CapturedColumn(column.name, kind.name, kind.lake, column.name not in not_null, numbers.get(column.name))
            for column, kind in zip(relation.columns, kinds, strict=True)
        )
        key = _key(relation, now.key if now else (), known.key if known else ())
        return TableSchema(relation.schema, relation.table, columns, key), kinds

    def _fitting(self, query: Query, relation: Relation) -> Description | None:
        """The table as it is now. A transaction may be streamed moments before others see it: then, asked again."""
        told = {(column.name, column.type_oid) for column in relation.columns}
        for _ in range(_LOOKS):
            now = self.described(query, relation.oid)
            if now is None or told <= {(column.name, column.type_oid) for column in now.columns}:
                break
            time.sleep(_BETWEEN_LOOKS_S)
        return now

    def key_types(self, query: Query, found: Description) -> list[str]:
        """Names of the key's types without lengths: a cast to varchar(3) would cut, one to char(3) pad."""
        oids = {column.name: column.type_oid for column in found.columns}
        return [kind.name for kind in self._types.types(query, [(oids[name], -1) for name in found.key])]

    @staticmethod
    def compared_by(query: Query, found: Description) -> list[str]:
        """Schemas, pg_catalog aside, of the operators that the key's index is ordered by: an extension's type has its
        own, and without them in the search path its values would be compared as what they can be cast to.
        """
        return [schema for (schema,) in query(_COMPARED_BY_SQL, (found.oid,))]


def _listed(columns: Sequence[Column], numbers: Sequence[int] | None) -> tuple[Column, ...]:
    return tuple(column for column in columns if not numbers or column.number in numbers)


def _key(relation: Relation, now: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    names = {column.name for column in relation.columns}
    flagged = tuple(column.name for column in relation.columns if column.is_identity)
    if relation.identity in "di":
        # The message says which columns, the catalog in which order.
        return next((key for key in (now, known) if set(key) == set(flagged)), flagged)
    return next((key for key in (now, known) if key and names.issuperset(key)), ())
