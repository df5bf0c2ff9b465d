"""Column types of MariaDB and MySQL: how they are told apart, and what becomes of their values.

A type is read either from the server's own words (`decimal(12,2) unsigned`) or from what the binary log says about a
table; both give the same `ColumnType`, so that a schema does not change with where it was read. Display widths,
ZEROFILL and compression are no part of it: they do not change a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from streaming.capture.type_table import TypeRow

__all__ = ["BINARIES", "FIXED_BINARIES", "GEOMETRIES", "INTEGERS", "TEXTS", "ColumnType", "parse_type", "rows"]

# Bytes that an integer takes.
INTEGERS = {"tinyint": 1, "smallint": 2, "mediumint": 3, "int": 4, "bigint": 8}
TEXTS = ("char", "varchar", "tinytext", "text", "mediumtext", "longtext")
BINARIES = ("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob")
# In the binary log these look like binary(n): only the server's dictionary tells them apart.
FIXED_BINARIES = {"uuid": 16, "inet6": 16, "inet4": 4}
GEOMETRIES = (
    "geometry",
    "point",
    "linestring",
    "polygon",
    "multipoint",
    "multilinestring",
    "multipolygon",
    "geometrycollection",
)
_SIZED = ("char", "varchar", "binary", "varbinary", "bit", "vector")
# What the lake's decimals hold; the server's have up to 65.
_MOST_DIGITS = 38
_FRACTIONAL = ("time", "datetime", "timestamp")
_WORDS = re.compile(r"(?P<kind>[a-z0-9_]+)(?: precision)?(?:\((?P<args>.*)\))?(?P<more>.*)", re.DOTALL)
_MEMBER = re.compile(r"'((?:[^']|'')*)'")


@dataclass(frozen=True)
class ColumnType:
    """`size` in characters, bytes, digits or bits; `scale` digits after the point, or of a second."""

    kind: str
    size: int = 0
    scale: int = 0
    unsigned: bool = False
    charset: str = ""
    members: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As the server would say it, without what does not change a value."""
        if self.kind == "decimal":
            text = f"decimal({self.size},{self.scale})"
        elif self.kind in _SIZED:
            text = f"{self.kind}({self.size})"
        elif self.kind in _FRACTIONAL and self.scale:
            text = f"{self.kind}({self.scale})"
        elif self.members:
            quoted = (member.replace("'", "''") for member in self.members)
            text = f"{self.kind}('" + "','".join(quoted) + "')"
        else:
            text = self.kind
        return f"{text} unsigned" if self.unsigned else text

    @property
    def lake(self) -> str:
        """The lake's type for it."""
        if self.kind == "decimal":
            return f"decimal({self.size},{self.scale})" if self.size <= _MOST_DIGITS else "string"
        if self.kind == "bigint" and self.unsigned:
            return "decimal(20,0)"
        if self.kind == "bit":
            return "bool" if self.size == 1 else "binary"
        return _LAKE.get(self.kind, "string")


_LAKE = {
    **dict.fromkeys((*INTEGERS, "year"), "int64"),
    **dict.fromkeys(("float", "double"), "float64"),
    **dict.fromkeys(BINARIES, "binary"),
    **dict.fromkeys(GEOMETRIES, "json"),
    "date": "date",
    "datetime": "timestamp",
    "timestamp": "timestamp",
    "time": "int64",
}


def parse_type(words: str, charset: str | None = None) -> ColumnType:
    """From `information_schema.columns`: COLUMN_TYPE and CHARACTER_SET_NAME."""
    found = _WORDS.fullmatch(words.strip())
    if found is None:
        return ColumnType(words)
    kind, args, more = found["kind"].lower(), found["args"] or "", found["more"].lower()
    unsigned = "unsigned" in more or "zerofill" in more
    if kind in ("enum", "set"):
        members = tuple(member.replace("''", "'") for member in _MEMBER.findall(args))
        return ColumnType(kind, members=members, charset=charset or "")
    if kind == "decimal":
        precision, _, scale = args.partition(",")
        return ColumnType(kind, int(precision), int(scale or 0), unsigned)
    if kind in _SIZED:
        return ColumnType(kind, int(args), charset=charset or "")
    if kind in _FRACTIONAL:
        return ColumnType(kind, scale=int(args or 0))
    return ColumnType(kind, unsigned=unsigned, charset=charset or "")


def rows() -> Iterator[TypeRow]:
    """What becomes of each type, for docs/reference/types.md."""
    for kind, json, lake, note in _ROWS:
        yield TypeRow("mariadb", kind, json, lake, note)


_ROWS = (
    ("tinyint, smallint, mediumint, int, bigint", "number", "int64", "tinyint(1) too: 0, 1 or another"),
    ("tinyint ... int unsigned", "number", "int64", ""),
    ("bigint unsigned", "number, all its digits", "decimal(20,0)", "beyond 2^63 too"),
    ("decimal(p,s)", "string of digits", "decimal(p,s)", "exact, all s digits after the point; lake string if p > 38"),
    ("float", "number", "float64", "the shortest number that is this float: 0.1, not 0.10000000149"),
    ("double", "number", "float64", ""),
    ("bit(1)", "true, false", "bool", ""),
    ("bit(n)", "string: base64 of the bits as a little-endian number", "binary", "in (n+7)/8 bytes"),
    ("date", "integer: days since 1970", "date", "a zero or impossible date, or the year 0: its text, quarantined"),
    ("datetime(0..6)", "integer: microseconds since 1970, as written", "timestamp", "zero dates as for date"),
    ("timestamp(0..6)", "string: ISO 8601 in UTC, its digits", "timestamp", "zero dates as for date"),
    ("time(0..6)", "integer: microseconds", "int64", "-838:59:59 to 838:59:59: a duration, not a time of day"),
    ("year", "number", "int64", "0 for 0000"),
    ("char, varchar, tinytext ... longtext", "string", "string", "decoded by the column's character set; what is not "
     'valid in it: {"invalid": base64}, quarantined'),
    ("json", "string", "string", "MariaDB's is longtext with a check: its text as written"),
    ("binary(n)", "string: base64", "binary", "with its trailing zero bytes"),
    ("varbinary, tinyblob ... longblob", "string: base64", "binary", ""),
    ("enum, set", "string", "string", "a member's name; a set's with commas between; empty for a refused value"),
    ("uuid, inet4, inet6", "string", "string", "as the server writes it"),
    ("point", '{"x", "y", "wkb": base64, "srid"}', "json", "srid null for 0"),
    ("geometry and its other kinds", '{"wkb": base64, "srid"}', "json", "srid null for 0"),
)  # fmt: skip
