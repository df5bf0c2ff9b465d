"""A row of the documented table of types: what a database's column becomes. Each connector has `rows()` of them."""

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
