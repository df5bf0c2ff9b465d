"""docs/reference/faults.md: for each case and database what was done and what was seen, from a run of the fault tests.

Cases without a test, and tests that did not run, are listed as such.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.cases import CASES, DATABASES, IMPOSSIBLE

__all__ = ["Outcome", "write_page"]

_NAMES = {"postgresql": "PostgreSQL", "mariadb": "MariaDB"}
_HEAD = """# What the change stream survives

Written by `make test-faults` from what its tests did and saw. Each causes the fault on real servers and processes.
Where nothing else is said, it ends with the same comparison: the tables that were landed hold row for row what the
source holds, and no change is there twice.

| case | database | what was done | what was seen |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Outcome:
    """One test that ran: `done` is its docstring, `seen` what it said it saw."""

    name: str
    outcome: str
    done: str
    seen: str

    @property
    def case(self) -> int | None:
        found = re.search(r"::test_(\d+)_", self.name)
        return int(found[1]) if found else None

    @property
    def databases(self) -> Sequence[str]:
        named = [each for each in DATABASES if each in self.name.partition("[")[2]]
        return named or DATABASES


def write_page(path: Path, outcomes: Sequence[Outcome]) -> None:
    """The whole page; what did not run is not covered."""
    path.write_text(_HEAD + "".join(f"{row}\n" for row in _rows(outcomes)))


def _rows(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for number, title in CASES.items():
        for database in DATABASES:
            ran = [each for each in outcomes if each.case == number and database in each.databases]
            for done, seen in [(_line(each.done), _seen(each)) for each in ran] or [_without(number, database)]:
                yield f"| {number} {title} | {_NAMES[database]} | {done} | {seen} |"


def _without(number: int, database: str) -> tuple[str, str]:
    if reason := IMPOSSIBLE.get((number, database)):
        return "cannot happen", reason
    return "**not covered**", ""


def _seen(outcome: Outcome) -> str:
    if outcome.outcome != "passed":
        return f"**{outcome.outcome}**"
    return _line(outcome.seen) or "the landed tables equal the source"


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
