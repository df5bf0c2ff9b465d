"""Row decoders: Python source written for one table, compiled once, run for every row.

A general decoder asks for each value what its column is; that costs more than the value. Here the questions are asked
when the table is first seen: what is fixed in length is unpacked in one call with what stands beside it, a column that
is null in a row has no code at all (there is one decoder for each pattern of nulls that occurs), and the JSON around
the values is one format string. What comes again and again (prices, dates, codes) is looked up, not made anew.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from streaming.mysql import table_map as codes
from streaming.mysql.charsets import Decode
from streaming.mysql.table_map import LogColumn
from streaming.mysql.types import INTEGERS, TEXTS, ColumnType
from streaming.mysql.values import FRACTION_BYTES, Convert, Memo, decimal_bytes, from_log, from_text, inflated

__all__ = ["Column", "Image", "Images", "TextRows", "Unreadable"]

# A row image of the binary log: (bytes, where it begins) -> (where it ends, its key, the row).
Image = Callable[[bytes, int], tuple[int, bytes | None, bytes]]
# A row of a query's result: (bytes of the packet) -> (its key, the row, the raw values of the key).
TextRow = Callable[[bytes], tuple[bytes | None, bytes, tuple[bytes, ...]]]

# Decoders kept for one table: a wide table may have more patterns of nulls than are worth a compilation each.
_PATTERNS = 512
# Longer values seldom come again, and would make what is remembered large.
_REMEMBERED_BYTES = 64
_INTEGER_CODES = {"tinyint": "b", "smallint": "h", "int": "i", "bigint": "q"}


class Unreadable(ValueError):
    """The binary log has a column in a form that has no decoder."""


@dataclass(frozen=True)
class Column:
    """A column in the log's form and in the server's words."""

    log: LogColumn
    type: ColumnType
    decode: Decode


class Images:
    """The decoders of one table's row images, by their pattern of nulls."""

    def __init__(
        self, columns: Sequence[Column], key: Sequence[int], memos: dict[tuple[Any, ...], Memo], *, hidden: int = 0
    ) -> None:
        """`key`: the places of the key's columns in key order. `memos` are shared by all tables of a source.

        `hidden`: so many of the last columns are in no row. Raises Unreadable.
        """
        self._columns, self._key, self._memos, self._hidden = columns, key, memos, hidden
        self.null_bytes = (len(columns) + 7) // 8
        self.patterns: dict[bytes, Image] = {}
        self.pattern(bytes(self.null_bytes))

    def pattern(self, nulls: bytes) -> Image:
        """The decoder for images whose null bitmap is this; made when it is first asked for."""
        if len(self.patterns) >= _PATTERNS:
            self.patterns.clear()
        made = self.patterns[nulls] = _Writer(self._columns, self._key, self._memos).image(nulls, self._hidden)
        return made


