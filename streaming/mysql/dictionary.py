"""What the server's dictionary says: tables and their columns as they are now, character sets, foreign keys.

The binary log may be behind it. What it alone knows (that a binary(16) is a uuid) is taken from here, the rest from the
log wherever rows are streamed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streaming.capture.errors import Halt
from streaming.capture.tables import CapturedColumn, TableSchema
from streaming.mysql.charsets import Charsets
from streaming.mysql.connect import Database
from streaming.mysql.table_map import Charset
from streaming.mysql.types import ColumnType, parse_type

if TYPE_CHECKING:
    import pymysql

__all__ = ["Described", "Dictionary", "identifier", "quoted", "table_schema"]

_COLUMNS = """
SELECT COLUMN_NAME, COLUMN_TYPE, CHARACTER_SET_NAME, IS_NULLABLE, COLUMN_KEY FROM information_schema.COLUMNS
WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s ORDER BY ORDINAL_POSITION"""
_UNIQUE = """
SELECT INDEX_NAME, SEQ_IN_INDEX, COLUMN_NAME FROM information_schema.STATISTICS
WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND NON_UNIQUE = 0"""
_ENGINE = """
SELECT ENGINE, TABLE_TYPE FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s"""
_COLLATIONS = """
SELECT c.ID, s.CHARACTER_SET_NAME, s.MAXLEN FROM information_schema.{source} c
JOIN information_schema.CHARACTER_SETS s ON s.CHARACTER_SET_NAME = c.CHARACTER_SET_NAME WHERE c.ID IS NOT NULL"""
_HAS_NUMBERS = """
SELECT count(*) FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = 'information_schema'
AND TABLE_NAME = 'COLLATION_CHARACTER_SET_APPLICABILITY' AND COLUMN_NAME = 'ID'"""
_CASCADES = """
SELECT TABLE_NAME, CONSTRAINT_NAME, DELETE_RULE, UPDATE_RULE FROM information_schema.REFERENTIAL_CONSTRAINTS
WHERE CONSTRAINT_SCHEMA = %s AND (DELETE_RULE IN ('CASCADE', 'SET NULL') OR UPDATE_RULE IN ('CASCADE', 'SET NULL'))"""

# No such table, no such database.
_NO_TABLE = (1146, 1049)


def identifier(name: str) -> str:
    """A name as SQL."""
    return "`" + name.replace("`", "``") + "`"


def quoted(name: str) -> str:
    """`schema.table` as SQL."""
    schema, _, table = name.partition(".")
    return f"{identifier(schema)}.{identifier(table)}"


@dataclass(frozen=True)
class Described:
    """A table as it is now: its schema, its columns' types in their order, and which index is its key."""

    schema: TableSchema
    types: tuple[ColumnType, ...]
    engine: str
    kind: str
    key_index: str | None = None

    @property
    def by_name(self) -> Mapping[str, ColumnType]:
        return {column.name: kind for column, kind in zip(self.schema.columns, self.types, strict=True)}


def table_schema(
    schema: str, table: str, columns: Sequence[tuple[str, ColumnType, bool]], key: Sequence[str]
) -> TableSchema:
    """`columns`: name, type and whether null is allowed."""
    captured = tuple(CapturedColumn(name, str(kind), kind.lake, nullable) for name, kind, nullable in columns)
    return TableSchema(schema, table, captured, tuple(key))


