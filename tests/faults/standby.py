"""A standby (MariaDB: a replica) of a case's server: made, caught up, promoted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headwater.stack import postgresql
from headwater.stack.place import HOST
from headwater.stack.server import Server, restart, stop
from tests.faults.case import Case, admin_of
from tests.faults.stand import SETTINGS, wait_until
from tests.integration.stack_servers import started

__all__ = ["catch_up", "name_both", "promote", "standby_of", "with_slot"]


@contextmanager
def standby_of(case: Case, directory: Path) -> Iterator[Server]:
    """It follows the case's server, with the same password; removed at the end."""
    name, primary = case.server.name, case.server
    settings = SETTINGS[name]
    if case.is_postgresql:
        postgresql.standby(primary, directory, settings=settings)
    else:
        directory.mkdir(parents=True)
        shutil.copyfile(primary.directory / "admin.password", directory / "admin.password")
        settings = {**settings, "server_id": "2"}
    with started(name, directory, settings=settings) as standby:
        if not case.is_postgresql:
            with admin_of(standby) as database:
                database.script("RESET MASTER")  # what it did itself is not the primary's history
                database.script(
                    f"CHANGE MASTER TO MASTER_HOST='{HOST}', MASTER_PORT={primary.port}, MASTER_USER='root', "
                    f"MASTER_PASSWORD='{primary.password}', MASTER_USE_GTID=slave_pos"
                )
                database.script("START SLAVE")
        yield standby


def with_slot(case: Case, standby: Server, slot: str) -> Server:
    """PostgreSQL's standby, once it has the slot: from 17 on as the how-to says, else as failover programs carry it."""
    ((version,),) = case.sql("SELECT current_setting('server_version_num')::int")
    return _synchronised(case, standby, slot) if version >= 170_000 else _carried(case, standby, slot)


def _synchronised(case: Case, standby: Server, slot: str) -> Server:
    case.sql("SELECT pg_create_physical_replication_slot('standby')")
    with admin_of(standby) as database:
        ((primary,),) = database.query(
            "SELECT quote_literal(current_setting('primary_conninfo') || ' dbname=postgres')"
        )
        database.script(f"ALTER SYSTEM SET primary_conninfo = {primary}")
        database.script("ALTER SYSTEM SET primary_slot_name = 'standby'")
        database.script("ALTER SYSTEM SET hot_standby_feedback = on")
        database.script("ALTER SYSTEM SET sync_replication_slots = on")
        database.query("SELECT pg_reload_conf()")
        found = f"SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = '{slot}'"

        def there() -> bool:
            case.sql("SELECT pg_log_standby_snapshot()")  # what lets a slot that is read move on
            return database.query(found) == [(True,)]

        with case.running("capture", "shop"):
            wait_until(there, "the slot is synchronised")
    return standby


def _carried(case: Case, standby: Server, slot: str) -> Server:
    case.sql("CHECKPOINT")  # it writes slots too
    stop(standby)
    there = standby.home / "data" / "pg_replslot" / slot
    shutil.copytree(case.server.home / "data" / "pg_replslot" / slot, there)
    owner = there.parent.stat()
    for path in (there, *there.iterdir()):
        shutil.chown(path, owner.st_uid, owner.st_gid)
    return restart(standby)


def name_both(case: Case, standby: Server) -> None:
    """The URL has both servers, as the how-tos say."""
    account = case.server.url.partition(HOST)[0]
    options = case.either("?target_session_attrs=read-write", "")
    hosts = f"{HOST}:{case.server.port},{HOST}:{standby.port}"
    case.home = case.home.set(SHOP_URL=f"{account}{hosts}/shop{options}")


def catch_up(case: Case, standby: Server) -> None:
    """It has all that the case's server has."""
    with admin_of(standby) as database:
        if case.is_postgresql:
            ((end,),) = case.sql("SELECT pg_current_wal_flush_lsn()::text")
            replayed = f"SELECT pg_last_wal_replay_lsn() >= '{end}'"
            wait_until(lambda: database.query(replayed) == [(True,)], "the standby has it")
        else:
            ((end,),) = case.sql("SELECT @@gtid_binlog_pos")
            assert database.query(f"SELECT MASTER_GTID_WAIT('{end}', 60)") == [(0,)], database.query(
                "SHOW SLAVE STATUS"
            )


def promote(case: Case, standby: Server) -> None:
    """From here on it takes changes."""
    with admin_of(standby) as database:
        if case.is_postgresql:
            assert database.query("SELECT pg_promote()") == [(True,)]
        else:
            database.script("STOP SLAVE; RESET SLAVE ALL")
