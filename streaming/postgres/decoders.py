"""A reader of rows for each table: Python source written from its columns, and compiled.

A value arrives as its kind (t text, n null, u unchanged and not sent), its length in four bytes and its text, so a loop
over columns costs more than all it calls. Compiled for the table it is straight-line code: integers go into the JSON as
they are, text is escaped only where it must be, names are part of a constant. Most rows need not even be walked: a
PostgreSQL text has no zero byte, so the four bytes that begin every value shorter than 256 (t, 0, 0, 0) occur nowhere
else in a tuple, and one `split` parts it. Rows with nulls, long or unchanged values are walked value by value.

The same code makes rows of a snapshot (COPY's text), so both give the same bytes for the same row.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from streaming.capture.sink import UNAVAILABLE
from streaming.postgres import values
from streaming.postgres.types import ColumnType
from streaming.postgres.values import Encoder

__all__ = ["Decoder", "Image", "Streamed", "compile_decoder", "unescaped"]

Image = tuple[bytes | None, bytes]
"""A row's key (None: its table has none) and the row, both JSON objects."""
Streamed = tuple[bytes | None, bytes, bytes]
"""An image, and the names of the columns that have the placeholder: JSON strings with commas between them."""

NULL = b"null"
_PLAIN_START = b"t\0\0\0"
_VALUE_START = struct.Struct(">BI").unpack_from
_PADDING = bytes(4)  # so that the start of a value can be unpacked where a null is the last one
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPES = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
# Encoders whose result is always a JSON string around text that the row's template can quote.
_QUOTED = (values.text, values.plain)


@dataclass(frozen=True)
class Decoder:
    """`image(message, start)`: the row whose tuple begins at `start` and ends with the message.

    `images`: the old and the new row, both whole. `walk(message, start, old)`: any tuple, also one with nulls for what
    was not sent; returns the row, where it ends, and its values as JSON; `old` (such values) stands in for what is
    unchanged, except for NULL itself. `copied(line)`: the row of a line of COPY's text, without its line feed;
    `encoded(line)`: its values as JSON.
    """

    image: Callable[[bytes, int], Streamed]
    images: Callable[[bytes, int], tuple[Streamed, Streamed]]
    walk: Callable[[bytes, int, Sequence[bytes] | None], tuple[Streamed, int, tuple[bytes, ...]]]
    copied: Callable[[bytes], Image]
    encoded: Callable[[bytes], tuple[bytes, ...]]


def compile_decoder(columns: Sequence[tuple[str, ColumnType]], key: Sequence[str]) -> Decoder:
    """A decoder of tuples of these columns, in this order; `key`: the key's columns, in key order."""
    names = [name for name, _ in columns]
    table = _Table(names, [kind.encode for _, kind in columns], [names.index(name) for name in key])
    source = "\n".join([*table.image(), *table.images(), *table.walk(), *table.encoded(), *table.copied()])
    made: dict[str, Any] = dict(table.constants)
    exec(compile(source, "<decoder>", "exec"), made)
    return Decoder(*(made[field.name] for field in fields(Decoder)))


def unescaped(field: bytes) -> bytes | None:
    """A field of COPY's text format; None for a null."""
    if field == rb"\N":
        return None
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), field) if b"\\" in field else field


