"""A change stream to do harm to: a shop's database, the change log, and `headwater` processes that come back.

Everything is real: servers of the local stack, and a process for each of connector, landers and shop.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from headwater.stack.server import Server, kill, restart
from streaming.shop_database.connect import Conflict, Unreachable, open_database
from tests.integration.stack_servers import started

PROJECT = Path(__file__).resolve().parents[2]
# A killed process loses nothing that it has handed to the kernel, so the disk need not be waited for; but what a
# database keeps to itself for a second would be lost at its end, and with it the source that the lake is compared with.
SETTINGS = {
    "postgresql": {"fsync": "off", "wal_sender_timeout": "10s"},
    "mariadb": {"sync_binlog": "0", "innodb_flush_log_at_trx_commit": "2"},
    "kafka": {},
}
MARKERS = 8
_FIRST_MARKER = 10**15
_PATIENCE_S = 90.0


class Stuck(AssertionError):
    """Something did not come within its time."""


@dataclass
class Stand:
    """Servers and processes of one run. `ended` tells of processes that ended unasked."""

    home: Path
    database: Server
    broker: Server | None
    mutation: str | None = None
    catalog: Path = PROJECT / "catalog"
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    shop: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The shop's, with the administrator's password."""
        return f"{self.database.admin_url.rpartition('/')[0]}/shop"

    @property
    def victims(self) -> list[str]:
        """What there is to be killed."""
        servers = ["database", *(["broker"] if self.broker else [])]
        return [name for name in self.processes if name != "shop"] + servers

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
        own = {
            "HOME": self.home,
            "CATALOG": self.catalog,
            "SHOP_URL": f"{self.database.url.rpartition('/')[0]}/shop",
            "SHOP_PASSWORD": self.database.password,
            "LOG_URL": self.broker.url if self.broker else "",
        }
        return {**clean, **{f"HEADWATER_{name}": str(value) for name, value in own.items()}}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start `connector`, `lander-<number>` or the shop again; what it says is in <home>/<name>.log."""
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name), cwd=PROJECT, env=self.environment, stdout=log, stderr=log
            )
        return self.processes[name]

    def command(self, name: str, *more: str) -> list[str]:
        kind = name.partition("-")[0]
        arguments = {"connector": ["capture", "shop"], "lander": ["land", "--every", "0.2"], "shop": self.shop}[kind]
        mutated = self.mutation is not None and kind != "shop"
        program = ["tests.faults.mutated", str(self.mutation)] if mutated else ["headwater.cli"]
        return [sys.executable, "-m", *program, *arguments, *more]

    def open_shop(self, rate: float, seed: int) -> None:
        """The shop lives on in a process that nobody kills. Returns when it has its first customers."""
        place = self.environment["HEADWATER_SHOP_URL"]
        self.shop = ["shop", "run", "--url", place, "--rate", str(rate), "--seed", str(seed)]
        self.start("shop")
        wait_until(lambda: "transactions" in self.last_words("shop"), "the shop is open")

    def kill(self, victim: str) -> None:
        """`kill -9`. Raises Stuck when it had ended by itself before."""
        if victim == "database":
            kill(self.database)
        elif victim == "broker":
            assert self.broker
            kill(self.broker)
        else:
            self.expect_alive(victim)
            self.processes[victim].kill()
            self.processes[victim].wait()

    def revive(self, victim: str) -> None:
        """Start again what was killed."""
        if victim == "database":
            self.database = restart(self.database)
        elif victim == "broker":
            assert self.broker
            self.broker = restart(self.broker)
        else:
            self.start(victim)

    def expect_alive(self, *names: str) -> None:
        """What ended by itself is kept in `ended`, and started again."""
        for name in names or list(self.processes):
            code = self.processes[name].poll()
            if code is not None:
                self.ended.append(f"{name} ended by itself with exit code {code}: {self.last_words(name)}")
                self.start(name)

    def stop(self, name: str) -> int:
        """SIGTERM; the exit code."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Stuck(f"{name} did not stop within {_PATIENCE_S:g} s: {self.last_words(name)}") from None

    def finish(self, name: str) -> int:
        """Run it up to what there is now; the exit code."""
        with (self.home / f"{name}.log").open("ab") as log:
            done = subprocess.run(
                self.command(name, "--once"),
                cwd=PROJECT,
                env=self.environment,
                stdout=log,
                stderr=log,
                check=False,
                timeout=300,
            )
        return done.returncode

    def last_words(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text(errors="replace")[-600:]

    def mark(self, number: int) -> tuple[int, int]:
        """Write rows that spread over the log's partitions; first and last key. Waits for the database."""
        first = _FIRST_MARKER + number * MARKERS
        keys = range(first, first + MARKERS)
        rows = ", ".join(f"({key}, 'marker', now(), now())" for key in keys)

        def written() -> bool:
            try:
                with open_database(self.url) as database:
                    database.execute(f"INSERT INTO customers VALUES {rows}")
            except (Unreachable, Conflict):
                return False
            return True

        wait_until(written, "the database takes rows", every_s=0.2)
        return keys[0], keys[-1]

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


def wait_until(true: Callable[[], bool], what: str, within_s: float = _PATIENCE_S, *, every_s: float = 0.1) -> float:
    """Look until it is so. Returns the seconds that it took. Raises Stuck."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > within_s:
            raise Stuck(f"not within {within_s:g} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - began


@contextmanager
def standing(directory: Path, database: str, *, log: str = "kafka", mutation: str | None = None) -> Iterator[Stand]:
    """Servers in `directory`, and a database `shop` without tables; no process runs yet. All is removed at the end."""
    home = directory / "home"
    home.mkdir(parents=True)
    with ExitStack() as stack:
        server = stack.enter_context(started(database, directory / "database", settings=SETTINGS[database]))
        broker = None
        if log == "kafka":
            broker = stack.enter_context(started("kafka", directory / "kafka", settings=SETTINGS["kafka"]))
        admin = server.admin_url if database == "postgresql" else f"{server.admin_url.rpartition('/')[0]}/mysql"
        with open_database(admin) as connection:
            connection.script("CREATE DATABASE shop")
        stand = Stand(home, server, broker, mutation)
        stack.callback(stand.close)
        yield stand


def say(lines: Sequence[str]) -> None:
    """Raw rows, as they come."""
    for line in lines:
        print(line, flush=True)
