"""What the binary log says about a table before its rows: the TABLE_MAP event with its optional metadata.

Names, signs, character sets, members of enums and the primary key are there when the server runs with
binlog_row_metadata=FULL; they are those of the very rows that follow, which the server's dictionary may not be by now.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile

from streaming.mysql.charsets import Decode
from streaming.mysql.types import FIXED_BINARIES, GEOMETRIES, ColumnType
from streaming.mysql.wire import lenenc, lenenc_bytes, lenenc_list

__all__ = ["Charset", "LogColumn", "TableMap", "column_type", "parse_table_map"]

# Types of columns in the binary log (enum_field_types).
TINY, SHORT, LONG, FLOAT, DOUBLE, LONGLONG, INT24 = 1, 2, 3, 4, 5, 8, 9
OLD_TIMESTAMP, DATE, OLD_TIME, OLD_DATETIME, YEAR, VARCHAR, BIT = 7, 10, 11, 12, 13, 15, 16
TIMESTAMP2, DATETIME2, TIME2, BLOB_COMPRESSED, VARCHAR_COMPRESSED = 17, 18, 19, 140, 141
JSON, NEWDECIMAL, ENUM, SET, BLOB, VAR_STRING, STRING, GEOMETRY = 245, 246, 247, 248, 252, 253, 254, 255

_META_BYTES = {
    FLOAT: 1, DOUBLE: 1, VARCHAR: 2, VAR_STRING: 2, BIT: 2, NEWDECIMAL: 2, BLOB: 1, GEOMETRY: 1, JSON: 1,
    STRING: 2, ENUM: 2, SET: 2, TIMESTAMP2: 1, DATETIME2: 1, TIME2: 1, BLOB_COMPRESSED: 1, VARCHAR_COMPRESSED: 2,
}  # fmt: skip
_NUMERIC = (TINY, SHORT, INT24, LONG, LONGLONG, FLOAT, DOUBLE, NEWDECIMAL, YEAR)
_CHARACTER = (STRING, VAR_STRING, VARCHAR, BLOB, BLOB_COMPRESSED, VARCHAR_COMPRESSED)
_BINARY_COLLATION = 63
_HASH = re.compile(r"DB_ROW_HASH_\d+")
_INTEGER_KINDS = {TINY: "tinyint", SHORT: "smallint", INT24: "mediumint", LONG: "int", LONGLONG: "bigint"}
_FRACTIONAL_KINDS = {TIMESTAMP2: "timestamp", DATETIME2: "datetime", TIME2: "time"}
_PLAIN_KINDS = {YEAR: "year", DATE: "date", JSON: "json", OLD_TIMESTAMP: "timestamp of an old format",
                OLD_TIME: "time of an old format", OLD_DATETIME: "datetime of an old format"}  # fmt: skip
_SIZE_WORDS = ("", "tiny", "", "medium", "long")


@dataclass(frozen=True)
class LogColumn:
    """A column as the binary log has it: `code` its type, `meta` what that type needs (a length, a precision)."""

    name: str
    code: int
    meta: int
    nullable: bool
    unsigned: bool = False
    collation: int = _BINARY_COLLATION
    members: tuple[bytes, ...] = ()
    geometry: int = 0


@dataclass(frozen=True)
class TableMap:
    """`key`: the places of the primary key's columns in key order; None when the event says nothing about names."""

    schema: str
    table: str
    columns: tuple[LogColumn, ...]
    key: tuple[int, ...]
    named: bool

    @property
    def hashes(self) -> tuple[str, ...]:
        """The last columns, from behind, if they look like those in which MariaDB hashes what is too long for a key."""
        found = takewhile(lambda column: column.code == LONGLONG and _HASH.fullmatch(column.name), self.columns[::-1])
        return tuple(column.name for column in found)

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True)
class Charset:
    """A collation's character set and the bytes that a character of it may take."""

    name: str
    max_bytes: int


def parse_names(body: bytes) -> tuple[str, str, int]:
    """The schema, the table, and where the columns begin. `body` is what follows the table's id in the event."""
    end = 3 + body[2]
    schema, start = body[3:end].decode(), end + 2
    end = start + body[start - 1]
    return schema, body[start:end].decode(), end + 1


