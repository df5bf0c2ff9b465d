"""What must be so before a database is captured, each problem with the statement that mends it. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from streaming.capture.errors import Halt, Retryable
from streaming.postgres.catalog import Description, Query

__all__ = [
    "OLDEST",
    "ServerState",
    "check_identities",
    "check_server",
    "check_tables",
    "quoted",
    "server_state",
    "without_identity",
]

OLDEST = 140_000
"""PostgreSQL 14, the first whose pgoutput sends the messages that watermarks are made of."""


@dataclass(frozen=True)
class ServerState:
    """Settings and rights that capturing needs."""

    version: int
    wal_level: str
    in_recovery: bool
    encoding: str
    sender_timeout_ms: int
    user: str
    database: str
    may_replicate: bool
    may_create: bool


_STATE_SQL = """
SELECT current_setting('server_version_num')::int, current_setting('wal_level'), pg_is_in_recovery(),
  current_setting('server_encoding'),
  (SELECT setting::int FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'),
  current_user::text, current_database()::text,
  EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = current_user AND (r.rolsuper OR r.rolreplication))
    OR EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname IN ('rds_replication', 'azure_pg_admin')
               AND pg_catalog.pg_has_role(current_user, r.oid, 'MEMBER')),
  has_database_privilege(current_database(), 'CREATE')
"""
_RIGHTS_SQL = """
SELECT n.nspname || '.' || c.relname, has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT'),
  pg_catalog.pg_has_role(c.relowner, 'USAGE'), n.nspname::text, pg_catalog.pg_get_userbyid(c.relowner)::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY(%s)
"""


def server_state(query: Query) -> ServerState:
    """Ask for it."""
    return ServerState(*query(_STATE_SQL, ())[0])


def check_server(state: ServerState) -> None:
    """Raises Halt when the server cannot be captured from, Retryable while it is a standby."""
    if state.version < OLDEST:
        raise Halt(
            f"the server is PostgreSQL {state.version // 10_000}; supported are 14 and later",
            "Upgrade it, or capture from another one",
            "postgresql_settings",
        )
    if state.in_recovery:
        raise Retryable(
            "the server is a standby: waiting for it to be promoted. If it is to stay one, point HEADWATER_SHOP_URL at "
            "the primary"
        )
    if state.wal_level != "logical":
        raise Halt(
            f"the server's wal_level is {state.wal_level}, needed is logical",
            "`ALTER SYSTEM SET wal_level = 'logical'`, then restart the server",
            "postgresql_settings",
        )
    if not state.may_replicate:
        _refuse({f"{state.user} may not stream changes": f"ALTER ROLE {quoted(state.user)} REPLICATION"})


def check_tables(query: Query, state: ServerState, found: Sequence[Description], to_publish: Iterable[str]) -> None:
    """Raises Halt that lists every table that cannot be captured, and every right that is missing.

    `to_publish`: tables that are not in the publication, and "" when there is no publication yet.
    """
    unusable = {one.name: why for one in found if (why := _unusable(one))}
    if unusable:
        raise Halt(
            "these cannot be captured: " + ", ".join(f"{name} is {why}" for name, why in unusable.items()),
            "Capture the tables behind them, and remove them from catalog/sources",
            "postgresql_tables",
        )
    problems = dict(_missing_rights(query, state, [one.oid for one in found], set(to_publish)))
    if problems:
        _refuse(problems)


def check_identities(found: Iterable[Description]) -> None:
    """Raises Halt for tables of which PostgreSQL could not say which row was changed: it would refuse the change."""
    remedies = without_identity(found)
    if remedies:
        raise Halt(
            "these tables have no replica identity, and once they are published PostgreSQL refuses to update or delete "
            "their rows",
            f"Give them a primary key, or: {'; '.join(remedies)}",
            "postgresql_replica_identity",
        )


def without_identity(found: Iterable[Description]) -> list[str]:
    """The statement that mends it for each such table or partition."""
    return [
        f"ALTER TABLE {name} REPLICA IDENTITY FULL"
        for one in found
        for name, has in (
            [(leaf.name, leaf.identity == "f" or leaf.has_identity) for leaf in one.leaves]
            if one.kind == "p"
            else [(quoted(one.schema, one.table), one.identity == "f" or one.has_identity)]
        )
        if not has
    ]


def quoted(*names: str) -> str:
    """A name as it is written in a statement; quotes only where they are needed are not worth the rules."""
    return ".".join(f'"{name.replace(chr(34), chr(34) * 2)}"' for name in names)


def _unusable(one: Description) -> str | None:
    kinds = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "c": "a type"}
    if one.kind not in "rp":
        return kinds.get(one.kind, "no table")
    if one.persistence != "p":
        return "unlogged" if one.persistence == "u" else "temporary"
    return None if one.columns else "without columns"


def _missing_rights(
    query: Query, state: ServerState, oids: Sequence[int], to_publish: set[str]
) -> Iterator[tuple[str, str]]:
    user = quoted(state.user)
    if "" in to_publish and not state.may_create:
        yield (
            f"{state.user} may not make a publication in {state.database}",
            f"GRANT CREATE ON DATABASE {quoted(state.database)} TO {user}",
        )
    for name, may_use, may_select, owns, schema, owner in query(_RIGHTS_SQL, (list(oids),)):
        table = quoted(*name.split(".", 1))
        if not may_use:
            yield f"{state.user} may not look into schema {schema}", f"GRANT USAGE ON SCHEMA {quoted(schema)} TO {user}"
        if not may_select:
            yield f"{state.user} may not read {name}", f"GRANT SELECT ON {table} TO {user}"
        if name in to_publish and not owns:
            yield f"{state.user} does not own {name}, and so may not publish it", f"GRANT {quoted(owner)} TO {user}"


def _refuse(problems: Mapping[str, str]) -> None:
    raise Halt(
        "; ".join(problems),
        f"As a superuser: {'; '.join(dict.fromkeys(problems.values()))}",
        "postgresql_privileges",
    )
