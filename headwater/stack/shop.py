"""The shop's database in the local stack, made if missing: with its owner, and a role that may capture it and no more.

The owner `shop` writes; `headwater_capture` reads the shop's tables and the stream of their changes. Both passwords are
generated, each in a file of the server's directory that only we may read. On PostgreSQL all tables are in a publication
from the start: only their owner may publish them, and the capture role owns none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from headwater.stack.place import HOST, password_in
from headwater.stack.server import Server

__all__ = ["CAPTURE", "DATABASE", "OWNER", "PUBLICATION", "ShopDatabase", "make_shop"]

DATABASE = "shop"
OWNER = "shop"
CAPTURE = "headwater_capture"
PUBLICATION = "headwater_shop"

# Tables that the owner makes later are readable too.
_POSTGRESQL_GRANTS = (
    "GRANT CONNECT ON DATABASE {database} TO {capture}",
    "GRANT pg_read_all_stats TO {capture}",  # it sees whether the one that holds the slot is alive
    "GRANT USAGE ON SCHEMA public TO {capture}",
    "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {capture}",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public GRANT SELECT ON TABLES TO {capture}",
)
_MARIADB_STATEMENTS = (
    "SET SESSION sql_log_bin = OFF",  # this runs at every `up`, and is none of the shop's changes
    f"CREATE DATABASE IF NOT EXISTS {DATABASE}",
    f"CREATE USER IF NOT EXISTS {OWNER}@'{HOST}'",
    f"CREATE USER IF NOT EXISTS {CAPTURE}@'{HOST}'",
    f"ALTER USER {OWNER}@'{HOST}' IDENTIFIED BY '{{owner}}'",
    f"ALTER USER {CAPTURE}@'{HOST}' IDENTIFIED BY '{{capture}}'",
    f"GRANT ALL PRIVILEGES ON {DATABASE}.* TO {OWNER}@'{HOST}'",
    f"GRANT SELECT ON {DATABASE}.* TO {CAPTURE}@'{HOST}'",
    # REPLICATION CLIENT is what MariaDB calls BINLOG MONITOR since 10.5; both names work there.
    f"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {CAPTURE}@'{HOST}'",
)


@dataclass(frozen=True)
class ShopDatabase:
    """Where the shop is, for who captures it and for its owner: URLs without password, files with nothing else."""

    capture_url: str
    capture_password_file: Path
    owner_url: str
    owner_password_file: Path


def make_shop(server: Server) -> ShopDatabase:
    """The shop of a PostgreSQL or MariaDB server; what is there already is kept."""
    capture, owner = server.directory / "capture.password", server.directory / "shop.password"
    _MAKERS[server.name](server, password_in(owner), password_in(capture))
    address = f"{HOST}:{server.port}/{DATABASE}"
    scheme = server.url.partition(":")[0]
    return ShopDatabase(f"{scheme}://{CAPTURE}@{address}", capture, f"{scheme}://{OWNER}@{address}", owner)


def _on_postgresql(server: Server, owner_password: str, capture_password: str) -> None:
    import psycopg
    from psycopg.sql import SQL, Identifier, Literal

    names = {"owner": Identifier(OWNER), "capture": Identifier(CAPTURE), "database": Identifier(DATABASE)}
    passwords = {OWNER: owner_password, CAPTURE: capture_password}
    with psycopg.connect(server.admin_url, autocommit=True) as admin:
        roles = {name for (name,) in admin.execute("SELECT rolname FROM pg_roles")}
        for role, password in passwords.items():
            if role not in roles:
                admin.execute(SQL("CREATE ROLE {}").format(Identifier(role)))
            admin.execute(SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(Identifier(role), Literal(password)))
        admin.execute(SQL("ALTER ROLE {} REPLICATION").format(Identifier(CAPTURE)))
        if not admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            admin.execute(SQL("CREATE DATABASE {database} OWNER {owner}").format(**names))
    with psycopg.connect(server.admin_url, dbname=DATABASE, autocommit=True) as admin:
        for grant in _POSTGRESQL_GRANTS:
            admin.execute(SQL(grant).format(**names))
        if not admin.execute("SELECT 1 FROM pg_publication WHERE pubname = %s", [PUBLICATION]).fetchone():
            statement = "CREATE PUBLICATION {} FOR ALL TABLES WITH (publish_via_partition_root = true)"
            admin.execute(SQL(statement).format(Identifier(PUBLICATION)))


def _on_mariadb(server: Server, owner_password: str, capture_password: str) -> None:
    import pymysql

    with pymysql.connect(host=HOST, port=server.port, user="root", password=server.password) as admin:
        with admin.cursor() as cursor:
            for statement in _MARIADB_STATEMENTS:
                cursor.execute(statement.format(owner=owner_password, capture=capture_password))
        admin.commit()


_MAKERS: Mapping[str, Callable[[Server, str, str], None]] = {"postgresql": _on_postgresql, "mariadb": _on_mariadb}
