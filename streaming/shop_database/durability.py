"""Not waiting for the disk at each of thousands of commits, and everything on disk at the end.

PostgreSQL has a setting for it in one session, and it costs nothing: a crash of the server takes back the last moments,
the replay's own record with them. MariaDB has it for the whole server alone: that is done only when asked for, and what
the settings were is kept in the database, so that a run that was killed leaves them to the next one to put back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from streaming.shop_database.connect import Database, Rejected
from streaming.shop_database.ddl import PROGRESS

__all__ = ["put_back", "relaxed"]

# At most the last second of commits is lost when the machine (not the server alone) dies.
_RELAXED = {"sync_binlog": 0, "innodb_flush_log_at_trx_commit": 0}


@contextmanager
def relaxed(database: Database, *, server: bool) -> Iterator[None]:
    """Commits do not wait for the disk within, on MariaDB only if the `server` may be relaxed; after it all are there.

    Raises Rejected when the server may not be relaxed by this user.
    """
    if database.dialect == "postgresql":
        database.script("SET synchronous_commit = off")
        yield
        database.script("SET synchronous_commit = on")
        database.script(f"UPDATE {PROGRESS} SET id = id")  # its commit waits, for all before it as well
    elif server:
        _relax(database)
        try:
            yield
        finally:
            put_back(database)
    else:
        yield


def put_back(database: Database) -> None:
    """Give the server the settings that it had before a run relaxed it; nothing happens when none did."""
    if database.dialect == "postgresql":
        return
    kept = database.query(f"SELECT server_settings FROM {PROGRESS} WHERE server_settings IS NOT NULL")
    for (text,) in kept:
        _set(database, json.loads(text))
        database.script(f"UPDATE {PROGRESS} SET server_settings = NULL")


def _relax(database: Database) -> None:
    names = ", ".join(f"@@global.{name}" for name in _RELAXED)
    found = dict(zip(_RELAXED, map(int, database.query(f"SELECT {names}")[0]), strict=True))
    database.execute(f"UPDATE {PROGRESS} SET server_settings = %s", [json.dumps(found)])
    _set(database, _RELAXED)


def _set(database: Database, settings: dict[str, int]) -> None:
    try:
        for name, value in settings.items():
            database.script(f"SET GLOBAL {name} = {value:d}")
    except Rejected as error:
        raise Rejected(
            f"{error}; tried to set {', '.join(settings)} for the whole server, which needs a privilege: replay "
            "without relaxing the server, or as its administrator"
        ) from error