class _Writer:
    """Writes the source of one decoder."""

    def __init__(self, columns: Sequence[Column], key: Sequence[int], memos: dict[tuple[Any, ...], Memo]) -> None:
        self._columns, self._key, self._memos = columns, key, memos
        self._names: dict[str, Any] = {}
        self._lines: list[str] = []
        # What is fixed in length and not unpacked yet: codes of struct, and the names of what they give.
        self._codes, self._targets = "", list[str]()

    def image(self, nulls: bytes, hidden: int) -> Image:
        null = [bool(nulls[place >> 3] >> (place & 7) & 1) for place in range(len(self._columns))]
        pending: list[str] = []
        for place, column in enumerate(self._columns):
            if not null[place]:
                self._value(place, column, pending)
        self._unpack()
        self._lines += pending
        shown = range(len(null) - hidden)
        key, row = (_object(self._columns, places, null) for places in (self._key, shown))
        self._lines.append(f"return p, {self._format(key, self._key, null)}, {self._format(row, shown, null)}")
        source = "def image(d, p):\n    " + "\n    ".join(self._lines)
        made: Image = _compiled(source, self._names, "image")
        return made

    def _format(self, template: bytes | None, places: Sequence[int], null: Sequence[bool]) -> str:
        values = [f"v{place}" for place in places if not null[place]]
        if template is None:
            return "None"
        return f"{template!r} % ({', '.join(values)},)" if values else repr(template % ())

    def _value(self, place: int, column: Column, pending: list[str]) -> None:
        """Code that leaves a value's JSON, or the number itself, in v<place>."""
        fixed = _fixed_bytes(column)
        if fixed is None:
            self._varying(place, column)
            return
        code = _number_code(column)
        if code:
            self._codes += code
            self._targets.append(f"v{place}")
            return
        self._codes += f"{fixed}s"
        self._targets.append(f"r{place}")
        pending.append(f"v{place} = {self._memo(column)}[r{place}]")

    def _varying(self, place: int, column: Column) -> None:
        size = _length_bytes(column.log)
        for code in {1: "B", 2: "H", 3: "HB", 4: "I"}[size]:
            self._codes += code
            self._targets.append(f"n{len(self._targets)}")
        count = self._targets[-1] if size != 3 else f"({self._targets[-2]} | {self._targets[-1]} << 16)"
        self._unpack()
        convert = self._name(f"c{place}", _from_log(column))
        memo = self._memo(column)
        self._lines += [
            f"q = p + {count}",
            f"v{place} = {memo}[d[p:q]] if q - p < {_REMEMBERED_BYTES} else {convert}(d[p:q])",
            "p = q",
        ]

    def _unpack(self) -> None:
        """One call for all that is fixed in length since the last value that is not."""
        if self._codes:
            layout = struct.Struct("<" + self._codes)
            name = self._name(f"s{len(self._names)}", layout.unpack_from)
            self._lines.append(f"{', '.join(self._targets)}, = {name}(d, p)")
            self._lines.append(f"p += {layout.size}")
            self._codes, self._targets = "", []

    def _memo(self, column: Column) -> str:
        """What values of this kind became; shared by all columns of the kind, in all tables."""
        return self._name(f"m{len(self._names)}", _memo(self._memos, ("log", column.log.code), column, _from_log))

    def _name(self, name: str, value: Any) -> str:
        self._names[name] = value
        return name


def _memo(
    memos: dict[tuple[Any, ...], Memo], form: tuple[Any, ...], column: Column, convert: Callable[[Column], Convert]
) -> Memo:
    kind = (*form, column.type if column.type.kind not in TEXTS else column.type.charset)
    if kind not in memos:
        memos[kind] = Memo(convert(column))
    return memos[kind]


def _object(columns: Sequence[Column], places: Sequence[int], null: Sequence[bool]) -> bytes | None:
    """A JSON object with a place for each value that is not null; None without columns."""
    if not places:
        return None
    parts = []
    for place in places:
        value = b"null" if null[place] else b"%d" if _number_code(columns[place]) else b"%b"
        parts.append(orjson.dumps(columns[place].log.name).replace(b"%", b"%%") + b":" + value)
    return b"{" + b",".join(parts) + b"}"


def _compiled(source: str, names: Mapping[str, Any], name: str) -> Any:
    """Our own source, in which nothing but numbers and escaped literals comes from outside."""
    namespace = dict(names)
    exec(compile(source, f"<decoder of {name}>", "exec"), namespace)
    return namespace[name]


def _number_code(column: Column) -> str | None:
    """How struct reads an integer that needs no conversion."""
    code = _INTEGER_CODES.get(column.type.kind)
    return code and (code.upper() if column.type.unsigned else code)


def _from_log(column: Column) -> Convert:
    convert = from_log(column.type, column.decode)
    if column.log.code in (codes.BLOB_COMPRESSED, codes.VARCHAR_COMPRESSED):
        return lambda raw: convert(inflated(raw))
    return convert


