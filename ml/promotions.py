"""What became champion when, by whom and why: a model's history as entries, and what follows from them.

Pure functions over the entries, oldest first. ml/registry.py keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Action", "Promotion", "came_first", "concerning", "ended_by_a_person", "succession"]

Action = Literal["auto", "approve", "rollback"]


@dataclass(frozen=True)
class Promotion:
    """One entry of a model's history: `version` took the place of `previous` as champion."""

    model: str
    version: str
    previous: str | None
    action: Action
    by: str
    note: str
    at: str

    def line(self) -> str:
        """The entry for people."""
        replaced = f" for {self.previous}" if self.previous else ""
        return f"{self.at}  {self.action}: {self.version}{replaced}; by {self.by}: {self.note}"


def succession(history: Sequence[Promotion]) -> list[str]:
    """Champions in order of succession: a rollback ends the last one's reign."""
    reign: list[str] = []
    for entry in history:
        if entry.action == "rollback":
            reign.pop()
        elif reign[-1:] != [entry.version]:
            reign.append(entry.version)
    return reign


def came_first(history: Sequence[Promotion], version: str, *actions: Action) -> Promotion | None:
    """The version's first promotion (of one of `actions`, if given); a return by rollback is not one."""
    wanted = actions or ("auto", "approve")
    return next((p for p in history if p.version == version and p.action in wanted), None)


def concerning(history: Sequence[Promotion], version: str) -> tuple[Promotion, ...]:
    """The entries in which the version came or went."""
    return tuple(p for p in history if version in (p.version, p.previous))


def ended_by_a_person(history: Sequence[Promotion], version: str) -> bool:
    """Whether somebody, not the policy, last put another version in this one's place."""
    ends = [p for p in history if p.previous == version]
    return bool(ends) and ends[-1].action != "auto"
