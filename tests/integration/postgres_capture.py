"""A connector on a real PostgreSQL for a test: a database of its own, a thread that captures it, a log in memory."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import psycopg
from memory_writer import Log, MemoryWriter, changes, fold

from headwater.stack.server import Server
from streaming.capture.credentials import Address, parse_address
from streaming.capture.engine import Capture, Options
from streaming.log_writer import LogWriter
from streaming.postgres.pgoutput import parse_lsn
from streaming.postgres.source import PostgresSource

# Nothing here outlives the machine: its disk need not be waited for.
SETTINGS = {"fsync": "off", "wal_sender_timeout": "10s", "autovacuum": "off", "max_prepared_transactions": "5"}
QUICK = Options(flush_s=0.01, checkpoint_s=0.03, heartbeat_s=0.2, poll_s=0.01, look_s=0.2, chunk_rows=200)
WAIT_S = 60.0


def wait_until(true: Callable[[], Any], what: str, within_s: float = WAIT_S) -> None:
    """Look again every few milliseconds."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.01)


class Database:
    """A database that a test has for itself, in a server that tests share."""

    def __init__(self, server: Server, name: str, options: str = "") -> None:
        self.server, self.name = server, name
        with psycopg.connect(server.admin_url, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name} {options}".encode())
        self.url = server.admin_url.rsplit("/", 1)[0] + f"/{name}"
        self.connection = self.connect()

    def connect(self, **more: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True, client_encoding="UTF8", **more)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """No slot of it stays to keep the server's log; a walsender takes a moment to notice that its client left."""
        active = f"SELECT 1 FROM pg_replication_slots WHERE database = '{self.name}' AND active"
        wait_until(lambda: not self(active), "slots are free")
        self(f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{self.name}'")
        self.connection.close()

    @property
    def address(self) -> Address:
        return parse_address(self.url)

    def __call__(self, statement: str) -> list[Any]:
        cursor = self.connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    def rows(self, table: str, columns: str = "*") -> list[dict[str, Any]]:
        return [row for (row,) in self(f"SELECT to_json(x) FROM (SELECT {columns} FROM {table}) x")]

    def end(self) -> int:
        return parse_lsn(self("SELECT pg_current_wal_flush_lsn()")[0][0])


class Connector:
    """What captures a database in a thread. `said` is what it said, `halted` what it stopped with."""

    def __init__(
        self,
        database: Database,
        tables: Sequence[str],
        log: Log | None = None,
        *,
        system: str | None = None,
        options: Options = QUICK,
        address: Address | None = None,
        partitions: int = 3,
    ) -> None:
        self.database, self.log = database, {} if log is None else log
        self.system, self.said = system or database.name, []
        self.source = PostgresSource(self.system, address or database.address, tables, say=self.said.append)
        self.said: list[str]
        self.halted: BaseException | None = None
        self._stop = threading.Event()

        def writer() -> LogWriter:
            return MemoryWriter(self.log, partitions)

        self.capture = Capture(
            self.source, writer, options, topic=self.topic, database=database.name, say=self.said.append
        )
        self._thread = threading.Thread(target=self._run)

    def topic(self, table: str) -> str:
        return f"cdc.{self.system}.{table.split('.')[-1]}"

    def _run(self) -> None:
        try:
            self.capture.run(self._stop)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test is to see it
            self.halted = error

    def start(self) -> Connector:
        self._thread.start()
        return self

    def stop(self) -> Connector:
        self._stop.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self

    def until_halted(self) -> Any:
        self._thread.join(WAIT_S)
        assert self.halted is not None, self.said
        return self.halted

    @property
    def saved(self) -> dict[str, Any]:
        """The last checkpoint."""
        kept = self.log.get((f"capture.{self.system}.state", 0))
        found: dict[str, Any] = json.loads(json.loads(kept[-1].value or b"")["body"]) if kept else {}
        return found

    def caught_up(self) -> Connector:
        """Wait until everything that is committed now is in the log, snapshots included."""
        end = self.database.end()

        def done() -> bool:
            assert self.halted is None, repr(self.halted)
            saved = self.saved
            tables = saved.get("tables", {}).values()
            return bool(
                saved and saved["resume"]["lsn"] >= end and tables and all(t["state"] == "done" for t in tables)
            )

        wait_until(done, f"caught up with {end:X}; said {self.said}")
        return self

    def heard(self, text: str) -> bool:
        return any(text in said for said in self.said)

    def changes(self, table: str) -> list[dict[str, Any]]:
        return [change for _, _, change in changes(self.log, self.topic(table))]

    def schemas(self, table: str) -> list[dict[str, Any]]:
        """The versions of its schema that were recorded."""
        kept = self.log.get((f"capture.{self.system}.schemas", 0), ())
        found = [json.loads(record.value or b"") for record in kept]
        return [one for one in found if one["table"] == table]

    def fold(self, table: str) -> list[dict[str, Any]]:
        return list(fold(self.log, self.topic(table)).values())


@contextmanager
def capturing(database: Database, *tables: str, **more: Any) -> Iterator[Connector]:
    """Capture while the test goes on."""
    connector = Connector(database, tables, **more).start()
    try:
        yield connector
    finally:
        connector.stop()


def same(found: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> bool:
    """Whether these are the same rows, in any order."""

    def ordered(rows: Sequence[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps(row, sort_keys=True) for row in rows)

    return ordered(found) == ordered(wanted)
