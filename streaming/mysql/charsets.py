"""Character sets: bytes of a column to text, exactly as the server would convert them, or not at all.

A set with one byte for each character is read from the server itself: what it maps a byte to is what its users see,
and Python's tables differ in a few places (`latin1` is Windows' cp1252 with five more characters). The others are
Python's; where those of the server differ (a handful of full-width signs in `big5`, `sjis`, `ujis`) is not known to
matter to anybody.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable

__all__ = ["Charsets", "Decode"]

Decode = Callable[[bytes], str]

_UNICODE = {
    "utf8mb4": "utf-8",
    "utf8mb3": "utf-8",
    "utf8": "utf-8",
    "ascii": "ascii",
    "ucs2": "utf-16-be",
    "utf16": "utf-16-be",
    "utf16le": "utf-16-le",
    "utf32": "utf-32-be",
}
_SEVERAL_BYTES = {
    "big5": "big5",
    "gb2312": "gb2312",
    "gbk": "gbk",
    "gb18030": "gb18030",
    "sjis": "shift_jis",
    "cp932": "cp932",
    "ujis": "euc_jp",
    "euckr": "cp949",
}
# How the server's eucjpms differs from Python's euc_jp: Microsoft's signs for the same places.
_MICROSOFT = str.maketrans("\u301c\u2016\u2212\xa2\xa3\xac", "\uff5e\u2225\uff0d\uffe0\uffe1\uffe2")
# What a table of characters has where a byte means nothing: decoding it is then refused.
_NOTHING = "\ufffe"


class Charsets:
    """Decoders by the server's name of the set. `ask`: the 256 characters of a one-byte set, None where unmapped."""

    def __init__(self, ask: Callable[[str], list[str | None]]) -> None:
        self._ask = ask
        self._known: dict[str, Decode] = {}

    def decoder(self, name: str) -> Decode:
        """A function from bytes to text that raises UnicodeDecodeError (a ValueError) on what means nothing."""
        if name not in self._known:
            self._known[name] = self._make(name)
        return self._known[name]

    def _make(self, name: str) -> Decode:
        codec = _UNICODE.get(name) or _SEVERAL_BYTES.get(name)
        if codec == "utf-8":
            return bytes.decode  # strict UTF-8, at half the price of a lambda
        if codec is not None:
            return lambda raw: raw.decode(codec)
        if name == "eucjpms":
            return lambda raw: raw.decode("euc_jp").translate(_MICROSOFT)
        table = "".join(_NOTHING if character is None else character for character in self._ask(name))
        return lambda raw: codecs.charmap_decode(raw, "strict", table)[0]  # type: ignore[arg-type]  # text too is a map
