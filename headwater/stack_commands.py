"""Commands for the local stack: up, down."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headwater.errors import Refused
from headwater.output import say
from headwater.session import make_home

if TYPE_CHECKING:
    from catalog.settings import Settings
    from headwater.stack.server import Kind, Server

__all__ = ["down", "up"]

_PRINTED = ("HEADWATER_LOG_URL", "HEADWATER_SHOP_URL", "HEADWATER_SHOP_PASSWORD_FILE")
NAMES = ("postgresql", "mariadb", "kafka", "redis")


def _chosen(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    wanted = [name.strip() for name in value.split(",")] if value else list(NAMES)
    for name in wanted:
        if name not in NAMES:
            raise click.BadParameter(f"found {name!r}, allowed are {', '.join(NAMES)}, divided by commas")
    return tuple(name for name in NAMES if name in wanted)


_only = click.option(
    "--only", "names", metavar="NAMES", callback=_chosen, help="Some of postgresql,mariadb,kafka,redis.  [default: all]"
)


@click.command()
@_only
def up(names: tuple[str, ...]) -> None:
    """Start PostgreSQL, MariaDB, Kafka and Redis; print the settings that use them.

    They run as ordinary processes on loopback, with their data below HEADWATER_HOME/stack, until `headwater down`.
    What runs is left alone and what died is started again, on the same port. Debian packages that are missing are
    installed as root or with sudo. Both databases get a database `shop`, its owner, and a role that may only read and
    capture it.

    \b
    Examples:
      eval "$(headwater up)"
      headwater up --only postgresql,kafka
    """
    directory = make_home(_settings()).home / "stack"
    from headwater.stack.errors import StackError
    from headwater.stack.packages import ensure

    try:
        ensure(*names, say=lambda line: say(f"headwater: {line}"))
        servers = _start_all(names, directory)
    except StackError as error:
        raise Refused(str(error)) from None
    for line in _exports(servers):
        click.echo(line)


@click.command()
@_only
@click.option("--purge", is_flag=True, help="Delete their data too.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
def down(names: tuple[str, ...], purge: bool, yes: bool) -> None:
    """Stop what `headwater up` started; the data is kept for the next time.

    \b
    Examples:
      headwater down
      headwater down --only kafka --purge
    """
    directory = _settings().home / "stack"
    from headwater.stack.place import remove_place

    if purge and not yes:
        click.confirm(f"Delete all data of {', '.join(names)} in {directory}?", abort=True, err=True)
    with ThreadPoolExecutor(len(names)) as pool:
        for line in pool.map(lambda name: _stopped(name, directory / name), names):
            say(line)
    for name in names if purge else ():
        remove_place(directory / name)


def _settings() -> Settings:
    """Without those that `up` printed for this shell: the files that they name may be gone. Raises SettingsError."""
    from catalog.settings import load_settings

    return load_settings({name: value for name, value in os.environ.items() if name not in _PRINTED})


def _servers() -> Mapping[str, tuple[Kind, Callable[[Path], Server]]]:
    from headwater.stack import kafka, mariadb, postgresql, redis

    return {
        "postgresql": (postgresql.KIND, postgresql.start),
        "mariadb": (mariadb.KIND, mariadb.start),
        "kafka": (kafka.KIND, kafka.start),
        "redis": (redis.KIND, redis.start),
    }


def _start_all(names: Sequence[str], directory: Path) -> dict[str, Server]:
    """All at once; the first failure is raised when every one has come to an end. Raises StackError."""
    servers = _servers()

    def start(name: str) -> Server:
        server = servers[name][1](directory / name)
        say(f"{name:<11} {server.url}   (process {server.pid}, log {server.log})")
        return server

    with ThreadPoolExecutor(len(names)) as pool:
        started = {name: pool.submit(start, name) for name in names}
    return {name: future.result() for name, future in started.items()}


def _stopped(name: str, directory: Path) -> str:
    from headwater.stack.server import find_server, stop

    server = find_server(_servers()[name][0], directory)
    if server is None:
        return f"{name:<11} was not running"
    stop(server)
    return f"{name:<11} stopped (process {server.pid})"


def _exports(servers: Mapping[str, Server]) -> Iterator[str]:
    """The settings that use these servers, for a shell; of two databases the second one is a comment."""
    from headwater.stack.shop import make_shop

    shops = {name: make_shop(servers[name]) for name in ("postgresql", "mariadb") if name in servers}
    if "kafka" in servers:
        yield _export("HEADWATER_LOG_URL", servers["kafka"].url)
    for number, (name, shop) in enumerate(shops.items()):
        if number:
            yield f"# or, with {name} as the shop:"
        before = "# " if number else ""
        yield before + _export("HEADWATER_SHOP_URL", shop.capture_url)
        yield before + _export("HEADWATER_SHOP_PASSWORD_FILE", str(shop.capture_password_file))
    for shop in shops.values():
        file = shlex.quote(str(shop.owner_password_file))
        yield f"# to fill it: headwater shop replay --url {shop.owner_url} --password-file {file}"
    if "redis" in servers:
        yield f"# redis: {servers['redis'].url}"


def _export(name: str, value: str) -> str:
    return f"export {name}={shlex.quote(value)}"
