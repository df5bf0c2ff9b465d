"""Every difference that is declared, and a comparison held against them.

A difference that is found and not declared fails the test; so does one that is declared and not found any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.debezium.compare import Found
from bench.debezium.difference import Difference
from bench.debezium.envelope_differences import ENVELOPE
from bench.debezium.value_differences import VALUES

__all__ = ["DIFFERENCES", "undeclared", "unseen"]

DIFFERENCES: Sequence[Difference] = (*ENVELOPE, *VALUES)


def undeclared(found: Iterable[Found]) -> list[Found]:
    """What nothing declares."""
    return [each for each in found if not any(difference.explains(each) for difference in DIFFERENCES)]


def unseen(found: Sequence[Found], database: str) -> list[Difference]:
    """What is declared for that database to occur always, and is not among what was found there."""
    always = [difference for difference in DIFFERENCES if not difference.sometimes]
    declared = [difference for difference in always if difference.database in ("", database)]
    return [difference for difference in declared if not any(difference.explains(each) for each in found)]
