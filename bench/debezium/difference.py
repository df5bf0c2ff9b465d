"""What a declared difference between Debezium's records and ours is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bench.debezium.compare import Found

__all__ = ["MARIADB", "POSTGRESQL", "Difference"]

POSTGRESQL, MARIADB = "PostgreSQL", "MariaDB"


@dataclass(frozen=True)
class Difference:
    """`subjects`: column types or fields' paths; `values`: SQL, empty for every one; `ops`: empty for every one.

    `database` empty: on both. `wrote`: a regular expression for all of what we wrote, where the words leave it open.
    `sometimes`: it depends on the moment whether it occurs.
    """

    subjects: Sequence[str]
    debezium: str
    ours: str
    reason: str
    database: str = ""
    values: Sequence[str] = ()
    ops: str = ""
    tables: Sequence[str] = ()
    wrote: str = ""
    sometimes: bool = False

    def explains(self, found: Found) -> bool:
        """Whether this is the difference that was found."""
        return (
            self.database in ("", found.database)
            and found.subject in self.subjects
            and (not self.values or found.sql in self.values)
            and (not self.ops or found.op in self.ops)
            and (not self.tables or found.table in self.tables)
            and re.fullmatch(self.wrote or ".*", found.ours, re.DOTALL) is not None
        )
