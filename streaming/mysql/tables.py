"""The tables whose rows are followed: from what the binary log says of a table to its decoders, remembered by content.

A table is mapped before the rows of every statement, mostly in the very same bytes: then all that is done is to look
them up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from streaming.capture.errors import Halt
from streaming.capture.tables import TableSchema
from streaming.mysql.decoders import Column, Images, Unreadable
from streaming.mysql.dictionary import Dictionary, table_schema
from streaming.mysql.table_map import TableMap, column_type, parse_names, parse_table_map
from streaming.mysql.types import FIXED_BINARIES, ColumnType
from streaming.mysql.values import Memo

if TYPE_CHECKING:
    import pymysql

__all__ = ["CLOCK", "Followed", "Tables"]

# A replay's clock: written first in a transaction, it says when that happened and became known.
CLOCK = "headwater_clock"
# Tables that are not captured are remembered too, by their bytes; a server may have any number of them.
_REMEMBERED = 4_096


@dataclass
class Followed:
    """A table in one of its forms: what it looks like and how its rows are read."""

    schema: TableSchema
    images: Images
    is_clock: bool


class Tables:
    """Recognises captured tables. `fold` makes a name comparable, as the server compares them."""

    def __init__(
        self,
        dictionary: Dictionary,
        connection: pymysql.Connection,
        names: Collection[str],
        memos: dict[tuple[Any, ...], Memo],
        *,
        mariadb: bool,
        fold: Callable[[str], str],
    ) -> None:
        self.fold = fold
        self.names = {fold(name): name for name in names}
        self.schemas = {name.partition(".")[0] for name in self.names}
        self._dictionary, self._connection, self._memos, self._mariadb = dictionary, connection, memos, mariadb
        self._known: dict[bytes, Followed | None] = {}
        self._hints: dict[str, Mapping[str, ColumnType]] = {}

    def follow(self, body: bytes) -> Followed | None:
        """What a TABLE_MAP event (without the table's id) is about; None for a table that is not captured."""
        try:
            return self._known[body]
        except KeyError:
            pass
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        schema, table, _ = parse_names(body)
        name = self.names.get(self.fold(f"{schema}.{table}"))
        is_clock = table == CLOCK and self.fold(schema) in self.schemas
        found = self._known[body] = (
            self._read(name or f"{schema}.{table}", body, is_clock) if name or is_clock else None
        )
        return found

    def forget(self, name: str) -> None:
        """The table was altered: what is known of it is asked for again."""
        self._hints.pop(name, None)
        self._known = {body: found for body, found in self._known.items() if not found or found.schema.name != name}

    def _read(self, name: str, body: bytes, is_clock: bool) -> Followed:
        mapped = parse_table_map(body, mariadb=self._mariadb)
        if not mapped.named:
            raise Halt(
                f"the binary log has rows of {name} without the names of its columns",
                "SET GLOBAL binlog_row_metadata = FULL, and start again with --from-scratch",
                "mariadb_settings",
            )
        hints = self._hints_for(name, mapped)
        decoder = self._dictionary.charsets.decoder
        types = [column_type(column, self._dictionary.charset, decoder, hints) for column in mapped.columns]
        columns = [
            Column(column, kind, decoder(kind.charset or "utf8mb4"))
            for column, kind in zip(mapped.columns, types, strict=True)
        ]
        hidden = self._hidden(name, mapped)
        try:
            images = Images(columns, mapped.key, self._memos, hidden=hidden)
        except Unreadable as error:
            raise Halt(
                f"{name}: {error}",
                "ALTER TABLE ... FORCE writes an old table anew; or leave the table out",
                "mariadb_unreadable_column",
            ) from None
        return Followed(self._schema(name, mapped, types[: len(types) - hidden]), images, is_clock)

    def _hidden(self, name: str, mapped: TableMap) -> int:
        """How many of the last columns are the server's own, which the dictionary does not know."""
        found = self._dictionary.describe(self._connection, name) if mapped.hashes else None
        own = takewhile(lambda column: found is None or column not in found.by_name, mapped.hashes)
        return sum(1 for _ in own)

    @staticmethod
    def _schema(name: str, mapped: TableMap, types: list[ColumnType]) -> TableSchema:
        schema, _, table = name.partition(".")
        columns = [(c.name, kind, c.nullable) for c, kind in zip(mapped.columns, types, strict=False)]
        return table_schema(schema, table, columns, [mapped.columns[place].name for place in mapped.key])

    def _hints_for(self, name: str, mapped: TableMap) -> Mapping[str, ColumnType]:
        """The dictionary's types, asked for when a column may be another than the log can tell."""
        if name not in self._hints and any(c.meta in FIXED_BINARIES.values() for c in mapped.columns):
            found = self._dictionary.describe(self._connection, name)
            self._hints[name] = found.by_name if found else {}
        return self._hints.get(name, {})
