"""The row of the documented table of types: what each database's column becomes. Filled by each connector's `rows()`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TypeRow"]


@dataclass(frozen=True)
class TypeRow:
    """A column type: `type` in the database's own words, its value as `json` in a change, its type in the `lake`.

    `note`: what is not carried as that, or differs from Debezium.
    """

    database: str
    type: str
    json: str
    lake: str
    note: str = ""