def _fixed_bytes(column: Column) -> int | None:
    """How many bytes a value takes; None when its length stands before it. Raises Unreadable."""
    code, meta = column.log.code, column.log.meta
    if code in _VARYING:
        return None
    if column.type.kind in INTEGERS:
        return INTEGERS[column.type.kind]
    if code == codes.NEWDECIMAL:
        return decimal_bytes(meta >> 8, meta & 0xFF)
    if code == codes.BIT:
        return (meta + 7) // 8
    if code in (codes.ENUM, codes.SET):
        return meta
    if code in _TEMPORAL_BYTES:
        return _TEMPORAL_BYTES[code] + FRACTION_BYTES[meta]
    if code in _PLAIN_BYTES:
        return _PLAIN_BYTES[code]
    raise Unreadable(f"column {column.log.name} has {column.type} in the binary log, which cannot be read")


_VARYING = (
    codes.VARCHAR,
    codes.VAR_STRING,
    codes.STRING,
    codes.BLOB,
    codes.GEOMETRY,
    codes.BLOB_COMPRESSED,
    codes.VARCHAR_COMPRESSED,
)
_TEMPORAL_BYTES = {codes.TIMESTAMP2: 4, codes.DATETIME2: 5, codes.TIME2: 3}
_PLAIN_BYTES = {codes.FLOAT: 4, codes.DOUBLE: 8, codes.YEAR: 1, codes.DATE: 3}


def _length_bytes(column: LogColumn) -> int:
    """In how many bytes the length of a value stands before it."""
    if column.code in (codes.VARCHAR, codes.VAR_STRING, codes.STRING, codes.VARCHAR_COMPRESSED):
        return 1 if column.meta < 256 else 2
    return column.meta


class TextRows:
    """The decoder of a query's rows, for a table's columns in their order and perhaps some more behind them."""

    def __init__(
        self, columns: Sequence[Column], key: Sequence[int], numbers: Sequence[int], memos: dict[tuple[Any, ...], Memo]
    ) -> None:
        """`key` as for Images; of the columns in the log's form only the names are looked at.

        `numbers`: places of the key's columns for which another column follows, which counts as its raw value.
        """
        names: dict[str, Any] = {"more": _lenenc}
        lines = ["p = 0"]
        for place, column in enumerate(columns):
            memo = names[f"m{place}"] = _memo(memos, ("text",), column, lambda c: from_text(c.type, c.decode))
            names[f"c{place}"] = memo.convert
            lines += _TEXT_VALUE.format(n=place, limit=_REMEMBERED_BYTES).splitlines()
        for place in numbers:
            lines += [f"r{place} = d[p + 1:p + 1 + d[p]]", "p += 1 + d[p]"]
        whole = _text_object(columns, range(len(columns)))
        raw = "".join(f"r{place}, " for place in key)
        lines.append(f"return {_text_object(columns, key) if key else None}, {whole}, ({raw})")
        self.read: TextRow = _compiled("def row(d):\n    " + "\n    ".join(lines), names, "row")


_TEXT_VALUE = """\
n = d[p]
p += 1
if n > 250:
    n, p = more(d, p, n)
q = p + n
if n < 0:
    v{n} = b"null"
    q = p
elif n < {limit}:
    r{n} = d[p:q]
    v{n} = m{n}[r{n}]
else:
    r{n} = d[p:q]
    v{n} = c{n}(r{n})
p = q"""


def _text_object(columns: Sequence[Column], places: Sequence[int]) -> str:
    names = [orjson.dumps(columns[place].log.name).replace(b"%", b"%%") + b":%b" for place in places]
    return f"{b'{' + b','.join(names) + b'}'!r} % ({', '.join(f'v{place}' for place in places)},)"


def _lenenc(data: bytes, at: int, first: int) -> tuple[int, int]:
    """The length that did not fit into its first byte, and where the value begins; -1 for null."""
    if first == 0xFB:
        return -1, at
    size = {0xFC: 2, 0xFD: 3, 0xFE: 8}[first]
    return int.from_bytes(data[at : at + size], "little"), at + size
