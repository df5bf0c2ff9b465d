"""One value as JSON, by column type: from the bytes of a binary log row, and from the text of a query's result.

Both ways give the same bytes, so that a row is the same whether it was read by a snapshot or streamed. What its type
cannot carry in the lake (a zero date, text that is not valid in its character set) becomes a JSON value of another
type, which landing recognises and quarantines: nothing is changed silently.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from ipaddress import IPv4Address

import orjson

from streaming.mysql.types import BINARIES, FIXED_BINARIES, GEOMETRIES, INTEGERS, TEXTS, ColumnType

__all__ = ["Convert", "Memo", "from_log", "from_text", "inflated"]

Convert = Callable[[bytes], bytes]

_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_SECOND_US = 1_000_000
_DAY_US = 86_400 * _SECOND_US
# Bytes that hold the digits of a second, by how many there are; and what one unit of them is in microseconds.
FRACTION_BYTES = (0, 1, 1, 2, 2, 3, 3)
_FRACTION_US = (0, 10_000, 10_000, 100, 100, 1, 1)
# Bytes that hold 0 to 9 decimal digits.
_DIGIT_BYTES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)


class Memo(dict[bytes, bytes]):
    """Remembers what values became: the same prices, dates and codes come again and again. Emptied when full."""

    __slots__ = ("_limit", "convert")

    def __init__(self, convert: Convert, limit: int = 16_384) -> None:
        self.convert, self._limit = convert, limit

    def __missing__(self, raw: bytes) -> bytes:
        if len(self) >= self._limit:
            self.clear()
        # What orjson gives keeps the kilobytes of its buffer for as long as it lives: a copy takes what it is long.
        made = self[raw] = b"%b" % self.convert(raw)
        return made


def decimal_bytes(precision: int, scale: int) -> int:
    """How many bytes a decimal takes in the binary log."""
    return sum(4 * (digits // 9) + _DIGIT_BYTES[digits % 9] for digits in (precision - scale, scale))


def inflated(raw: bytes) -> bytes:
    """The value of a column that is declared COMPRESSED, as the storage engine and the binary log keep it."""
    if not raw or raw[0] == 0:
        return raw[1:]
    size = raw[0] & 7
    return zlib.decompress(raw[1 + size :], -15 if raw[0] & 8 else 15, int.from_bytes(raw[1 : 1 + size], "big"))


def _text(decode: Callable[[bytes], str]) -> Convert:
    def convert(raw: bytes) -> bytes:
        try:
            return orjson.dumps(decode(raw))
        except UnicodeDecodeError:
            return b'{"invalid":%b}' % _base64(raw)

    return convert


def _base64(raw: bytes) -> bytes:
    return b'"%b"' % base64.b64encode(raw)


_quoted: Callable[[str], bytes] = orjson.dumps


# From the binary log


def from_log(kind: ColumnType, decode: Callable[[bytes], str]) -> Convert:
    """From a row image's bytes of one value, without the length before them. `decode` by the column's charset."""
    name = kind.kind
    if name in INTEGERS:
        return lambda raw: b"%d" % int.from_bytes(raw, "little", signed=not kind.unsigned)
    if name in TEXTS:
        return _text(decode)
    if name in FIXED_BINARIES or name in BINARIES:
        return _binary_from_log(kind)
    if name in GEOMETRIES:
        return _point if name == "point" else _geometry
    if name in ("enum", "set"):
        return _enum_from_log(kind) if name == "enum" else _set_from_log(kind)
    return _FROM_LOG[name](kind)


def _decimal_from_log(kind: ColumnType) -> Convert:
    """Groups of nine digits in four bytes, the highest bit turned over; a negative number has all bits turned over."""
    whole, scale = kind.size - kind.scale, kind.scale
    sizes = [_DIGIT_BYTES[whole % 9], *[4] * (whole // 9), *[4] * (scale // 9), _DIGIT_BYTES[scale % 9]]
    digits = [whole % 9, *[9] * (whole // 9), *[9] * (scale // 9), scale % 9]
    total = sum(sizes)
    high, ones = 1 << (8 * total - 1), (1 << (8 * total)) - 1

    def convert(raw: bytes) -> bytes:
        bits = int.from_bytes(raw, "big")
        sign = "" if bits & high else "-"
        raw = (bits ^ high ^ (ones if sign else 0)).to_bytes(total, "big")
        at, text = 0, ""
        for size, width in zip(sizes, digits, strict=True):
            if width:
                text += f"{int.from_bytes(raw[at : at + size], 'big'):0{width}d}"
            at += size
        left = text[:whole].lstrip("0") or "0"
        return f'"{sign}{left}.{text[whole:]}"'.encode() if scale else f'"{sign}{left}"'.encode()

    return convert


def _float_from_log(_: ColumnType) -> Convert:
    return lambda raw: _shortest_float(struct.unpack("<f", raw)[0])


def _shortest_float(value: float) -> bytes:
    """The number with the fewest digits that is this single-precision float."""
    bits = struct.pack("<f", value)
    for digits in range(1, 9):
        short = float(f"{value:.{digits}g}")
        with suppress(OverflowError):  # rounded up, it may lie beyond the largest float
            if struct.pack("<f", short) == bits:
                return orjson.dumps(short)
    return orjson.dumps(float(f"{value:.9g}"))


def _bit_from_log(kind: ColumnType) -> Convert:
    if kind.size == 1:
        return lambda raw: b"true" if raw[-1] else b"false"
    return lambda raw: _base64(raw[::-1])


def _year_from_log(_: ColumnType) -> Convert:
    return lambda raw: b"%d" % (raw[0] and raw[0] + 1900)


def _date_from_log(_: ColumnType) -> Convert:
    def convert(raw: bytes) -> bytes:
        bits = int.from_bytes(raw, "little")
        return _date(bits >> 9, (bits >> 5) & 15, bits & 31)

    return convert


def _datetime_from_log(kind: ColumnType) -> Convert:
    """40 bits: one of sign, 17 of months, 5 each of day and hour, 6 each of minute and second; then the fraction."""
    unit = _FRACTION_US[kind.scale]

    def convert(raw: bytes) -> bytes:
        bits = int.from_bytes(raw[:5], "big")
        year, month = divmod((bits >> 22) & 0x1FFFF, 13)
        clock = ((bits >> 12) & 31, (bits >> 6) & 63, bits & 63)
        return _datetime(year, month, (bits >> 17) & 31, clock, int.from_bytes(raw[5:], "big") * unit, kind.scale)

    return convert


def _timestamp_from_log(kind: ColumnType) -> Convert:
    unit = _FRACTION_US[kind.scale]

    def convert(raw: bytes) -> bytes:
        seconds, fraction = int.from_bytes(raw[:4], "big"), int.from_bytes(raw[4:], "big") * unit
        if not seconds and not fraction:
            return _quoted("0000-00-00 00:00:00" + _fraction(0, kind.scale))
        days, rest = divmod(seconds, 86_400)
        day = date.fromordinal(_EPOCH_ORDINAL + days)
        clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
        return f'"{day.isoformat()}T{clock}{_fraction(fraction, kind.scale)}Z"'.encode()

    return convert


def _time_from_log(kind: ColumnType) -> Convert:
    """24 bits, of which one of sign, 10 of hours, 6 each of minute and second; then the fraction; offset by half."""
    size, unit = FRACTION_BYTES[kind.scale], _FRACTION_US[kind.scale]

    def convert(raw: bytes) -> bytes:
        bits = int.from_bytes(raw, "big") - (0x800000 << 8 * size)
        clock, fraction = divmod(abs(bits), 1 << 8 * size)
        seconds = (clock >> 12 & 1023) * 3600 + (clock >> 6 & 63) * 60 + (clock & 63)
        micros = seconds * _SECOND_US + fraction * unit
        return b"%d" % (-micros if bits < 0 else micros)

    return convert


def _binary_from_log(kind: ColumnType) -> Convert:
    """The binary log leaves out trailing zeros of a fixed length."""
    if kind.kind in FIXED_BINARIES:
        size, show = FIXED_BINARIES[kind.kind], _SHOWN[kind.kind]
        return lambda raw: b'"%b"' % show(raw.ljust(size, b"\0")).encode()
    if kind.kind == "binary":
        return lambda raw: _base64(raw.ljust(kind.size, b"\0"))
    return _base64


def _uuid(raw: bytes) -> str:
    digits = raw.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _inet6(raw: bytes) -> str:
    """The longest run of zero groups as ::, and an IPv4 address inside in its own notation, as the server does."""
    groups = [int.from_bytes(raw[at : at + 2], "big") for at in range(0, 16, 2)]
    start, length = _longest_zeros(groups)
    if start == 0 and (length == 6 or (length == 5 and groups[5] == 0xFFFF)):
        prefix = "::" if length == 6 else "::ffff:"
        return prefix + str(IPv4Address(raw[12:]))
    if length < 2:
        return ":".join(f"{group:x}" for group in groups)
    left, right = groups[:start], groups[start + length :]
    return ":".join(f"{group:x}" for group in left) + "::" + ":".join(f"{group:x}" for group in right)


def _longest_zeros(groups: list[int]) -> tuple[int, int]:
    best = (-1, 0)
    for start in range(len(groups)):
        end = start
        while end < len(groups) and groups[end] == 0:
            end += 1
        if end - start > best[1]:
            best = (start, end - start)
    return best


_SHOWN: dict[str, Callable[[bytes], str]] = {
    "uuid": _uuid,
    "inet6": _inet6,
    "inet4": lambda raw: str(IPv4Address(raw)),
}


def _enum_from_log(kind: ColumnType) -> Convert:
    """A number counted from 1; 0 is what a value that was refused became."""
    names = [b'""', *(_quoted(member) for member in kind.members)]

    def convert(raw: bytes) -> bytes:
        number = int.from_bytes(raw, "little")
        return names[number] if number < len(names) else b'{"invalid":%d}' % number

    return convert


def _set_from_log(kind: ColumnType) -> Convert:
    def convert(raw: bytes) -> bytes:
        bits = int.from_bytes(raw, "little")
        if bits >> len(kind.members):
            return b'{"invalid":%d}' % bits
        return _quoted(",".join(member for place, member in enumerate(kind.members) if bits >> place & 1))

    return convert


def _geometry(raw: bytes) -> bytes:
    srid = int.from_bytes(raw[:4], "little")
    return b'{"wkb":%b,"srid":%b}' % (_base64(raw[4:]), b"%d" % srid if srid else b"null")


def _point(raw: bytes) -> bytes:
    if len(raw) != 25:  # not of two dimensions
        return _geometry(raw)
    x, y = struct.unpack("<dd" if raw[4] else ">dd", raw[9:])
    return b'{"x":%b,"y":%b,%b' % (orjson.dumps(x), orjson.dumps(y), _geometry(raw)[1:])


_FROM_LOG: dict[str, Callable[[ColumnType], Convert]] = {
    "decimal": _decimal_from_log,
    "float": _float_from_log,
    "double": lambda _: lambda raw: orjson.dumps(struct.unpack("<d", raw)[0]),
    "bit": _bit_from_log,
    "year": _year_from_log,
    "date": _date_from_log,
    "datetime": _datetime_from_log,
    "timestamp": _timestamp_from_log,
    "time": _time_from_log,
}


# Dates and times


def _fraction(micros: int, digits: int) -> str:
    return f".{micros:06d}"[: digits + 1] if digits else ""


def _days(year: int, month: int, day: int) -> int | None:
    """Days since 1970-01-01; None for what no calendar has: zero dates, 31 February, the year 0."""
    try:
        return date(year, month, day).toordinal() - _EPOCH_ORDINAL
    except ValueError:
        return None


def _date(year: int, month: int, day: int) -> bytes:
    days = _days(year, month, day)
    return b"%d" % days if days is not None else f'"{year:04d}-{month:02d}-{day:02d}"'.encode()


def _datetime(year: int, month: int, day: int, clock: tuple[int, int, int], micros: int, digits: int) -> bytes:
    days, (hour, minute, second) = _days(year, month, day), clock
    if days is not None:
        return b"%d" % (days * _DAY_US + (hour * 3600 + minute * 60 + second) * _SECOND_US + micros)
    text = f"{year:04d}-{month:02d}-{day:02d} {hour:02d}:{minute:02d}:{second:02d}"
    return f'"{text}{_fraction(micros, digits)}"'.encode()


# From a query's text


def from_text(kind: ColumnType, decode: Callable[[bytes], str]) -> Convert:
    """From the text of a query's result, in the column's own character set (character_set_results is NULL).

    FLOAT has to be asked for as DOUBLE: the server rounds its text to six digits.
    """
    name = kind.kind
    if name in INTEGERS or name == "year":
        return lambda raw: b"%d" % int(raw)  # without the zeros of ZEROFILL
    if name in TEXTS or name in ("enum", "set", "json"):
        return _text(decode)
    if name in BINARIES:
        return _base64
    if name in FIXED_BINARIES:
        return lambda raw: b'"%b"' % raw
    if name in GEOMETRIES:
        return _point if name == "point" else _geometry
    return _FROM_TEXT[name](kind)


def _decimal_from_text(_: ColumnType) -> Convert:
    def convert(raw: bytes) -> bytes:
        if raw[:1] == b"0" and raw[1:2].isdigit():  # ZEROFILL
            raw = raw.lstrip(b"0")
            raw = raw if raw[:1].isdigit() else b"0" + raw
        return b'"%b"' % raw

    return convert


def _date_from_text(_: ColumnType) -> Convert:
    return lambda raw: _date(int(raw[:4]), int(raw[5:7]), int(raw[8:]))


def _micros(raw: bytes) -> int:
    """Of `.123` and of nothing."""
    return int(raw[1:].ljust(6, b"0")) if raw else 0


def _datetime_from_text(kind: ColumnType) -> Convert:
    def convert(raw: bytes) -> bytes:
        clock = (int(raw[11:13]), int(raw[14:16]), int(raw[17:19]))
        return _datetime(int(raw[:4]), int(raw[5:7]), int(raw[8:10]), clock, _micros(raw[19:]), kind.scale)

    return convert


def _timestamp_from_text(_: ColumnType) -> Convert:
    return lambda raw: b'"%b"' % raw if raw.startswith(b"0000") else b'"%bT%bZ"' % (raw[:10], raw[11:])


def _time_from_text(_: ColumnType) -> Convert:
    def convert(raw: bytes) -> bytes:
        hours, minutes, rest = raw.lstrip(b"-").split(b":")
        seconds = int(hours) * 3600 + int(minutes) * 60 + int(rest[:2])
        micros = seconds * _SECOND_US + _micros(rest[2:])
        return b"%d" % (-micros if raw.startswith(b"-") else micros)

    return convert


_FROM_TEXT: dict[str, Callable[[ColumnType], Convert]] = {
    "decimal": _decimal_from_text,
    "float": lambda _: lambda raw: _shortest_float(float(raw)),
    "double": lambda _: lambda raw: orjson.dumps(float(raw)),
    "bit": _bit_from_log,
    "date": _date_from_text,
    "datetime": _datetime_from_text,
    "timestamp": _timestamp_from_text,
    "time": _time_from_text,
}
