"""`headwater capture` as a process of its own, on the embedded log: for what a thread in the test would hide."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from homes import BIN
from memory_writer import Log
from postgres_capture import Database, wait_until

from catalog import keys
from streaming.log import TopicPartition
from streaming.log_writer import Record
from streaming.record_text import to_bytes
from streaming.sqlite_log import SqliteLog

_SOURCE = """
system: shop
table: {table}
description: A table of a test.
owner: team:tests
domain: tests
columns:
  - {{name: id, type: int64, nullable: false, description: "Key."}}
gate:
  key: [id]
  event_time: id
  freshness_days: 1
"""


class Captured:
    """Tables `id int PRIMARY KEY, ...` of a database, captured from `home`."""

    def __init__(self, database: Database, home: Path, tables: Sequence[str]) -> None:
        self.home, self._database = home, database
        sources = home / "catalog" / "sources"
        sources.mkdir(parents=True)
        for table in tables:
            (sources / f"{table}.yaml").write_text(_SOURCE.format(table=table))

    @property
    def _path(self) -> Path:
        return self.home / "data" / "log.db"

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
        own = {"HOME": self.home / "data", "SHOP_URL": self._database.url, "CATALOG": self.home / "catalog"}
        return {**clean, **{f"HEADWATER_{name}": str(value) for name, value in own.items()}}

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """What it says is in `said`."""
        with (self.home / "said").open("ab") as said:
            return subprocess.Popen([BIN / "headwater", "capture", "shop", *options], env=self.environment, stderr=said)

    def once(self) -> None:
        assert self.start("--once").wait(120) == 0, self.said

    @property
    def said(self) -> str:
        return (self.home / "said").read_text()

    def log(self, table: str) -> Log:
        """The table's topic."""
        topic, path = keys.cdc_topic("shop", table), self._path
        log = SqliteLog(path)
        source = TopicPartition(topic, 0)
        rows = log.read(source, 0, log.end(source))
        log.close()
        columns = (rows[name].to_pylist() for name in rows.column_names)
        found = [
            Record(offset, at, _bytes(key), _bytes(value)) for offset, at, key, value in zip(*columns, strict=True)
        ]
        return {(topic, 0): found}

    def records(self, table: str) -> int:
        """How many there are by now; 0 before there is a log."""
        topic, path = keys.cdc_topic("shop", table), self._path
        if not path.exists():
            return 0
        log = SqliteLog(path)
        try:
            return log.end(TopicPartition(topic, 0)) if log.partitions(topic) else 0
        finally:
            log.close()

    def kill_at(self, table: str, records: int) -> bool:
        """Run until the topic has so many records, then `kill -9`. Returns whether it still ran."""
        process = self.start()
        wait_until(
            lambda: process.poll() is not None or self.records(table) >= records, f"{records} records of {table}"
        )
        running = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        return running


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else to_bytes(text)


def peak_mb(pid: int) -> float:
    """The most memory that the process has had so far, in MB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def cpu_s(pid: int) -> float:
    """CPU time of the process, in s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def first_record(captured: Captured, table: str, records: int) -> float:
    """Seconds until the topic has more records than that."""
    began = time.monotonic()
    wait_until(lambda: captured.records(table) > records, "a record")
    return time.monotonic() - began
