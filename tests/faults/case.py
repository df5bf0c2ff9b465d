"""What a fault's test works with: a database `shop`, tables that are declared, and `headwater` processes over them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

from catalog.keys import quarantine, raw
from catalog.load import load_catalog
from catalog.settings import Settings, load_settings
from headwater.stack.server import Server
from lake.tables import Lake
from streaming.capture.engine import Options
from streaming.capture.errors import CaptureError
from streaming.capture.service import capture
from streaming.landing_service import Options as LandingOptions
from streaming.landing_service import land_once
from streaming.open_log import open_log
from streaming.shop_database.connect import Conflict, Database, Rejected, open_database
from tests.faults.stand import PROJECT, wait_until
from tests.faults.verdict import TableVerdict, judge
from tests.integration.homes import Done, Home

__all__ = ["Case", "admin_of"]

_DECLARED = """\
system: shop
table: {table}
description: A table of a test.
owner: team:tests
domain: tests
columns:
{columns}
gate:
  key: [{key}]
  event_time: {event_time}
  freshness_days: 1
"""


class Case:
    """Works on the embedded log unless `settings` name another."""

    def __init__(self, server: Server, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        self.server, self.directory = server, directory
        self.catalog = directory / "catalog"
        for folder in ("sources", "models", "gates"):
            (self.catalog / folder).mkdir(parents=True)
        with self.admin() as admin:
            admin.script("CREATE DATABASE shop")
        self._connection: Database | None = None
        self.home = Home(directory / "home", settings or {}).set(CATALOG=str(self.catalog))
        self.move_to(server)

    @property
    def is_postgresql(self) -> bool:
        return self.server.name == "postgresql"

    def either(self, postgresql: str, mariadb: str) -> str:
        """Of two spellings the one of this database."""
        return postgresql if self.is_postgresql else mariadb

    @property
    def url(self) -> str:
        return f"{self.server.admin_url.rpartition('/')[0]}/shop"

    @property
    def lake(self) -> Lake:
        return Lake(self.home.path / "lake")

    def connect(self) -> Database:
        return open_database(self.url)

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """Carry out statements over one connection; the rows of the last one if it is a SELECT."""
        if self._connection is None:
            self._connection = self.connect()
        for statement in statements:
            if statement.startswith("SELECT"):
                return self._connection.query(statement)
            self._connection.script(statement)
        return []

    def forget_connection(self) -> None:
        """The server is or was away."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def declare(self, table: str, columns: str = "id int64, v string", key: str = "id") -> None:
        """Write its catalog/sources/<table>.yaml; the key's columns are not nullable. No key: a table without one."""
        named = [column.split(maxsplit=1) for column in columns.split(", ")]
        nullable = {name: str(name not in key.split(", ")).lower() for name, _ in named}
        lines = [
            f'  - {{name: {name}, type: "{kind}", nullable: {nullable[name]}, description: "A column."}}'
            for name, kind in named
        ]
        text = _DECLARED.format(table=table, columns="\n".join(lines), key=key, event_time=named[0][0])
        text += "" if key else "keyless: true\n"
        (self.catalog / "sources" / f"{table}.yaml").write_text(text)

    def make(self, table: str = "t", rows: int = 3) -> None:
        """A table `id, v` with so many rows, declared."""
        self.sql(f"CREATE TABLE {table} (id int PRIMARY KEY, v varchar(200))")
        self.insert(table, 1, rows)
        self.declare(table)

    def insert(self, table: str, first: int, last: int) -> None:
        series = self.either(f"FROM generate_series({first}, {last}) s", f"FROM seq_{first}_to_{last}")
        number = self.either("s", "seq")
        self.sql(f"INSERT INTO {table} (id, v) SELECT {number}, concat('v', {number}) {series}")

    def move_to(self, server: Server) -> None:
        """From here on the shop is at that server."""
        self.forget_connection()
        self.server = server
        place = f"{server.url.rpartition('/')[0]}/shop"
        self.home = self.home.set(SHOP_URL=place, SHOP_PASSWORD=server.password)

    def log_to(self, broker: Server) -> None:
        """From here on the change log is there."""
        self.home = self.home.set(LOG_URL=broker.url)

    @contextmanager
    def writing(self, change: Callable[[Random], str]) -> Iterator[Callable[[], int]]:
        """Two connections that change rows meanwhile, so many statements by now; what is refused is left out."""
        stop, written = threading.Event(), [0, 0]

        def write(seed: int) -> None:
            rng = Random(seed)
            with self.connect() as database:
                while not stop.is_set():
                    with suppress(Conflict, Rejected):
                        database.script(change(rng))
                        written[seed] += 1

        threads = [threading.Thread(target=write, args=(seed,)) for seed in (0, 1)]
        for thread in threads:
            thread.start()
        try:
            yield lambda: sum(written)
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    # The processes

    def capture(self, **options: Any) -> Done:
        """`headwater capture shop --once`, in this process: a new one takes a second to begin."""
        said: list[str] = []
        try:
            capture(self.settings, "shop", Options(**options), threading.Event(), said.append, once=True)
        except CaptureError as error:
            return Done(1, "", f"{error}")
        return Done(0, "", "\n".join(said))

    def land(self) -> Done:
        """`headwater land --once`, in this process."""
        said: list[str] = []

        def say(event: str, **more: object) -> None:
            said.append(f"{event} {more}")

        with closing(open_log(self.settings)) as log:
            found = land_once(load_catalog(self.catalog).sources, log, self.lake, LandingOptions(), say)
        return Done(int(any(isinstance(each, str) for each in found.values())), "", "\n".join(said))

    @property
    def settings(self) -> Settings:
        return load_settings(self.home.environment)

    def dies(self, point: str, *arguments: str) -> None:
        """A process that gets `kill -9` at a point of tests.faults.dying, and has to come to it."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.dying", point, *arguments],
            cwd=PROJECT,
            env=self.home.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == -signal.SIGKILL, f"it did not come to {point}: {done.stderr[-2000:]}"

    @contextmanager
    def doomed(self, point: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """As `running`, but what happens at a point of tests.faults.dying is seen to by the test."""
        with self.home.started("python", "-m", "tests.faults.dying", point, *arguments) as process:
            yield process

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """`headwater ARGUMENTS` meanwhile; what it says is in `said`. It has to end well on SIGTERM."""
        with self.home.started("headwater", *arguments) as process:
            yield process
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, self.said

    @property
    def said(self) -> str:
        """By the processes that ran meanwhile."""
        return (self.home.path / "headwater.log").read_text()

    def problems(self) -> list[str]:
        """What `headwater status` says is wrong."""
        done = self.home.headwater("status", "--json")
        found: list[str] = json.loads(done.out)["problems"]
        assert done.code == (1 if found else 0), done
        return found

    def halts(self, runbook: str) -> str:
        """It stops, names the runbook, and `headwater status` says so too. Returns what it said."""
        done = self.home.headwater("capture", "shop", "--once")
        assert done.code == 1, done
        assert f"docs/runbooks/{runbook}.md" in done.err, done
        assert (PROJECT / "docs" / "runbooks" / f"{runbook}.md").exists()
        assert any(runbook in problem for problem in self.problems())
        return done.err

    # What came of it

    def sync(self, **options: Any) -> None:
        """Capture and land what there is, and compare."""
        for done in (self.capture(**options), self.land()):
            assert done.code == 0, done
        self.same()

    def verdicts(self) -> list[TableVerdict]:
        return list(judge(self.url, self.lake, self.catalog))

    def same(self) -> None:
        """Row for row as the source, and nothing twice."""
        wrong = [str(found) for found in self.verdicts() if not found.is_right]
        assert not wrong, wrong

    def wait_for_same(self, within_s: float = 60) -> None:
        """It comes to that while processes run."""
        wait_until(lambda: self._comparable() and all(v.is_right for v in self.verdicts()), "as the source", within_s)

    def _comparable(self) -> bool:
        return all(self.lake.exists(raw("shop", file.stem)) for file in (self.catalog / "sources").glob("*.yaml"))

    def history(self, table: str, columns: str = "change_op, id, v") -> list[tuple[Any, ...]]:
        """The changes of a table in the source's order."""
        with self.lake.connect([raw("shop", table)]) as db:
            order = "source_epoch, source_position, source_order, log_partition, log_offset"
            return db.sql(f"SELECT {columns} FROM raw.shop.{table} ORDER BY {order}").fetchall()

    def quarantined(self, table: str) -> list[str]:
        """The reasons."""
        with self.lake.connect([quarantine("shop", table)]) as db:
            return [reason for (reason,) in db.sql(f"SELECT reason FROM quarantine.shop.{table} ORDER BY 1").fetchall()]

    def close(self) -> None:
        """Nothing of it stays in the server."""
        self.forget_connection()
        with self.admin() as admin:
            if self.is_postgresql:
                mine = "FROM pg_replication_slots WHERE database = 'shop'"
                wait_until(lambda: not admin.query(f"SELECT 1 {mine} AND active"), "its slots are free")
                admin.query(f"SELECT pg_drop_replication_slot(slot_name) {mine}")
            admin.script(self.either("DROP DATABASE shop WITH (FORCE)", "DROP DATABASE shop"))

    def admin(self) -> Database:
        return admin_of(self.server)


def admin_of(server: Server) -> Database:
    """The administrator's connection to a server, in its own database."""
    own = {"postgresql": "postgres", "mariadb": "mysql"}[server.name]
    return open_database(f"{server.admin_url.rpartition('/')[0]}/{own}")
