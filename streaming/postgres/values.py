"""Values: PostgreSQL's text of a value in, JSON out, both as bytes. How a column's type chooses one is `types`' matter.

The text is that of the session settings in `connect` (ISO dates in UTC, ISO intervals, hexadecimal bytes). Whatever a
function cannot carry as its type (infinity, a year beyond what an integer of microseconds holds) becomes a JSON string
with PostgreSQL's own text: whoever expects the type sees that it is not, and nothing is changed silently.
"""

from __future__ import annotations

import re
from binascii import a2b_hex, b2a_base64
from collections.abc import Callable, Iterator

import orjson

__all__ = [
    "BAD",
    "DATES",
    "SECONDS",
    "array_of",
    "bits",
    "boolean",
    "clock_time",
    "escaped",
    "floating",
    "hexadecimal",
    "interval",
    "money",
    "plain",
    "text",
    "timestamp",
    "unchecked_text",
    "verbatim",
    "zoned_time",
    "zoned_timestamp",
]

Encoder = Callable[[bytes], bytes]

# Bytes that JSON wants escaped; the rest of UTF-8 goes as it is.
BAD = bytes(range(32)) + b'"\\'
_US_PER_DAY = 86_400_000_000
_INT64 = 1 << 63
# Distinct seconds or days kept as text; more are forgotten, all at once.
_REMEMBERED = 100_000

_DATE = re.compile(rb"(\d{4,7})-(\d\d)-(\d\d)( BC)?")
_TIMESTAMP = re.compile(rb"(\d{4,6}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d{1,6})?)( BC)?")
_TIME = re.compile(rb"(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?")
_ZONED = re.compile(rb"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d{1,6})?)\+00")
_ZONED_TIME = re.compile(rb"(\d\d:\d\d:\d\d(?:\.\d{1,6})?)([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?")
_INTERVAL = re.compile(
    rb"P(?:(-?\d+)Y)?(?:(-?\d+)M)?(?:(-?\d+)D)?(?:T(?:(-?\d+)H)?(?:(-?\d+)M)?(?:(-?\d+(?:\.\d+)?)S)?)?"
)
_MONEY = re.compile(rb"(-?)\$([\d,]+\.\d\d)")


def verbatim(v: bytes) -> bytes:
    """Integers: their digits."""
    return v


def plain(v: bytes) -> bytes:
    """Text that never needs an escape: digits of a numeric, uuid, addresses."""
    return b'"%b"' % v


def escaped(v: bytes) -> bytes:
    """The inside of a JSON string."""
    return orjson.dumps(v.decode())[1:-1]


def text(v: bytes) -> bytes:
    """UTF-8 text."""
    return b'"%b"' % v if v.isalnum() or v.translate(None, BAD) == v else orjson.dumps(v.decode())


def unchecked_text(v: bytes) -> bytes:
    """Text of a database that does not check its encoding (SQL_ASCII): what is not UTF-8 is given as its bytes."""
    try:
        return orjson.dumps(v.decode())
    except UnicodeDecodeError:
        return b'{"bytes":"%b"}' % b2a_base64(v, newline=False)


def floating(v: bytes) -> bytes:
    """A floating-point number; NaN and the infinities as strings.

    JSON readers take -0 for an integer, which has no sign then.
    """
    return b'"%b"' % v if v[-1] > 57 else b"-0.0" if v == b"-0" else v


def boolean(v: bytes) -> bytes:
    """t, f, or a bit."""
    return b"true" if v in (b"t", b"1") else b"false"


def hexadecimal(v: bytes) -> bytes:
    """bytea, as base64."""
    return b'"%b"' % b2a_base64(a2b_hex(v[2:]), newline=False)


