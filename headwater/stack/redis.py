"""Redis: an append-only store on loopback, without a password. Settings are those of redis.conf."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from headwater.stack.errors import MissingPrograms
from headwater.stack.place import HOST, Place
from headwater.stack.server import Kind, Plan, Server, start_server

__all__ = ["KIND", "SETTINGS", "start"]

SETTINGS = {"bind": HOST, "daemonize": "no", "appendonly": "yes", "save": '""'}


def start(
    directory: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None, within_s: float = 60
) -> Server:
    """Redis in that directory, on a free loopback port unless one is given. Raises StackError."""
    return start_server(KIND, directory, port, settings, within_s)


def _is_made(place: Place) -> bool:
    return (place.home / "data").exists()


def _make(plan: Plan) -> None:
    (plan.place.home / "data").mkdir()


def _command(plan: Plan) -> list[str]:
    program = shutil.which("redis-server")
    if program is None:
        raise MissingPrograms("redis-server is not installed: apt-get install redis-server")
    conf = plan.place.home / "redis.conf"
    settings = {"port": str(plan.ports[0]), "dir": f'"{plan.place.home / "data"}"', **SETTINGS, **plan.settings}
    conf.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    return [program, str(conf)]


def _ask(server: Server) -> str | None:
    """PING; while it reads its file it says that it is loading."""
    try:
        with socket.create_connection((HOST, server.port), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            said = connection.recv(200).decode().strip()
    except OSError as error:
        return str(error)
    return None if said == "+PONG" else said


KIND = Kind(
    name="redis",
    url="redis://{host}:{port}/0",
    account=None,
    make=_make,
    is_made=_is_made,
    command=_command,
    ask=_ask,
)
