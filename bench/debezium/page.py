"""Writes docs/reference/envelope.md: what a record is, and every declared difference from Debezium's.

`python -m bench.debezium.page` rewrites the page; with `--check` it only says whether it is up to date (exit 1 if not).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench.debezium.cases import WORKLOADS
from bench.debezium.difference import Difference
from bench.debezium.engine import COMPARABLE, VERSION
from bench.debezium.envelope_differences import ENVELOPE
from bench.debezium.value_differences import VALUES

__all__ = ["PAGE", "main", "render"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "envelope.md"
_BEGINNING = """# The envelope of a change

Written by `python -m bench.debezium.page`; a test keeps it in step with the comparison.

A record's key is a JSON object with the columns of the primary key. Its value is Debezium's envelope without a schema:

```json
{"before": null,
 "after": {"invoice_no": "536365", "line_no": 1, "quantity": 6, "unit_price_gbp": "2.55"},
 "source": {"version": "0.1.0", "connector": "postgresql", "name": "shop", "db": "shop", "schema": "public",
   "table": "order_lines", "snapshot": "false", "ts_ms": 1291191960000, "ts_us": 1291191960000000,
   "ts_ns": 1291191960000000000, "txId": 779, "xmin": null,
   "headwater": {"epoch": 1, "commit": 28389704, "schema": 1, "order": 1},
   "lsn": 28389312, "sequence": "[\\"28389312\\",\\"28389312\\"]"},
 "transaction": {"id": "779:28389704", "total_order": 1, "data_collection_order": 1},
 "op": "c", "ts_ms": 1291191960004, "ts_us": 1291191960004123, "ts_ns": 1291191960004123000}
```

`op` is c (insert), u (update), d (delete), r (read by a snapshot) or t (truncate). A delete is followed by a tombstone:
the same key without a value. A changed primary key is a delete, its tombstone and an insert.

`source.headwater` is our one addition. (`epoch`, `commit`, `order`) is the place of a change in the source's history:
it grows from change to change, and is the same however often the change is read. `commit` is the position of the
transaction's commit (PostgreSQL: its LSN; MariaDB: the number of the binary log's file times 2^40, plus the position in
it), `order` counts within the transaction; `epoch` grows when another server or history is accepted. `schema` is the
version of the table's schema. `unsent` are the columns whose value the database did not send, where there are any: they
have Debezium's placeholder, and a text that reads like it elsewhere is a text. A row that a snapshot read (op r) has
the stream's position at that moment, and order 1073741823.

"""


def render() -> str:
    """The page's text."""
    settings = ", ".join(f"`{name}={value}`" for name, value in COMPARABLE.items())
    return "\n".join(
        [
            _BEGINNING + "## Compared with Debezium",
            "",
            f"A test has Debezium {VERSION} (embedded engine, PostgreSQL and MariaDB connectors) and our connectors",
            "capture the same workload on the same server: every type of column at its edges, read in a snapshot and",
            "streamed, and every kind of change. Records are compared field by field, but for topic names.",
            "All differences are here; any other fails the test, and so does one of these that does not occur, but for",
            "what our connectors look up (TOAST values under a new key), which depends on the moment.",
            "Left out are rows that our connectors read again (op r) after DDL that gave them values, which Debezium",
            "does not tell before they change: how many come depends on the moment.",
            f"Debezium's settings: {settings}; all else is its default.",
            "",
            "## The same",
            "",
            *_same_types(),
            "## Different in the envelope",
            "",
            *_table(["where", "in", "Debezium", "ours", "why"], map(_envelope_row, ENVELOPE)),
            "",
            "## Different in values",
            "",
            "Of each type only the named values; all values where none is named.",
            "",
            *_table(["type", "values", "when", "Debezium", "ours", "why"], map(_value_row, VALUES)),
            "",
        ]
    )


def _same_types() -> Iterator[str]:
    for workload in WORKLOADS.values():
        different = {each for one in VALUES if one.database in ("", workload.database) for each in one.subjects}
        same = [each for each in workload.columns() if each not in different]
        yield f"{workload.database}, in every value that is compared: {', '.join(f'`{each}`' for each in same)}."
        yield ""


def _envelope_row(one: Difference) -> Sequence[str]:
    names = ", ".join(f"`{each}`" for each in one.subjects) if "records" not in one.subjects else "which records"
    return [names, _place(one, ""), one.debezium, one.ours, one.reason]


def _value_row(one: Difference) -> Sequence[str]:
    when = {"": "", "r": "snapshot", "c": "streamed"}[one.ops]
    types = ", ".join(f"`{each}`" for each in one.subjects)
    return [_place(one, types), ", ".join(f"`{each}`" for each in one.values), when, one.debezium, one.ours, one.reason]


def _place(one: Difference, types: str) -> str:
    database = one.database or "both"
    if types:
        return f"{database}: {types}"
    return f"{database}, op {', '.join(one.ops)}" if one.ops.strip("-") else database


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def main(arguments: Sequence[str], page: Path = PAGE) -> int:
    """Write the page, or compare it with `--check`. Returns the exit status."""
    wanted = render()
    if "--check" not in arguments:
        page.parent.mkdir(exist_ok=True)
        page.write_text(wanted, encoding="utf-8")
        return 0
    if page.is_file() and page.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{page.name} is not what is declared: run `python -m bench.debezium.page`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
