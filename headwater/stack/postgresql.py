"""PostgreSQL: its cluster, its configuration for logical replication, and the question that it has to answer.

The administrator is the superuser `postgres`, by password (scram-sha-256) over TCP alone. Settings are those of
postgresql.conf; `ssl`: `on` makes a certificate for loopback too. The cluster stays with the version that made it.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from headwater.stack.certificate import make_certificate
from headwater.stack.errors import MissingPrograms
from headwater.stack.place import HOST, Place, account_of, locked, make_place
from headwater.stack.server import Kind, Plan, Server, start_server

__all__ = ["KIND", "SETTINGS", "bin_dir", "standby", "start"]

_INSTALLED = Path("/usr/lib/postgresql")
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # a socket's path has at most 107 characters, a home may have more
    "wal_level": "logical",
    "max_replication_slots": "30",
    "max_wal_senders": "30",
    "max_slot_wal_keep_size": "10GB",  # a connector that is away for good does not fill the disk
    "log_line_prefix": "%m [%p] %u@%d ",
}


def start(
    directory: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None, within_s: float = 60
) -> Server:
    """PostgreSQL in that directory, on a free loopback port unless one is given. Raises StackError."""
    return start_server(KIND, directory, port, settings, within_s)


def standby(
    primary: Server,
    directory: Path,
    *,
    port: int | None = None,
    settings: Mapping[str, str] | None = None,
    within_s: float = 60,
) -> Server:
    """A copy of a running server that follows it and answers queries, until `pg_promote()`. Raises StackError."""
    directory = directory.absolute()
    with locked(directory):
        place = make_place(directory, account_of(KIND.account))
        if not _is_made(place):
            _copy(primary, place)
    return start(directory, port=port, settings=settings, within_s=within_s)


def bin_dir(version: str | None = None) -> Path:
    """Where the server's programs are: of that major version, or of the newest one. Raises MissingPrograms."""
    found = {path.parent.parent.name: path.parent for path in _INSTALLED.glob("*/bin/initdb")}
    if version is None and found:
        return found[max(found, key=float)]
    if version in found:
        return found[version]
    wanted = f"postgresql-{version}" if version else "postgresql"
    raise MissingPrograms(f"{wanted} is not installed: apt-get install {wanted}")


def _is_made(place: Place) -> bool:
    return (place.home / "made").exists()


def _make(plan: Plan) -> None:
    """initdb, as a whole or not at all."""
    home, data = plan.place.home, plan.place.home / "data"
    if data.exists():  # of an initdb that was killed
        plan.place.run(["rm", "-rf", str(data)])
    password = home / "initdb.password"
    password.touch(mode=0o600)
    plan.place.give(password).write_text(plan.password)
    plan.place.run(
        [str(bin_dir() / "initdb"), "--pgdata", str(data), "--username=postgres", "--auth=scram-sha-256",
         f"--pwfile={password}", "--encoding=UTF8", "--locale=C.UTF-8"]
    )  # fmt: skip
    password.unlink()
    with (data / "postgresql.conf").open("a") as conf:
        conf.write("include 'headwater.conf'\n")
    (home / "made").touch()


def _copy(primary: Server, place: Place) -> None:
    """pg_basebackup, which also writes down how to follow the primary."""
    shutil.copyfile(primary.directory / "admin.password", place.directory / "admin.password")
    (place.directory / "admin.password").chmod(0o600)
    passfile = place.home / "primary.pgpass"
    passfile.touch(mode=0o600)
    place.give(passfile).write_text(f"{HOST}:{primary.port}:*:postgres:{primary.password}\n")
    data = place.home / "data"
    place.run(["rm", "-rf", str(data)])
    place.run(
        ["env", f"PGPASSFILE={passfile}", str(bin_dir() / "pg_basebackup"), f"--pgdata={data}", f"--host={HOST}",
         f"--port={primary.port}", "--username=postgres", "--checkpoint=fast", "--write-recovery-conf"]
    )  # fmt: skip
    (place.home / "made").touch()


def _command(plan: Plan) -> list[str]:
    data = plan.place.home / "data"
    settings = {"port": str(plan.ports[0]), **SETTINGS, **plan.settings}
    if settings.get("ssl") == "on" and "ssl_cert_file" not in settings:
        certificate = make_certificate(plan.place)
        settings |= {"ssl_cert_file": str(certificate.chain), "ssl_key_file": str(certificate.key)}
    conf = data / "headwater.conf"
    conf.write_text("".join(f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items()))
    plan.place.give(conf)
    _forget_dead_postmaster(data)
    return [str(bin_dir((data / "PG_VERSION").read_text().strip()) / "postgres"), "-D", str(data)]


def _forget_dead_postmaster(data: Path) -> None:
    """After kill -9 postmaster.pid stays, and its id may be anybody's by now: then PostgreSQL would refuse to start.

    A postmaster's working directory is its data directory.
    """
    lock = data / "postmaster.pid"
    if lock.exists():
        pid = int(lock.read_text().split(maxsplit=1)[0])
        cwd = Path(f"/proc/{pid}/cwd")
        if not (cwd.exists() and cwd.samefile(data)):
            lock.unlink()


def _ask(server: Server) -> str | None:
    import psycopg

    try:
        with psycopg.connect(server.admin_url, connect_timeout=5) as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError as error:
        return str(error)
    return None


KIND = Kind(
    name="postgresql",
    url="postgresql://postgres@{host}:{port}/postgres",
    account="postgres",
    make=_make,
    is_made=_is_made,
    command=_command,
    ask=_ask,
    stop_signal=signal.SIGINT,  # fast shutdown: sessions are ended, not waited for
)