class _Table:
    """Lines of source for one table. Column i's value is the variable `c<i>`, its encoder `e<i>`."""

    def __init__(self, names: Sequence[str], encoders: Sequence[Encoder], key: Sequence[int]) -> None:
        self._encoders, self._key, self._all = encoders, key, range(len(names))
        # json.dumps leaves ASCII; a % must not be taken for a place to fill.
        self._names = [json.dumps(name).replace("%", "%%").encode() for name in names]
        self.constants: Mapping[str, Any] = {
            "START": _PLAIN_START,
            "UNPACK": _VALUE_START,
            "PADDING": _PADDING,
            "BAD": values.BAD,
            "NULL": NULL,
            "UNAVAILABLE": UNAVAILABLE,
            "DATES": values.DATES,
            "escaped": values.escaped,
            "unescaped": unescaped,
            "BOOLEANS": {b"t": b"true", b"f": b"false", b"1": b"true", b"0": b"false"},
            **{f"e{i}": encoder for i, encoder in enumerate(encoders)},
        }

    def image(self) -> list[str]:
        count = len(self._all)
        return [
            "def image(d, p):",
            "    parts = d[p:].split(START)",
            f"    if len(parts) != {count + 1} or parts[0]:",
            "        return walk(d, p, None)[0]",
            f"    {self._unpacked('_', '')} = parts",
            *(f"    c{i} = c{i}[1:]" for i in self._all),
            *self._body(""),
            f"    return {self._made('')}, b''",
        ]

    def images(self) -> list[str]:
        """The second tuple is announced by N and the number of columns, behind the first one's last value."""
        count = len(self._all)
        return [
            "def images(d, p):",
            "    parts = d[p:].split(START)",
            f"    if len(parts) != {2 * count + 1} or parts[0]:",
            "        before, p, old = walk(d, p, None)",
            "        return before, walk(d, p + 3, old)[0]",
            f"    {self._unpacked('_', 'b')}, {self._unpacked('', '')} = parts",
            *(f"    b{i} = b{i}[1:{-3 if i == count - 1 else ''}]" for i in self._all),
            *(f"    c{i} = c{i}[1:]" for i in self._all),
            *self._body("b"),
            *self._body(""),
            f"    return ({self._made('b')}, b''), ({self._made('')}, b'')",
        ]

    def walk(self) -> list[str]:
        lines = ["def walk(d, p, old):", "    d += PADDING", "    unsent = b''"]
        for i in self._all:
            lines += [
                "    k, n = UNPACK(d, p)",
                "    if k == 116:",
                "        q = p + 5",
                "        p = q + n",
                f"        c{i} = e{i}(d[q:p])",
                "    else:",
                "        p += 1",
                "        if k == 110:",
                f"            c{i} = NULL",
                f"        elif old is None or old[{i}] is NULL:",
                f"            c{i} = UNAVAILABLE",
                f"            unsent += {b',' + self._names[i].replace(b'%%', b'%')!r}",
                "        else:",
                f"            c{i} = old[{i}]",
            ]
        return [*lines, f"    return ({self._json(quoted=False)}, unsent[1:]), p, ({self._unpacked('', '')},)"]

    def encoded(self) -> list[str]:
        return [
            "def encoded(line):",
            f"    {self._unpacked('', '')}, = line.split(b'\\t')",
            *(f"    c{i} = unescaped(c{i})" for i in self._all),
            *(f"    c{i} = NULL if c{i} is None else e{i}(c{i})" for i in self._all),
            f"    return ({self._unpacked('', '')},)",
        ]

    def copied(self) -> list[str]:
        return [
            "def copied(line):",
            "    if b'\\\\' not in line:",
            f"        {self._unpacked('', '')}, = line.split(b'\\t')",
            *(f"    {line}" for line in self._body("")),
            f"        return {self._made('')}",
            f"    {self._unpacked('', '')}, = encoded(line)",
            f"    return {self._json(quoted=False)}",
        ]

    @staticmethod
    def _name(prefix: str, i: int) -> str:
        return f"{prefix or 'c'}{i}"

    def _unpacked(self, first: str, prefix: str) -> str:
        return ", ".join([*([first] if first else []), *(self._name(prefix, i) for i in self._all)])

    def _body(self, prefix: str) -> list[str]:
        return [f"    {line}" for i in self._all if (line := self._encoded(i, self._name(prefix, i)))]

    def _encoded(self, i: int, name: str) -> str:
        """The statement that makes of a value's text what goes into the template."""
        encoder = self._encoders[i]
        if encoder in (values.verbatim, values.plain):
            return ""
        if encoder is values.text:
            return f"if not {name}.isalnum() and {name}.translate(None, BAD) != {name}: {name} = escaped({name})"
        if encoder is values.boolean:
            return f"{name} = BOOLEANS[{name}]"
        if encoder is values.floating:
            return f"if {name}[-1] > 57 or {name} == b'-0': {name} = e{i}({name})"
        return f"{name} = e{i}({name})"

    def _made(self, prefix: str) -> str:
        return self._json(quoted=True, prefix=prefix)

    def _json(self, *, quoted: bool, prefix: str = "") -> str:
        """An expression: key and row. `quoted`: the template has the quotes, else the values have."""
        key = self._object(self._key, quoted, prefix) if self._key else "None"
        return f"{key}, {self._object(self._all, quoted, prefix)}"

    def _object(self, columns: Sequence[int], quoted: bool, prefix: str) -> str:
        places = {i: b'"%b"' if quoted and self._encoders[i] in _QUOTED else b"%b" for i in columns}
        template = b"{" + b",".join(self._names[i] + b":" + places[i] for i in columns) + b"}"
        return f"{template!r} % ({', '.join(self._name(prefix, i) for i in columns)},)"
