"""The protocol's own way to write numbers and texts of any length."""

from __future__ import annotations

__all__ = ["lenenc", "lenenc_bytes", "lenenc_list"]

_SIZES = {0xFC: 2, 0xFD: 3, 0xFE: 8}


def lenenc(data: bytes, at: int) -> tuple[int, int]:
    """A length-encoded integer and where it ends."""
    first = data[at]
    if first < 0xFB:
        return first, at + 1
    end = at + 1 + _SIZES[first]
    return int.from_bytes(data[at + 1 : end], "little"), end


def lenenc_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    """Bytes with their length before them, and where they end."""
    size, start = lenenc(data, at)
    return data[start : start + size], start + size


def lenenc_list(data: bytes) -> list[int]:
    """Length-encoded integers up to the end."""
    found, at = [], 0
    while at < len(data):
        number, at = lenenc(data, at)
        found.append(number)
    return found