def bits(v: bytes) -> bytes:
    """bit(n), as Debezium's Bits: base64 of the bits as a little-endian number."""
    return b'"%b"' % b2a_base64(int(v, 2).to_bytes((len(v) + 7) // 8, "little"), newline=False)


def money(v: bytes) -> bytes:
    """An amount without its sign and separators, as a string of digits."""
    found = _MONEY.fullmatch(v)
    return b'"%b%b"' % (found[1], found[2].replace(b",", b"")) if found else text(v)


def date(v: bytes) -> bytes:
    """Days since 1970."""
    found = _DATE.fullmatch(v)
    return b"%d" % _days(found) if found else text(v)


def clock_time(v: bytes) -> bytes:
    """Microseconds since midnight; 24:00 is a day."""
    found = _TIME.fullmatch(v)
    return b"%d" % _micros(found) if found else text(v)


def timestamp(v: bytes) -> bytes:
    """Microseconds since 1970."""
    if len(v) == 19:
        return SECONDS[v]
    if len(v) == 26 and v[20:].isdigit():
        second = SECONDS[v[:19]]
        # Positive and more than nothing: its last six digits are the microseconds.
        if second.isdigit() and len(second) > 6:
            return second[:-6] + v[20:]
    return _timestamp(v)


def zoned_timestamp(v: bytes) -> bytes:
    """An instant as ISO 8601 in UTC."""
    found = _ZONED.fullmatch(v)
    return b'"%bT%bZ"' % found.groups() if found else text(v)


def zoned_time(v: bytes) -> bytes:
    """A time of day with its offset, as ISO 8601 in UTC."""
    found = _ZONED_TIME.fullmatch(v)
    at = _TIME.fullmatch(found[1]) if found else None
    if found is None or at is None or _micros(at) >= _US_PER_DAY:
        return text(v)
    offset = int(found[3]) * 3600 + int(found[4] or 0) * 60 + int(found[5] or 0)
    us = (_micros(at) - (offset if found[2] == b"+" else -offset) * 1_000_000) % _US_PER_DAY
    seconds, us = divmod(us, 1_000_000)
    fraction = (b".%06d" % us).rstrip(b"0") if us else b""
    return b'"%02d:%02d:%02d%bZ"' % (seconds // 3600, seconds // 60 % 60, seconds % 60, fraction)


def interval(v: bytes) -> bytes:
    """ISO 8601 with every part, as Debezium's interval.handling.mode=string."""
    found = _INTERVAL.fullmatch(v)
    return b'"P%bY%bM%bDT%bH%bM%bS"' % tuple(p or b"0" for p in found.groups()) if found else text(v)


def array_of(element: Encoder, delimiter: bytes) -> Encoder:
    """Arrays, nested as deep as they are. JSON has no bounds: an array that does not begin at 1 stays text."""
    tokens = re.compile(rb'([{}])|"((?:[^"\\]|\\.)*)"|([^{}"%b]+)' % re.escape(delimiter), re.DOTALL)

    def encode(v: bytes) -> bytes:
        if v[:1] == b"[":
            return text(v)
        return b"".join(_separated(_array(tokens.finditer(v), element)))

    return encode


def _array(tokens: Iterator[re.Match[bytes]], element: Encoder) -> Iterator[bytes]:
    for token in tokens:
        brace, quoted, bare = token.groups()
        if brace is not None:
            yield b"[" if brace == b"{" else b"]"
        elif quoted is not None:
            yield element(re.sub(rb"\\(.)", rb"\1", quoted, flags=re.DOTALL))
        else:
            yield b"null" if bare == b"NULL" else element(bare)


def _separated(parts: Iterator[bytes]) -> Iterator[bytes]:
    """With a comma wherever a value or an array follows another."""
    last = b"["
    for part in parts:
        if last != b"[" and part != b"]":
            yield b","
        yield part
        last = part


def _timestamp(v: bytes) -> bytes:
    found = _TIMESTAMP.fullmatch(v)
    if found is None:
        return text(v)
    day, at = _DATE.fullmatch(found[1] + (found[3] or b"")), _TIME.fullmatch(found[2])
    if day is None or at is None:
        return text(v)
    us = _days(day) * _US_PER_DAY + _micros(at)
    return b"%d" % us if -_INT64 <= us < _INT64 else text(v)


def _days(found: re.Match[bytes]) -> int:
    """Days since 1970 in the proleptic Gregorian calendar, which knows no year 0: before 1 AD comes 1 BC.

    Years begin in March here, so that a leap day is a year's last: 365 days each, one more every 4th, but for every
    100th that is no 400th.
    """
    year, month, day = (int(part) for part in found.groups()[:3])
    year = 1 - year if found[4] else year
    year, month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    return year * 365 + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 1 - 719_468


def _micros(found: re.Match[bytes]) -> int:
    hours, minutes, seconds, fraction = found.groups()
    return (int(hours) * 3600 + int(minutes) * 60 + int(seconds)) * 1_000_000 + int((fraction or b"").ljust(6, b"0"))


class _Remembered(dict[bytes, bytes]):
    """What an encoder made of texts that come again and again."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._encoder = encoder

    def __missing__(self, v: bytes) -> bytes:
        if len(self) >= _REMEMBERED:
            self.clear()
        made = self[v] = self._encoder(v)
        return made


SECONDS = _Remembered(_timestamp)
DATES = _Remembered(date)
