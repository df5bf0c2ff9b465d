"""Which JSON and which lake type a column's type becomes: the table of built-in types, and how all others follow.

A domain is what it is made of, an array a list of its elements; what is left (enums, composites, ranges, extensions'
types) is PostgreSQL's text. How text becomes JSON is `values`' matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streaming.capture.type_table import TypeRow
from streaming.postgres import values
from streaming.postgres.values import Encoder

__all__ = ["ColumnType", "TypeCatalog", "rows"]

_MAX_DECIMAL_DIGITS = 38


@dataclass(frozen=True)
class ColumnType:
    """`name` in PostgreSQL's words, `lake` as landing keeps it, `encode` from its text to JSON."""

    name: str
    lake: str
    encode: Encoder


@dataclass(frozen=True)
class _BuiltIn:
    lake: str
    encode: Encoder
    json: str
    note: str = ""


_MICROS = "integer: microseconds since 1970"
_TEXT = _BuiltIn("string", values.text, "string: PostgreSQL's text")
_SAFE = _BuiltIn("string", values.plain, "string: PostgreSQL's text")
_INTEGER = _BuiltIn("int64", values.verbatim, "number")
_FLOAT = _BuiltIn("float64", values.floating, "number", 'NaN and infinities: "NaN", "Infinity", "-Infinity"')
_JSON = _BuiltIn("json", values.text, "string")

# By pg_type.typname. What is not here is text.
# fmt: off
_BUILT_IN: Mapping[str, _BuiltIn] = {
    **dict.fromkeys(("int2", "int4", "int8", "oid"), _INTEGER),
    **dict.fromkeys(("float4", "float8"), _FLOAT),
    "numeric": _BuiltIn(
        "string", values.plain, "string of digits",
        "lake decimal(p,s) when declared so with p <= 38 and 0 <= s <= p, NaN and infinity being quarantined there",
    ),
    "money": _BuiltIn("decimal(19,2)", values.money, "string of digits"),
    "bool": _BuiltIn("bool", values.boolean, "true, false"),
    "date": _BuiltIn(
        "date", values.DATES.__getitem__, "integer: days since 1970",
        "BC and years above 9999: a number, quarantined; infinity: PostgreSQL's text, quarantined",
    ),
    "time": _BuiltIn("time", values.clock_time, "integer: microseconds since midnight", "24:00 is 86400000000"),
    "timetz": _BuiltIn("string", values.zoned_time, "string: ISO 8601 in UTC", "24:00 with a zone: PostgreSQL's text"),
    "timestamp": _BuiltIn(
        "timestamp", values.timestamp, _MICROS,
        "BC and years above 9999: a number, quarantined; infinity and what 64 bits do not hold: PostgreSQL's text, "
        "quarantined",
    ),
    "timestamptz": _BuiltIn(
        "timestamp", values.zoned_timestamp, "string: ISO 8601 in UTC",
        "infinity, BC and years above 9999: PostgreSQL's text, quarantined",
    ),
    "interval": _BuiltIn(
        "string", values.interval, "string: P1Y2M3DT4H5M6.7S",
        "Debezium's interval.handling.mode=string; its default, microseconds, counts a month as 30.4375 days",
    ),
    "bytea": _BuiltIn("binary", values.hexadecimal, "string: base64"),
    "bit": _BuiltIn(
        "binary", values.bits, "string: base64 of the bits as a little-endian number", "bit(1): true, false; lake bool"
    ),
    "varbit": _BuiltIn("string", values.plain, "string of 0 and 1", "Debezium: as bit(n), which loses leading zeros"),
    **dict.fromkeys(("json", "jsonb"), _JSON),
    **dict.fromkeys(("uuid", "inet", "cidr", "macaddr", "macaddr8", "pg_lsn"), _SAFE),
    **dict.fromkeys(("text", "varchar", "bpchar", "name", "char", "xml", "tsvector", "tsquery", "jsonpath"), _TEXT),
    **dict.fromkeys(("point", "line", "lseg", "box", "path", "polygon", "circle"), _TEXT),
    **dict.fromkeys(("int2vector", "oidvector", "tid", "xid", "xid8", "cid", "pg_snapshot", "txid_snapshot"), _TEXT),
    **dict.fromkeys(("regclass", "regproc", "regprocedure", "regoper", "regoperator", "regtype", "regrole"), _TEXT),
    **dict.fromkeys(("regnamespace", "regconfig", "regdictionary", "regcollation", "refcursor", "aclitem"), _TEXT),
}
_OTHERS = (
    ("domain", "as the type that it is made of", "the same", ""),
    ("enum", _TEXT.json, "string", ""),
    ("array of T", "array of T's, nested when it has more dimensions", "list<T>",
     "`list<list<T>>` is to be declared of what has two dimensions: quarantined are values with another number of "
     "them, and those with bounds that do not begin at 1, as PostgreSQL's text"),
    ("composite", _TEXT.json, "string", "Debezium leaves such a column out"),
    ("range, multirange", _TEXT.json, "string", ""),
    ("citext, hstore, ltree and other extensions' types", _TEXT.json, "string",
     "Debezium: hstore as JSON, PostGIS as WKB"),
    ("text that is not UTF-8 (SQL_ASCII databases)", '{"bytes": base64}', "string", "quarantined"),
)
# fmt: on


