"""docs/reference/faults.md: for each case and database what was done and what was seen, from runs of the fault tests.

A run of some of them leaves the lines of the others. Cases without a test, and tests that did not pass, are listed as
such.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tests.faults.cases import CASES, DATABASES, IMPOSSIBLE

__all__ = ["Outcome", "uncovered", "write_page"]

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


def uncovered(outcomes: Sequence[Outcome]) -> list[str]:
    """Each case and database that has no test which passed, and no reason why not; one that has both, too."""
    found = []
    for number, database in product(CASES, DATABASES):
        ran = _of(outcomes, number, database)
        if (number, database) in IMPOSSIBLE:
            found += [f"case {number} on {database} cannot happen, and has a test"] if ran else []
        elif not ran:
            found.append(f"case {number} on {database} has no test")
        else:
            found += [f"{each.name} {each.outcome}" for each in ran if each.outcome != "passed"]
    return found


def write_page(path: Path, outcomes: Sequence[Outcome]) -> list[str]:
    """The whole page. Returns which cases are not covered, as number and database."""
    before = path.read_text().splitlines() if path.exists() else []
    rows = {at: _rows(*at, outcomes, before) for at in product(CASES, DATABASES)}
    path.write_text(_HEAD + "".join(f"{row}\n" for of_case in rows.values() for row in of_case))
    return [f"{number} {database}" for (number, database), of_case in rows.items() if "| **" in "".join(of_case)]


def _of(outcomes: Sequence[Outcome], number: int, database: str) -> list[Outcome]:
    return [each for each in outcomes if each.case == number and database in each.databases]


def _rows(number: int, database: str, outcomes: Sequence[Outcome], before: Sequence[str]) -> list[str]:
    start = f"| {number} {CASES[number]} | {_NAMES[database]} |"
    if reason := IMPOSSIBLE.get((number, database)):
        return [f"{start} cannot happen | {reason} |"]
    if ran := _of(outcomes, number, database):
        return list(dict.fromkeys(f"{start} {_line(each.done)} | {_seen(each)} |" for each in ran))
    return [row for row in before if row.startswith(start)] or [f"{start} **not covered** | |"]


def _seen(outcome: Outcome) -> str:
    if outcome.outcome != "passed":
        return f"**{outcome.outcome}**"
    return _line(outcome.seen) or "the landed tables equal the source"


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
