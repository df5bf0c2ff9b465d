"""Our connector and Debezium's engine: processes that capture the benchmark's table, each into a topic of its own."""

from __future__ import annotations

import os
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from bench.capture.table import DATABASE, SOURCE_YAML, TABLE
from bench.debezium import engine
from bench.usage import Usage, usage_of
from headwater.stack.place import HOST
from headwater.stack.process import Process, is_alive, kill, spawn, terminate
from headwater.stack.server import Server

__all__ = ["Connector", "ConnectorEnded", "Debezium", "Ours"]

_WITHIN_S = 60.0


class ConnectorEnded(RuntimeError):
    """The process is gone; the message has the end of what it wrote."""


class Connector(Protocol):
    """A connector that can be started again and again, and goes on where it was."""

    who: str
    topic: str
    slot: str
    publication: str

    def start(self) -> float:
        """Start the process. Returns the monotonic instant just before."""
        ...

    def usage(self) -> Usage:
        """Of the process since it started."""
        ...

    def alive(self) -> None:
        """Raises ConnectorEnded."""
        ...

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that does not help."""
        ...

    def kill(self) -> None:
        """`kill -9`, whatever it is doing; nothing when it does not run."""
        ...


class _OneProcess:
    """What both have in common."""

    def __init__(self, name: str, directory: Path) -> None:
        self._name, self._directory = name, directory / name
        self._directory.mkdir()
        self._log = self._directory / "log"
        self._process: Process | None = None

    def _running(self) -> Process:
        if self._process is None or not is_alive(self._process):
            said = self._log.read_text(errors="replace")[-3000:] if self._log.exists() else ""
            raise ConnectorEnded(f"{self._name} does not run: {said}")
        return self._process

    def usage(self) -> Usage:
        return usage_of(self._running().pid)

    def alive(self) -> None:
        self._running()

    def stop(self) -> None:
        if self._process is not None and not terminate(self._process, signal.SIGTERM, _WITHIN_S):
            kill(self._process)
        self._process = None

    def kill(self) -> None:
        if self._process is not None:
            kill(self._process)
        self._process = None


class Ours(_OneProcess):
    """`headwater capture`, in a home and with a catalog of its own."""

    who = "ours"

    def __init__(self, name: str, kind: str, server: Server, kafka: Server, directory: Path, partitions: int) -> None:
        super().__init__(name, directory)
        self.topic = f"cdc.{name}.{TABLE}"
        self.slot = self.publication = f"headwater_{name}"
        sources = self._directory / "catalog" / "sources"
        sources.mkdir(parents=True)
        (sources / f"{TABLE}.yaml").write_text(SOURCE_YAML.format(system=name))
        (self._directory / "catalog" / "models").mkdir()
        self._environment = {
            "PATH": os.defpath,
            "HOME": str(self._directory),
            "HEADWATER_HOME": str(self._directory / "home"),
            "HEADWATER_CATALOG": str(self._directory / "catalog"),
            "HEADWATER_SHOP_URL": urlunsplit(urlsplit(server.url)._replace(path=f"/{DATABASE}")),
            "HEADWATER_SHOP_PASSWORD": server.password,
            "HEADWATER_LOG_URL": f"kafka://{HOST}:{kafka.port}",
            "HEADWATER_LOG_PARTITIONS": str(partitions),
        }

    def start(self) -> float:
        began = time.monotonic()
        self._process = spawn(
            [str(Path(sys.executable).with_name("headwater")), "capture", self._name],
            record=self._directory / "process",
            log=self._log,
            directory=self._directory,
            environment=self._environment,
        )
        return began


class Debezium(_OneProcess):
    """The asynchronous engine with its own defaults but for what `engine` says and the interval at which it polls."""

    who = "debezium"

    def __init__(
        self, name: str, kind: str, server: Server, kafka: Server, directory: Path, poll_interval_ms: int
    ) -> None:
        super().__init__(name, directory)
        self._log = self._directory / "engine.log"
        schema = "public" if kind == "postgresql" else DATABASE
        self.topic = f"{name}.{schema}.{TABLE}"
        self.slot = self.publication = name
        made = engine.postgresql_settings if kind == "postgresql" else engine.mariadb_settings
        self._bootstrap = f"{HOST}:{kafka.port}"
        self._settings = made(server, DATABASE, [f"{schema}.{TABLE}"]) | {
            "topic.prefix": name,
            "poll.interval.ms": str(poll_interval_ms),
            "provide.transaction.metadata": "false",
        }
        # The messages by which our snapshots find their place are for nobody else: there is no topic for them.
        own = {"slot.name": name, "publication.name": name, "message.prefix.exclude.list": ".*"}
        self._settings |= (
            own if kind == "postgresql" else {"database.server.id": str(5400 + zlib.crc32(name.encode()) % 100_000)}
        )
        engine.compiled()

    def start(self) -> float:
        began = time.monotonic()
        self._process = engine.start(self._directory, self._settings, self._bootstrap).process
        return began