def rows() -> list[TypeRow]:
    """PostgreSQL's part of the documented table of types."""
    built_in = [(name, one.json, one.lake, one.note) for name, one in _BUILT_IN.items()]
    return [TypeRow("PostgreSQL", *row) for row in (*built_in, *_OTHERS)]


@dataclass(frozen=True)
class _TypeRecord:
    """A row of pg_type; `kind` is its typtype, and a for an array."""

    schema: str
    name: str
    kind: str
    element: int
    base: int
    base_typmod: int
    delimiter: str


_TYPES_SQL = """
SELECT t.oid::int8, n.nspname::text, t.typname::text,
       CASE WHEN t.typtype = 'd' THEN 'd' WHEN t.typcategory = 'A' THEN 'a' ELSE t.typtype::text END,
       t.typelem::int8, t.typbasetype::int8, t.typtypmod, t.typdelim::text
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = ANY(%s)
"""
_NAMES_SQL = """
SELECT o::int8, m, pg_catalog.format_type(o::oid, m) FROM unnest(%s::int8[], %s::int4[]) AS asked(o, m)
"""


class TypeCatalog:
    """Types by (oid, typmod), asked of the database once each. Give it a new connection's `query` after a reconnect."""

    def __init__(self, *, checked_encoding: bool = True) -> None:
        """`checked_encoding`: whether the database makes sure that text is what its encoding says."""
        self._text = values.text if checked_encoding else values.unchecked_text
        self._records: dict[int, _TypeRecord] = {}
        self._types: dict[tuple[int, int], ColumnType] = {}

    def types(self, query: Any, wanted: Sequence[tuple[int, int]]) -> list[ColumnType]:
        """The types of columns with these (oid, typmod). `query(sql, parameters)` returns rows."""
        missing = sorted({one for one in wanted if one not in self._types})
        if missing:
            self._learn(query, {oid for oid, _ in missing})
            names = query(_NAMES_SQL, ([oid for oid, _ in missing], [typmod for _, typmod in missing]))
            for oid, typmod, name in names:
                lake, encode = self._meaning(oid, typmod)
                self._types[oid, typmod] = ColumnType(name, lake, encode)
        return [self._types[one] for one in wanted]

    def _learn(self, query: Any, oids: set[int]) -> None:
        """Their records, and those of what they are made of."""
        while oids := {oid for oid in oids if oid and oid not in self._records}:
            for oid, *record in query(_TYPES_SQL, (list(oids),)):
                self._records[oid] = _TypeRecord(*record)
            gone = {oid: _TypeRecord("", "", "b", 0, 0, -1, ",") for oid in oids if oid not in self._records}
            self._records |= gone  # dropped since the change was made: text
            oids = {part for oid in oids for part in (self._records[oid].element, self._records[oid].base)}

    def _meaning(self, oid: int, typmod: int) -> tuple[str, Encoder]:
        found = self._records[oid]
        if found.kind == "d":
            return self._meaning(found.base, found.base_typmod)
        if found.schema == "pg_catalog" and found.name in _BUILT_IN:
            return self._built_in(found.name, typmod)
        if found.kind == "a":
            lake, encode = self._meaning(found.element, typmod)
            return f"list<{lake}>", values.array_of(encode, self._records[found.element].delimiter.encode())
        return "string", self._text

    def _built_in(self, name: str, typmod: int) -> tuple[str, Encoder]:
        if name == "bit" and typmod == 1:
            return "bool", values.boolean
        if name == "numeric" and typmod >= 4:
            precision, scale = (typmod - 4) >> 16 & 0xFFFF, (typmod - 4) & 0x7FF
            if precision <= _MAX_DECIMAL_DIGITS and scale <= precision:  # a negative scale reads as a large one here
                return f"decimal({precision},{scale})", values.plain
        one = _BUILT_IN[name]
        return one.lake, self._text if one.encode is values.text else one.encode
