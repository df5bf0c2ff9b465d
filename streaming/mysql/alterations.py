"""What a statement in the stream means for the captured tables: which are emptied, which look different, which are read
again because their rows came, went or got other values without a row event.

A column that is added with values, renamed or retyped is not in the records of rows that nobody has changed since. Its
table is read again, without being emptied, unless the log has every value as it is now: a wider integer, a longer
varchar, a new column full of nulls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streaming.capture.sink import Sink
from streaming.capture.tables import TableSchema
from streaming.mysql.statements import AlteredColumn, Statement
from streaming.mysql.tables import Tables
from streaming.mysql.types import INTEGERS, ColumnType, parse_type

__all__ = ["Alterations"]

# With one of these an added column is not null in the rows that there are.
_GIVES = {"default", "not", "as", "generated", "auto_increment", "primary"}
# With one of these a column of the same type may have other values than before.
_CONVERTS = {"as", "generated", "auto_increment", "character", "charset", "collate"}


class Alterations:
    """`pending`: tables that DDL has touched and whose new look nothing has shown yet, with its place; whoever learns
    it takes them out.
    """

    def __init__(self, sink: Sink, tables: Tables, begin: Callable[[], None]) -> None:
        """`begin` tells the sink of the transaction at hand, once something comes that it has to know."""
        self.pending: dict[str, int] = {}
        self._sink, self._tables, self._begin = sink, tables, begin

    def apply(self, statement: Statement, commit: int, source: bytes) -> None:
        """`commit`: the label of the statement's transaction; `source`: what a record of it says of its place."""
        names, fold = self._tables.names, self._tables.fold
        for schema in map(fold, statement.schemas):
            statement.emptied |= {name for name in names if name.startswith(f"{schema}.")}
        for name in self._captured(statement.emptied):
            self._begin()
            self._empty(name, source)
        for name in self._captured(statement.unseen):
            self._begin()
            self._sink.reread(name)
        for table, columns in statement.columns.items():
            for name in self._captured({table}):
                self._give(name, columns)
        for name in self._captured(statement.converted):
            self._reread_values(name)
        for name in self._captured(statement.altered):
            self._begin()
            self._tables.forget(name)
            self.pending[name] = commit

    def _captured(self, found: set[str]) -> set[str]:
        names = self._tables.names
        return {names[name] for name in map(self._tables.fold, found) if name in names}

    def _empty(self, name: str, source: bytes) -> None:
        """All rows of the table are gone. It may not be there any more: then it looked as was recorded last."""
        table, recorded = self._sink.tables.get(name), self._sink.history.current(name)
        if table is None and recorded:
            table = self._sink.schema(recorded)
        if table is not None:
            self._sink.truncate(table, source)

    def _give(self, name: str, columns: Sequence[AlteredColumn]) -> None:
        """Columns that the table's rows have got; a column of the key that is converted makes other keys."""
        history = self._sink.history
        history.rename(name, {c.before: c.name for c in columns if c.before and c.before != c.name})
        recorded = history.versions.get(name, [])
        changed = [column for column in columns if not _has_values(column, recorded)]
        if any(column.before in schema.key for column in changed for schema in recorded):
            self._begin()
            self._sink.reread(name)
        elif changed:
            self._reread_values(name)

    def _reread_values(self, name: str) -> None:
        self._begin()
        self._sink.reread(name, emptied=False)


def _has_values(column: AlteredColumn, recorded: Sequence[TableSchema]) -> bool:
    """Whether the log has the column's values, in whichever of its versions a row was written."""
    found = [(known.type, known.nullable) for one in recorded for known in one.columns if known.name == column.name]
    if column.before is None:
        return not found and _GIVES.isdisjoint(column.more) and not column.type.startswith(("serial", "timestamp"))
    if column.before != column.name or not found or not _CONVERTS.isdisjoint(column.more):
        return False
    try:
        kind = parse_type(column.type)
    except ValueError:  # a size that only the server knows
        return False
    nulls = "not" not in column.more
    return all(_widens(parse_type(before), kind) and (nulls or not nullable) for before, nullable in found)


def _widens(before: ColumnType, now: ColumnType) -> bool:
    """Whether every value of the one type is the same in the other."""
    if before.kind in INTEGERS and now.kind in INTEGERS:
        return before.unsigned == now.unsigned and INTEGERS[before.kind] <= INTEGERS[now.kind]
    if before.kind == now.kind == "varchar":
        return before.size <= now.size
    return str(before) == str(now)
