"""Debezium's engine as a process: its jars, its settings for a server of the local stack, start, usage, stop.

The jars come from Maven, once per machine, and the one Java class beside this file is compiled once for each content,
by a compiler that is itself such a jar: a machine that runs Kafka has a Java, but not always a JDK.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.usage import Usage, usage_of
from headwater.stack.java import java
from headwater.stack.maven import jars
from headwater.stack.process import Process, is_alive, kill, spawn, terminate
from headwater.stack.server import Server

__all__ = [
    "COMPARABLE",
    "VERSION",
    "Engine",
    "EngineFailed",
    "compiled",
    "mariadb_settings",
    "postgresql_settings",
    "start",
]

VERSION = "3.4.0.Final"
_ARTIFACTS = (
    f"io.debezium:debezium-embedded:{VERSION}",
    f"io.debezium:debezium-connector-postgres:{VERSION}",
    f"io.debezium:debezium-connector-mariadb:{VERSION}",
    "org.slf4j:slf4j-simple:1.7.36",
)
_COMPILER = ("org.eclipse.jdt:ecj:3.40.0",)
_SOURCE = Path(__file__).with_name("PeerEngine.java")

# What makes its records comparable with ours: see docs/reference/envelope.md.
COMPARABLE: Mapping[str, str] = {
    "key.converter.schemas.enable": "false",
    "value.converter.schemas.enable": "false",
    "decimal.handling.mode": "string",
    "binary.handling.mode": "base64",
    "time.precision.mode": "microseconds",
    "provide.transaction.metadata": "true",
    "tombstones.on.delete": "true",
}


class EngineFailed(RuntimeError):
    """It ended, or did not say what was waited for; the message has the end of its log."""


def compiled() -> str:
    """The class path with Debezium's jars and our class. Raises DownloadFailed, MissingPrograms, EngineFailed."""
    folder = jars("debezium", _ARTIFACTS)
    every_jar = ":".join(str(jar) for jar in sorted(folder.glob("*.jar")))
    classes = folder / f"peer-{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]}"
    if not classes.is_dir():
        unfinished = classes.with_suffix(f".{os.getpid()}")
        compiler = next(jars("ecj", _COMPILER).glob("ecj-*.jar"))
        command = [str(java()), "-jar", str(compiler), "-17", "-cp", every_jar, "-d", str(unfinished), str(_SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise EngineFailed(f"tried to compile {_SOURCE.name}, found: {(done.stdout + done.stderr)[-2000:]}")
        if not classes.is_dir():
            unfinished.rename(classes)
    return f"{classes}:{every_jar}"


def postgresql_settings(server: Server, database: str, tables: Sequence[str], **more: str) -> dict[str, str]:
    """The PostgreSQL connector on tables `schema.table`, as the administrator; `more` overrides."""
    return _connector_settings(server, tables) | {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "plugin.name": "pgoutput",
        "database.dbname": database,
        "slot.name": "debezium_peer",
        "publication.name": "debezium_peer",
        "publication.autocreate.mode": "filtered",
        **_dotted(more),
    }


def mariadb_settings(server: Server, database: str, tables: Sequence[str], **more: str) -> dict[str, str]:
    """The MariaDB connector on tables `database.table`, as the administrator; `more` overrides."""
    return _connector_settings(server, tables) | {
        "connector.class": "io.debezium.connector.mariadb.MariaDbConnector",
        "database.include.list": database,
        "database.server.id": "5401",
        "schema.history.internal": "io.debezium.storage.file.history.FileSchemaHistory",
        "schema.history.internal.file.filename": "schema-history.dat",
        "include.schema.changes": "false",
        **_dotted(more),
    }


def _connector_settings(server: Server, tables: Sequence[str]) -> dict[str, str]:
    parts = urlsplit(server.admin_url)
    return {
        **COMPARABLE,
        "name": "peer",
        "database.hostname": str(parts.hostname),
        "database.port": str(server.port),
        "database.user": str(parts.username),
        "database.password": server.password,
        "table.include.list": ",".join(tables),
        "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
        "offset.storage.file.filename": "offsets.dat",
        "offset.flush.interval.ms": "1000",
        "producer.acks": "all",
        "producer.enable.idempotence": "true",
        "producer.compression.type": "lz4",
    }


def _dotted(more: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "."): value for name, value in more.items()}


@dataclass(frozen=True)
class Engine:
    """A running engine; its offsets stay in `directory`, so that a second one there goes on where it stopped."""

    directory: Path
    process: Process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> Path:
        return self.directory / "engine.log"

    def usage(self) -> Usage:
        """CPU time since its start and peak memory. Raises ProcessLookupError when it has ended."""
        return usage_of(self.pid)

    def wait_until_polling(self, within_s: float = 60) -> None:
        """Return when it reads the stream or a snapshot. Raises EngineFailed."""
        self._wait_for("polling after", within_s)

    def stop(self, within_s: float = 60) -> None:
        """SIGTERM; offsets of what was sent are written."""
        if not terminate(self.process, signal.SIGTERM, within_s):
            kill(self.process)

    def kill(self) -> None:
        """`kill -9`."""
        kill(self.process)

    def _wait_for(self, line: str, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while line not in self.said():
            if not is_alive(self.process):
                raise EngineFailed(f"Debezium ended before it said `{line}`: {self.said()[-3000:]}")
            if time.monotonic() > deadline:
                raise EngineFailed(f"Debezium did not say `{line}` within {within_s:g} s: {self.said()[-3000:]}")
            time.sleep(0.05)

    def said(self) -> str:
        """What it wrote since this start."""
        with self.log.open() as log:
            log.seek(int((self.directory / "log.start").read_text()))
            return log.read()


def start(directory: Path, settings: Mapping[str, str], bootstrap: str, *, log_level: str = "warn") -> Engine:
    """Start it with its files in `directory`; topics must exist. Java's own defaults for heap and collector."""
    directory.mkdir(parents=True, exist_ok=True)
    all_settings = {"topic.prefix": "peer", **settings, "producer.bootstrap.servers": bootstrap}
    file = directory / "engine.properties"
    file.touch(mode=0o600)
    file.write_text("".join(f"{name}={value}\n" for name, value in all_settings.items()))
    log = directory / "engine.log"
    (directory / "log.start").write_text(str(log.stat().st_size if log.exists() else 0))
    logging = f"-Dorg.slf4j.simpleLogger.defaultLogLevel={log_level}"
    process = spawn(
        [str(java()), logging, "-cp", compiled(), "PeerEngine", file.name],
        record=directory / "process",
        log=log,
        directory=directory,
        environment={"PATH": os.defpath, "LANG": "C.UTF-8", "TZ": "UTC", "HOME": str(directory)},
    )
    return Engine(directory, process)