def parse_table_map(body: bytes, *, mariadb: bool = True) -> TableMap:
    """`body` is what follows the table's id in the event: flags, names, types, and metadata if there is any."""
    schema, table, at = parse_names(body)
    count, at = lenenc(body, at)
    codes = body[at : at + count]
    meta, at = lenenc_bytes(body, at + count)
    nulls, at = body[at : at + (count + 7) // 8], at + (count + 7) // 8
    columns = _columns(codes, meta, nulls)
    facts: dict[int, bytes] = {}
    while at < len(body):
        kind = body[at]
        facts[kind], at = lenenc_bytes(body, at + 1)
    return _described(schema, table, columns, facts, mariadb)


def _columns(codes: bytes, meta: bytes, nulls: bytes) -> list[LogColumn]:
    columns, at = [], 0
    for place, code in enumerate(codes):
        size = _META_BYTES.get(code, 0)
        value = meta[at : at + size]
        at += size
        nullable = bool(nulls[place >> 3] >> (place & 7) & 1)
        columns.append(_column(code, value, nullable))
    return columns


def _column(code: int, meta: bytes, nullable: bool) -> LogColumn:
    if code == STRING and meta[0] in (ENUM, SET):
        return LogColumn("", meta[0], meta[1], nullable)
    if code == STRING:  # bits 8 and 9 of the length are in the type's place, turned over
        return LogColumn("", code, meta[1] | (~meta[0] & 0x30) << 4, nullable)
    if code == NEWDECIMAL:
        return LogColumn("", code, meta[0] << 8 | meta[1], nullable)
    if code == BIT:
        return LogColumn("", code, meta[1] * 8 + meta[0], nullable)
    return LogColumn("", code, int.from_bytes(meta, "little"), nullable)


def _described(schema: str, table: str, columns: list[LogColumn], facts: dict[int, bytes], mariadb: bool) -> TableMap:
    """The columns with what the optional metadata (by its number) says about them."""
    character = (*_CHARACTER, GEOMETRY) if mariadb else _CHARACTER
    _add_signs(columns, facts.get(1, b""))
    _add_collations(columns, facts, (2, 3), character)
    _add_collations(columns, facts, (10, 11), (ENUM, SET))
    for code, number in ((SET, 5), (ENUM, 6)):
        _add_members(columns, facts.get(number, b""), code)
    places = [place for place, column in enumerate(columns) if column.code == GEOMETRY]
    for place, geometry in zip(places, lenenc_list(facts.get(7, b"")), strict=False):
        columns[place] = replace(columns[place], geometry=geometry)
    names, at = facts.get(4, b""), 0
    for place in range(len(columns) if names else 0):
        name, at = lenenc_bytes(names, at)
        columns[place] = replace(columns[place], name=name.decode())
    key = lenenc_list(facts.get(8, b"")) or lenenc_list(facts.get(9, b""))[::2]
    return TableMap(schema, table, tuple(columns), tuple(key), bool(names))


def _add_signs(columns: list[LogColumn], bits: bytes) -> None:
    numeric = [place for place, column in enumerate(columns) if column.code in _NUMERIC]
    for number, place in enumerate(numeric if bits else ()):
        columns[place] = replace(columns[place], unsigned=bool(bits[number >> 3] & 0x80 >> (number & 7)))


def _add_collations(
    columns: list[LogColumn], facts: dict[int, bytes], numbers: tuple[int, int], codes: tuple[int, ...]
) -> None:
    """Either one collation for most and pairs for the others (the first number), or one for each."""
    places = [place for place, column in enumerate(columns) if column.code in codes]
    most, *pairs = lenenc_list(facts.get(numbers[0], b"")) or [_BINARY_COLLATION]
    others = dict(zip(pairs[::2], pairs[1::2], strict=True))
    each = lenenc_list(facts.get(numbers[1], b"")) or [others.get(number, most) for number in range(len(places))]
    for place, collation in zip(places, each, strict=True):
        columns[place] = replace(columns[place], collation=collation)


def _add_members(columns: list[LogColumn], found: bytes, code: int) -> None:
    at = 0
    for place, column in enumerate(columns):
        if column.code == code and at < len(found):
            count, at = lenenc(found, at)
            members = []
            for _ in range(count):
                member, at = lenenc_bytes(found, at)
                members.append(member)
            columns[place] = replace(column, members=tuple(members))


def column_type(
    column: LogColumn,
    charset: Callable[[int], Charset],
    decoder: Callable[[str], Decode],
    hints: Mapping[str, ColumnType],
) -> ColumnType:
    """The type in the server's words. `hints`: what the dictionary says of columns that look like binary(n) here."""
    code, meta = column.code, column.meta
    if code in _INTEGER_KINDS:
        return ColumnType(_INTEGER_KINDS[code], unsigned=column.unsigned)
    if code in (FLOAT, DOUBLE):
        return ColumnType("float" if code == FLOAT else "double", unsigned=column.unsigned)
    if code == NEWDECIMAL:
        return ColumnType("decimal", meta >> 8, meta & 0xFF, column.unsigned)
    if code in _FRACTIONAL_KINDS:
        return ColumnType(_FRACTIONAL_KINDS[code], scale=meta)
    if code == BIT:
        return ColumnType("bit", meta)
    if code == GEOMETRY:
        return ColumnType(GEOMETRIES[column.geometry] if column.geometry < len(GEOMETRIES) else "geometry")
    if code in (ENUM, SET):
        name = charset(column.collation).name
        members = tuple(decoder(name)(member) for member in column.members)
        return ColumnType("enum" if code == ENUM else "set", members=members, charset=name)
    if code in _CHARACTER:
        return _character_type(column, charset(column.collation), hints.get(column.name))
    return ColumnType(_PLAIN_KINDS.get(code, f"type {code}"))


def _character_type(column: LogColumn, charset: Charset, hint: ColumnType | None) -> ColumnType:
    code, size = column.code, column.meta
    binary = column.collation == _BINARY_COLLATION
    if code in (BLOB, BLOB_COMPRESSED):
        return ColumnType(_SIZE_WORDS[size] + ("blob" if binary else "text"), charset="" if binary else charset.name)
    size -= code == VARCHAR_COMPRESSED  # a byte more, for how it is compressed
    varying = "" if code == STRING else "var"
    if not binary:
        return ColumnType(f"{varying}char", size // charset.max_bytes, charset=charset.name)
    if not varying and hint is not None and FIXED_BINARIES.get(hint.kind) == size:
        return hint
    return ColumnType(f"{varying}binary", size)
