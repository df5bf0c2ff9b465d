"""The types that a column of the lake can have, by the names that declarations and captured schemas give them.

What a type is in Arrow and in SQL is `lake.schema`'s matter, what a change carries it as `streaming.landing`'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["MAX_DIGITS", "NAMES", "LakeType", "parse_type"]

NAMES = ("string", "int64", "float64", "bool", "timestamp", "date", "time", "binary", "json")
# What 128 bits hold.
MAX_DIGITS = 38

_DECIMAL = re.compile(r"decimal\((\d{1,2}),(\d{1,2})\)")
_LIST = re.compile(r"list<(.+)>")


@dataclass(frozen=True)
class LakeType:
    """A type: `kind` is one of NAMES, `decimal` (with its digits in all and behind the point) or `list`."""

    kind: str
    precision: int = 0
    scale: int = 0
    element: LakeType | None = None

    def __str__(self) -> str:
        if self.kind == "decimal":
            return f"decimal({self.precision},{self.scale})"
        return f"list<{self.element}>" if self.element else self.kind


def parse_type(text: str) -> LakeType:
    """Read a type's name. Raises ValueError that says what is allowed."""
    if text in NAMES:
        return LakeType(text)
    if found := _DECIMAL.fullmatch(text):
        precision, scale = int(found[1]), int(found[2])
        if 1 <= precision <= MAX_DIGITS and scale <= precision:
            return LakeType("decimal", precision, scale)
    elif found := _LIST.fullmatch(text):
        return LakeType("list", element=parse_type(found[1]))
    raise ValueError(
        f"found type {text!r}, allowed is {', '.join(NAMES)}, decimal(p,s) with 1 <= p <= {MAX_DIGITS} and s <= p, "
        "or list<type>"
    )
