"""Frozen, strict schemas of a captured table and of gates: columns, keys, expectations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from catalog.column_types import MAX_DIGITS, NAMES, parse_type
from catalog.problems import Finding, Loc, either, nearest, shown
from catalog.spec_base import Name, Owner, Rule, Spec, TableKey, repeated

__all__ = ["COLUMN_ARGUMENTS", "HISTORY_NAMES", "Column", "ColumnType", "Expectation", "Gate", "Source"]

COLUMN_ARGUMENTS = frozenset({"column_A", "column_B", "column_list", "column_set"})
"""Arguments of Great Expectations that name further columns."""

_TYPES = (
    f"{', '.join(repr(name) for name in NAMES)}, 'decimal(p,s)' of p digits, s of them behind the point and p at most "
    f"{MAX_DIGITS}, or 'list<type>'"
)
ColumnType = Annotated[
    str, AfterValidator(lambda text: str(parse_type(text))), Field(json_schema_extra={"words": _TYPES})
]


class Column(Spec):
    """One column of a source table.

    `timestamp` has microseconds and is UTC, `time` counts microseconds (as int64: Delta has no such type), `json` is
    text.
    """

    name: Name
    type: ColumnType
    description: str = Field(min_length=3)
    nullable: bool = True
    pii: bool = False


class Expectation(Spec):
    """One Great Expectations expectation by its snake_case name, with its arguments.

    `mostly` is the share of rows that must satisfy it (1.0: every row).
    """

    expect: Name
    column: Name | None = None
    mostly: float = Field(default=1.0, gt=0, le=1)
    arguments: dict[str, Any] = {}

    def columns(self) -> Iterator[tuple[Loc, str]]:
        """Every column that the expectation names, with its place."""
        if self.column is not None:
            yield ("column",), self.column
        for argument in sorted(COLUMN_ARGUMENTS & self.arguments.keys()):
            value = self.arguments[argument]
            if isinstance(value, str):
                yield ("arguments", argument), value
            elif isinstance(value, tuple | list):
                yield from ((("arguments", argument, n), name) for n, name in enumerate(value) if isinstance(name, str))


_NO_KEY = "found no 'key', which is required, allowed is a list of 1 or more, each a column"


class Gate(Spec):
    """What must hold before anything downstream of a table runs.

    `freshness_days` bounds the clock's now minus the latest `event_time`; `max_quarantined_pct` (raw tables) bounds the
    share of a batch's rows that may break the contract before the table itself counts as broken.
    """

    key: tuple[Name, ...] = ()
    event_time: Name
    freshness_days: float = Field(gt=0)
    freshness: Literal["warn", "block"] = "warn"
    min_rows: int = Field(default=1, ge=0)
    max_quarantined_pct: float = Field(default=20.0, ge=0, lt=50)
    expectations: tuple[Expectation, ...] = ()
    table: TableKey | None = None

    def rules(self) -> tuple[Rule, ...]:
        return (self._key_of_a_table,)

    def _key_of_a_table(self) -> Iterator[Finding]:
        if self.table is not None and not self.key:
            yield Finding(("key",), _NO_KEY)

    def columns(self) -> Iterator[tuple[Loc, str]]:
        """Every column that the gate names, with its place."""
        yield from ((("key", position), name) for position, name in enumerate(self.key))
        yield ("event_time",), self.event_time
        for position, expectation in enumerate(self.expectations):
            yield from ((("expectations", position, *loc), name) for loc, name in expectation.columns())


HISTORY_NAMES = (
    *("change_op", "source_epoch", "source_position", "source_order", "tx_id"),
    *("event_at", "landed_at", "log_partition", "log_offset"),
)
"""Columns that a raw table has beside the captured ones; `lake.schema` says what they are."""


class Source(Spec):
    """One captured table: from it come the raw asset, its checks and dbt's source.

    `relation` is its name in the database when that is not `table` in the default schema (`sales.Orders`). `keyless`:
    it has no primary key, and its gate none either.
    """

    system: Name
    table: Name
    relation: Annotated[str, Field(pattern=r"^[^.]+\.[^.]+$")] | None = None
    description: str = Field(min_length=10)
    owner: Owner
    domain: Name
    columns: tuple[Column, ...] = Field(min_length=1)
    gate: Gate
    keyless: bool = False

    def rules(self) -> tuple[Rule, ...]:
        return (self._columns_once, self._columns_are_its_own, self._key_or_none, self._gate_is_its_own, self._gated)

    def _columns_are_its_own(self) -> Iterator[Finding]:
        for position, column in enumerate(self.columns):
            if column.name in HISTORY_NAMES:
                own = ", ".join(HISTORY_NAMES)
                text = f"found column {column.name!r}, allowed is any but the raw table's own: {own}"
                yield Finding(("columns", position, "name"), text)

    def _key_or_none(self) -> Iterator[Finding]:
        if self.keyless and self.gate.key:
            yield Finding(("gate", "key"), f"found key {shown(self.gate.key)} of a keyless table, allowed is none")
        if not self.keyless and not self.gate.key:
            yield Finding(("gate",), _NO_KEY + ", or keyless: true for a table without any")

    def _columns_once(self) -> Iterator[Finding]:
        names = [column.name for column in self.columns]
        for position in repeated(names):
            yield Finding(
                ("columns", position, "name"), f"found column {names[position]!r} a second time, allowed is once"
            )

    def _gate_is_its_own(self) -> Iterator[Finding]:
        if self.gate.table is not None:
            text = f"found gate.table {self.gate.table!r}, allowed is none: the gate of a source is its raw table's"
            yield Finding(("gate", "table"), text)

    def _gated(self) -> Iterator[Finding]:
        names = [column.name for column in self.columns]
        for loc, used in self.gate.columns():
            if used not in names:
                text = f"found column {used!r} in the gate{nearest(used, names)}, allowed is {either(names)}"
                yield Finding(("gate", *loc), text)