class Dictionary:
    """Asks over a connection that it is given: the one that reads a table must be the one that describes it."""

    def __init__(self, database: Database, connection: pymysql.Connection) -> None:
        """`connection` is for character sets, which do not change."""
        self._database = database
        self._connection = connection
        self.charsets = Charsets(self._characters)
        self._collations: dict[int, Charset] = {}

    def charset(self, collation: int) -> Charset:
        """The character set of a collation, by the number that the binary log has for it. Raises Halt."""
        if not self._collations:
            self._learn()
        try:
            return self._collations[collation]
        except KeyError:
            raise Halt(
                f"the binary log names collation {collation}, which the server does not know",
                "Capture from a server of the version that wrote the log",
                "mariadb_settings",
            ) from None

    def _learn(self) -> None:
        """MariaDB has the numbers of its newest collations in a table of their own, which has none in MySQL."""
        ask = self._database.query
        (count,) = ask(self._connection, _HAS_NUMBERS)[0]
        for source in ("COLLATIONS", "COLLATION_CHARACTER_SET_APPLICABILITY")[: 1 + count]:
            for collation, name, size in _texts(ask(self._connection, _COLLATIONS.format(source=source))):
                self._collations[int(collation)] = Charset(name, int(size))

    def _characters(self, charset: str) -> list[str | None]:
        """What the server makes of each byte of a one-byte character set; it has a question mark for nothing."""
        every = bytes(range(256)).hex()
        asked = f"SELECT CONVERT(_{charset} x'{every}' USING utf8mb4)"
        ((text,),) = _texts(self._database.query(self._connection, asked))
        return [None if character == "?" and byte != ord("?") else character for byte, character in enumerate(text)]

    def cascades(self, connection: pymysql.Connection, names: Sequence[str]) -> list[str]:
        """Foreign keys of these tables by which the storage engine changes rows without a word in the binary log."""
        found = []
        for schema in sorted({name.partition(".")[0] for name in names}):
            for table, constraint, on_delete, on_update in _texts(
                self._database.query(connection, _CASCADES, (schema,))
            ):
                if f"{schema}.{table}" in names:
                    found.append(f"{schema}.{table}.{constraint} (ON DELETE {on_delete} ON UPDATE {on_update})")
        return found

    def describe(self, connection: pymysql.Connection, name: str) -> Described | None:
        """The table `schema.table` as it is now; None if there is none. Raises Retryable, Halt."""
        with self._database.errors():
            connection.begin()
            try:
                return self.describe_held(connection, name) if self.hold(connection, name) else None
            finally:
                connection.commit()

    def hold(self, connection: pymysql.Connection, name: str) -> bool:
        """Whether there is such a table; it cannot be altered or dropped then until the transaction under way ends.

        The dictionary alone cannot say so: while a table is altered it has none of that name for a moment. Raises
        Retryable, Halt without the right to read it.
        """
        import pymysql

        with self._database.errors():
            try:
                with connection.cursor() as cursor:
                    cursor.execute(f"SELECT 1 FROM {quoted(name)} LIMIT 0")
            except pymysql.MySQLError as error:
                if error.args[0] in _NO_TABLE:
                    return False
                raise
        return True

    def describe_held(self, connection: pymysql.Connection, name: str) -> Described | None:
        """As `describe`, of a table that the transaction under way holds."""
        schema, _, table = name.partition(".")
        found = _texts(self._database.query(connection, _COLUMNS, (schema, table)))
        if not found:
            return None
        indexes = _texts(self._database.query(connection, _UNIQUE, (schema, table)))
        index, key = _key({row[0] for row in found if row[4] == "PRI"}, indexes)
        ((engine, kind),) = _texts(self._database.query(connection, _ENGINE, (schema, table)))
        types = tuple(parse_type(words, charset) for _, words, charset, *_ in found)
        columns = [(row[0], kind, row[3] == "YES") for row, kind in zip(found, types, strict=True)]
        return Described(table_schema(schema, table, columns, key), types, engine or "", kind, index)


def _key(columns: Collection[str], indexes: Sequence[tuple[Any, ...]]) -> tuple[str | None, list[str]]:
    """The index that the binary log takes for the key, and its columns: the primary key, else the server's choice among
    the unique ones that no null is in. Which that is, is told by its columns alone; of two over the same, by the
    server's own order.

    `indexes`: name, place in the index from 1, column.
    """
    found: dict[str, dict[int, str]] = {}
    for index, place, column in indexes:
        found.setdefault(index, {})[int(place)] = column
    for index in sorted(found, key=lambda name: name != "PRIMARY"):
        if set(found[index].values()) == set(columns):
            return index, [found[index][place] for place in sorted(found[index])]
    return None, []


def _texts(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """A connection that reads raw gives the dictionary's names, which are UTF-8, as bytes."""
    return [tuple(value.decode() if isinstance(value, bytes) else value for value in row) for row in rows]
