"""What is wrong in a declaration and where, and how a value is put into words.

Every problem reads `file:line: found ..., allowed is ...`, whoever found it: the same words for the same thing, none of
them a library's. What is allowed is put into words in `catalog.allowed`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

__all__ = ["Finding", "Loc", "Problem", "either", "nearest", "shown"]

Loc = tuple[str | int, ...]
"""A place in a declaration: field names and positions in lists."""

_SHORT = 60


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong at a place of a declaration; `text` is `found ..., allowed is ...`."""

    loc: Loc
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong in a file; problems sort by file and line (from 1)."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


def shown(value: Any) -> str:
    """A value as its YAML would show it, in at most about sixty characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return _if_short("{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}", "a mapping")
    if isinstance(value, list | tuple):
        return _if_short("[" + ", ".join(shown(v) for v in value) + "]", f"a list of {len(value)}")
    text = str(value)
    return repr(text if len(text) <= _SHORT else text[: _SHORT - 3] + "...")


def _if_short(text: str, otherwise: str) -> str:
    return text if len(text) <= _SHORT else otherwise


def nearest(found: str, names: Iterable[str]) -> str:
    """` (did you mean ...?)` for the name that is most like `found`; empty when none is."""
    near = difflib.get_close_matches(found, list(names), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def either(options: Iterable[str]) -> str:
    """`a, b or c`."""
    *others, last = options
    return f"{', '.join(others)} or {last}" if others else last
