"""A table of a database for its declaration: columns with the lake's types, key, and the database's comments.

It is read by the connectors' own code, so that what is declared is what will be captured.

Errors: CaptureError (streaming/capture/errors.py): Retryable, Halt
          └─ UnknownTableError   there is no such table, or we may not see it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from streaming.capture.credentials import Address
from streaming.capture.errors import CaptureError
from streaming.capture.tables import TableSchema

__all__ = ["Introspected", "UnknownTableError", "default_schema", "introspect"]

_TIMEOUT_S = 30
_POSTGRES_COMMENTS = """
SELECT coalesce(a.attname::text, ''), d.description
FROM pg_catalog.pg_description d LEFT JOIN pg_catalog.pg_attribute a
  ON a.attrelid = d.objoid AND a.attnum = d.objsubid AND d.objsubid > 0
WHERE d.classoid = 'pg_catalog.pg_class'::regclass AND d.objoid = %s
"""
_POSTGRES_GENERATED = """
SELECT attname::text FROM pg_catalog.pg_attribute
WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped AND attgenerated <> '' ORDER BY attnum
"""
_POSTGRES_DIMENSIONS = """
SELECT attname::text, attndims FROM pg_catalog.pg_attribute WHERE attrelid = %s AND attndims > 1
"""
_MYSQL_COMMENTS = """
SELECT COLUMN_NAME, COLUMN_COMMENT FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s
UNION ALL SELECT '', TABLE_COMMENT FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s
"""


class UnknownTableError(CaptureError):
    """There is no such table, or we may not see it."""


@dataclass(frozen=True)
class Introspected:
    """A table as it is now; `comments` by column, the table's own under the empty name, those that there are.

    `to_do`: statements without which it cannot be captured; `unsent`: its generated columns, where the server does not
    send them.
    """

    schema: TableSchema
    comments: Mapping[str, str]
    to_do: Sequence[str] = ()
    unsent: Sequence[str] = ()


def default_schema(address: Address) -> str:
    """The schema of a table that is named without one."""
    return "public" if address.scheme.startswith("postgres") else address.database


def introspect(address: Address, name: str) -> Introspected:
    """The table `schema.table` of the database. Raises UnknownTableError, Retryable, Halt; none has the password."""
    read = _postgres if address.scheme.startswith("postgres") else _mysql
    found = read(address, name)
    if found is None:
        raise UnknownTableError(
            f"{address}: found no table {name} that {address.user} may see; name it as schema.table, in the letters "
            "that the database has for it"
        )
    return found


def _postgres(address: Address, name: str) -> Introspected | None:
    import psycopg

    from streaming.postgres.catalog import Catalog
    from streaming.postgres.checks import without_identity
    from streaming.postgres.connect import Server

    server = Server(address, "headwater source add")
    with closing(server.session(statement_timeout_s=_TIMEOUT_S)) as connection:

        def query(statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
            try:
                return connection.execute(statement.encode(), values).fetchall()
            except psycopg.Error as error:
                raise server.problem(error, "read its catalog") from None

        catalog = Catalog("", connection.info.server_version, checked_encoding=True)
        table = catalog.named(query, [name]).get(name)
        if table is None:
            return None
        schema, _ = catalog.schema(query, table)
        comments, unsent = dict(query(_POSTGRES_COMMENTS, (table.oid,))), query(_POSTGRES_GENERATED, (table.oid,))
        schema = _nested(schema, dict(query(_POSTGRES_DIMENSIONS, (table.oid,))))
        return Introspected(schema, comments, without_identity([table]), [column for (column,) in unsent])


def _nested(schema: TableSchema, dimensions: Mapping[str, int]) -> TableSchema:
    """With lists of lists where arrays were declared to have more dimensions than one."""
    columns = []
    for column in schema.columns:
        more = dimensions.get(column.name, 1) - 1
        columns.append(replace(column, lake_type="list<" * more + column.lake_type + ">" * more))
    return replace(schema, columns=tuple(columns))


def _mysql(address: Address, name: str) -> Introspected | None:
    from streaming.mysql.connect import Database
    from streaming.mysql.dictionary import Dictionary

    database = Database(address)
    with closing(database.connect()) as connection:
        table = Dictionary(database, connection).describe(connection, name)
        if table is None:
            return None
        place = tuple(name.split(".", 1))
        comments = database.query(connection, _MYSQL_COMMENTS, place * 2)
        return Introspected(table.schema, {column: text for column, text in comments if text})
