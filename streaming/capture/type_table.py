"""The documented table of types: what each database's columns become. Each connector has `rows()` of them.

`python -m streaming.capture.type_table` rewrites docs/reference/types.md; a test keeps it in step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGE", "TypeRow", "render"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "types.md"


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


def render() -> str:
    """The page's text."""
    from streaming.mysql.types import rows as mariadb
    from streaming.postgres.types import rows as postgresql

    return "\n".join([*_HEAD, *_section("PostgreSQL", postgresql()), *_section("MariaDB", mariadb())]) + "\n"


_HEAD = (
    "# Types",
    "",
    "Written by `python -m streaming.capture.type_table`; a test keeps it in step with the code.",
    "",
    "What a column's value becomes in a change's `before` and `after`, and the lake's (Arrow) type that holds all of",
    "it: `decimal(p,s)` is decimal128, `timestamp` has microseconds and means UTC, `json` is text. A value that the",
    "type cannot hold is written as the database's own text, and landing puts its row into quarantine with the reason:",
    "nothing is changed silently.",
)


def _section(database: str, found: Iterable[TypeRow]) -> Iterator[str]:
    yield from ("", f"## {database}", "", "| type | in a change | in the lake | remarks |", "|---|---|---|---|")
    same: dict[tuple[str, str, str], list[str]] = {}
    for row in found:
        same.setdefault((row.json, row.lake, row.note), []).append(row.type)
    for (json, lake, note), types in same.items():
        cells = (", ".join(types), json, f"`{lake}`", note)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(render())
