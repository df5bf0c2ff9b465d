"""Real databases for the shop's tests, what a shop's content is as hashes, and `headwater shop` as a process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from homes import BIN
from stack_servers import ask_mariadb, ask_postgresql, started

from headwater.stack.server import Server
from streaming.shop_database.compare import content_hash, source_rows
from streaming.shop_database.ddl import SHOP

DATABASES = ("postgresql", "mariadb")
# Nothing here outlives the server's machine: its disk need not be waited for.
SETTINGS = {
    "postgresql": {"fsync": "off"},
    "mariadb": {"sync_binlog": "0", "innodb_flush_log_at_trx_commit": "0"},
}
Hashes = dict[str, str]


@dataclass
class Databases:
    """A server, and as many databases in it as tests need."""

    server: Server
    name: str
    made: int = 0

    def new(self) -> str:
        self.made += 1
        ask = ask_postgresql if self.name == "postgresql" else ask_mariadb
        ask(self.server, f"CREATE DATABASE shop{self.made}")
        url: str = self.server.admin_url
        return f"{url.rpartition('/')[0]}/shop{self.made}"

    def new_without_password(self) -> tuple[str, str]:
        """The URL, and the password that belongs into the settings."""
        return without_password(self.new())


@contextmanager
def running(name: str, directory: Path) -> Iterator[Databases]:
    """A server for the tests of one module."""
    with started(name, directory, settings=SETTINGS[name]) as server:
        yield Databases(server, name)


def hashes(url: str) -> Hashes:
    return {table.name: content_hash(source_rows(url, table.name)) for table in SHOP}


def without_password(url: str) -> tuple[str, str]:
    place, _, host = url.rpartition("@")
    scheme, _, account = place.partition("://")
    user, _, password = account.partition(":")
    return f"{scheme}://{user}@{host}", password


def command(url: str, home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    place, password = without_password(url)
    environment |= {"HEADWATER_HOME": str(home), "HEADWATER_SHOP_PASSWORD": password}
    return subprocess.Popen(
        [BIN / "headwater", "shop", *arguments, "--url", place],
        env={**environment, "HEADWATER_SIMULATOR_LINES": "6000", "HEADWATER_SIMULATOR_SEED": "5"},
        stderr=subprocess.PIPE,
        text=True,
    )
