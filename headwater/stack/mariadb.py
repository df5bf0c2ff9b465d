"""MariaDB: its data directory, its configuration for capture from the binary log, and the question it has to answer.

The administrator is `root`, by password over TCP. Settings are those of an option file; `ssl`: `on` makes a certificate
for loopback too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from headwater.stack.certificate import make_certificate
from headwater.stack.errors import MissingPrograms
from headwater.stack.place import HOST, Place
from headwater.stack.server import Kind, Plan, Server, start_server

__all__ = ["KIND", "SETTINGS", "program", "start"]

SETTINGS = {
    "bind_address": HOST,
    "socket": "mariadb.sock",  # below the data directory: an absolute path has at most 107 characters
    "skip_name_resolve": "ON",
    "log_bin": "binlog",
    "binlog_format": "ROW",
    "binlog_row_image": "FULL",
    "binlog_row_metadata": "FULL",  # names, signs, and character sets of columns, without which rows cannot be read
    "sync_binlog": "1",
    "gtid_strict_mode": "ON",
    "log_slave_updates": "ON",
    "server_id": "1",
    "character_set_server": "utf8mb4",
    "max_allowed_packet": "64M",
}


def start(
    directory: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None, within_s: float = 60
) -> Server:
    """MariaDB in that directory, on a free loopback port unless one is given. Raises StackError."""
    return start_server(KIND, directory, port, settings, within_s)


def program(name: str) -> Path:
    """Where one of the server's programs is, also when sbin is not on PATH. Raises MissingPrograms."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if found is None:
        raise MissingPrograms(f"{name} is not installed: apt-get install mariadb-server")
    return Path(found)


def _is_made(place: Place) -> bool:
    return (place.home / "made").exists()


def _make(plan: Plan) -> None:
    """mariadb-install-db, as a whole or not at all; the administrator's password is set at the first start."""
    home, data = plan.place.home, plan.place.home / "data"
    if data.exists():  # of an installation that was killed
        plan.place.run(["rm", "-rf", str(data)])
    plan.place.run(
        [str(program("mariadb-install-db")), "--no-defaults", f"--datadir={data}", "--skip-test-db",
         f"--tmpdir={_temporary(plan.place)}", "--skip-name-resolve", "--auth-root-authentication-method=socket"]
    )  # fmt: skip
    first = home / "first.sql"
    first.touch(mode=0o600)
    plan.place.give(first).write_text(
        f"CREATE OR REPLACE USER root@'{HOST}' IDENTIFIED BY '{plan.password}';\n"
        f"GRANT ALL PRIVILEGES ON *.* TO root@'{HOST}' WITH GRANT OPTION;\n"
    )
    (home / "made").touch()


def _temporary(place: Place) -> Path:
    """A directory for temporary tables: in a shared one, each server that starts deletes those of the others."""
    found = place.home / "tmp"
    found.mkdir(exist_ok=True)
    return place.give(found)


def _command(plan: Plan) -> list[str]:
    home = plan.place.home
    own = {"datadir": str(home / "data"), "tmpdir": str(_temporary(plan.place)), "port": str(plan.ports[0])}
    settings = {**own, **SETTINGS, **plan.settings}
    if settings.get("ssl", "").lower() == "on" and "ssl_cert" not in settings:
        certificate = make_certificate(plan.place)
        settings |= {"ssl_cert": str(certificate.chain), "ssl_key": str(certificate.key)}
    conf = home / "my.cnf"
    conf.write_text("[mariadbd]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    first = home / "first.sql"
    return [
        str(program("mariadbd")),
        f"--defaults-file={conf}",
        *([f"--init-file={first}"] if first.exists() else []),
    ]


def _ask(server: Server) -> str | None:
    import pymysql

    try:
        with pymysql.connect(
            host=HOST, port=server.port, user="root", password=server.password, connect_timeout=5, read_timeout=5
        ) as connection:
            connection.query("SELECT 1")
    except pymysql.OperationalError as error:
        return str(error)
    (server.home / "first.sql").unlink(missing_ok=True)  # with that password it has been carried out
    return None


KIND = Kind(
    name="mariadb",
    url="mysql://root@{host}:{port}/mysql",
    account="mysql",
    make=_make,
    is_made=_is_made,
    command=_command,
    ask=_ask,
)
