"""The publication and the slot: made when they are missing, checked when they are there, never dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from streaming.capture.errors import Halt
from streaming.postgres.catalog import Description, Query
from streaming.postgres.checks import ServerState, quoted
from streaming.postgres.pgoutput import lsn_text, parse_lsn

__all__ = [
    "Slot",
    "check_filters",
    "check_owner",
    "check_publication",
    "check_slot",
    "create_slot",
    "dropped",
    "has_publication",
    "publish",
    "read_slot",
]

Execute = Callable[[str], None]

_PUBLICATION_SQL = """
SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot, puballtables,
  pg_catalog.pg_has_role(pubowner, 'USAGE'), pg_catalog.pg_get_userbyid(pubowner)::text
FROM pg_catalog.pg_publication WHERE pubname = %s
"""
_SLOT_SQL = """
SELECT s.slot_type, s.plugin::text, s.database::text, s.temporary, s.active_pid, s.wal_status,
  s.restart_lsn::text, s.confirmed_flush_lsn::text, {reason}, s.safe_wal_size,
  (SELECT extract(epoch FROM r.reply_time)::float8 FROM pg_catalog.pg_stat_replication r WHERE r.pid = s.active_pid),
  (SELECT concat_ws(' ', nullif(a.application_name, ''), 'of', a.usename, 'from', coalesce(a.client_addr::text, 'here'))
   FROM pg_catalog.pg_stat_activity a WHERE a.pid = s.active_pid)
FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = %s
"""


@dataclass(frozen=True)
class Slot:
    """A replication slot. `confirmed`: what its reader has; `reason`: why the server gave it up, if it says.

    `reader_pid`: the process that reads it, `replied_at` when its client last said how far it is (by the client's own
    clock, seconds since 1970), `reader` who that client is.
    """

    type: str
    plugin: str | None
    database: str | None
    temporary: bool
    reader_pid: int | None
    wal_status: str | None
    restart: int
    confirmed: int
    reason: str | None
    safe_wal_bytes: int | None
    replied_at: float | None
    reader: str | None


def has_publication(query: Query, publication: str) -> bool:
    """Whether there is a publication of that name."""
    return bool(query(_PUBLICATION_SQL, (publication,)))


def check_publication(query: Query, publication: str, found: Sequence[Description]) -> None:
    """Raises Halt when the publication leaves out something that happens to the tables."""
    ((everything, via_root, _, _, _),) = query(_PUBLICATION_SQL, (publication,))
    wanted = []
    if not everything:
        wanted.append("publish = 'insert, update, delete, truncate'")
    if not via_root and any(one.kind == "p" for one in found):
        wanted.append("publish_via_partition_root = true")
    if wanted:
        raise Halt(
            f"publication {publication} does not publish all that happens to its tables",
            f"ALTER PUBLICATION {quoted(publication)} SET ({', '.join(wanted)})",
            "postgresql_publication",
        )


def check_filters(publication: str, found: Iterable[Description]) -> None:
    """Raises Halt when only some rows of a table are published: a snapshot would read all of them."""
    filtered = ", ".join(quoted(one.schema, one.table) for one in found if one.is_filtered)
    if filtered:
        raise Halt(
            f"publication {publication} has a condition on rows of {filtered}",
            f"ALTER PUBLICATION {quoted(publication)} DROP TABLE {filtered}: they are then added without it",
            "postgresql_publication",
        )


def check_owner(query: Query, state: ServerState, publication: str, added: Sequence[Description]) -> None:
    """Raises Halt when the publication lacks tables and is not ours to alter."""
    ((_, _, _, owned, owner),) = query(_PUBLICATION_SQL, (publication,))
    if added and not owned:
        raise Halt(
            f"publication {publication} lacks {', '.join(one.name for one in added)}, and {state.user} does not own it",
            f"As {owner}: {_add_to(publication, added)}",
            "postgresql_publication",
        )


def publish(query: Query, execute: Execute, publication: str, found: Iterable[Description]) -> None:
    """Add the tables to the publication, which is made if it is missing."""
    if has_publication(query, publication):
        execute(_add_to(publication, found))
        return
    tables = _list(found)
    execute(f"CREATE PUBLICATION {quoted(publication)} FOR TABLE {tables} WITH (publish_via_partition_root = true)")


def _add_to(publication: str, found: Iterable[Description]) -> str:
    return f"ALTER PUBLICATION {quoted(publication)} ADD TABLE {_list(found)}"


def _list(found: Iterable[Description]) -> str:
    return ", ".join(("" if one.kind == "p" else "ONLY ") + quoted(one.schema, one.table) for one in found)


def read_slot(query: Query, slot: str, version: int) -> Slot | None:
    """The slot; None when there is none of that name."""
    reason = "s.invalidation_reason" if version >= 170_000 else "CASE WHEN s.conflicting THEN 'conflict' END"
    reason = reason if version >= 160_000 else "NULL"
    rows = query(_SLOT_SQL.format(reason=reason), (slot,))
    if not rows:
        return None
    (kind, plugin, database, temporary, pid, status, restart, confirmed, why, safe, replied, reader) = rows[0]
    places = (_position(restart), _position(confirmed))
    return Slot(kind, plugin, database, temporary, pid, status, *places, why, safe, replied, reader)


def create_slot(query: Query, slot: str, version: int) -> None:
    """Make the slot; waits for the transactions that write at the moment. Raises psycopg's errors."""
    more = ", failover => true" if version >= 170_000 else ""
    query(f"SELECT lsn FROM pg_catalog.pg_create_logical_replication_slot(%s, 'pgoutput', false, false{more})", (slot,))


def check_slot(slot: Slot, name: str, state: ServerState) -> None:
    """Raises Halt when the slot cannot give what we need."""
    drop = f"SELECT pg_drop_replication_slot('{name}')"
    if (slot.type, slot.plugin, slot.database, slot.temporary) != ("logical", "pgoutput", state.database, False):
        raise Halt(
            f"slot {name} is not ours: found a {slot.type} slot of {slot.plugin or 'no plugin'} for database "
            f"{slot.database}, needed is a logical one of pgoutput for {state.database}",
            f"Drop it, if nobody needs it: {drop}",
            "postgresql_slot_missing",
        )
    if slot.wal_status == "lost" or slot.reason:
        raise Halt(
            f"slot {name} was given up by the server ({slot.reason or 'max_slot_wal_keep_size was passed'}): changes "
            f"after {lsn_text(slot.confirmed)} are gone",
            f"{drop}, then capture with `--from-scratch`: every table is read again",
            "postgresql_slot_invalidated",
        )


def dropped(name: str) -> Halt:
    """There is no slot any more where there was one."""
    return Halt(
        f"slot {name} was dropped",
        "Capture with `--from-scratch`: the slot is made anew, and every table is read again",
        "postgresql_slot_missing",
    )


def _position(text: str | None) -> int:
    return parse_lsn(text) if text else 0
