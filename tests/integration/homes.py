"""Homes that real `headwater` processes work on, and the shops' files that they replay.

Nothing is imported from the product that the processes run; what is read back is read from the lake, the registry and
Dagster's own instance.
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import duckdb
import orjson
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from catalog.keys import Key
from lake.tables import Lake
from streaming.simulator import simulate

PROJECT = Path(__file__).resolve().parents[2]
RETAIL = PROJECT / ".." / "shared" / "data" / "online_retail.parquet"
BIN = Path(sys.executable).parent
# With these, both models beat their baselines on `small_shop` with something to spare. The project's own settings are
# chosen on the real file, and may be chosen anew.
PINNED: Mapping[str, Mapping[str, Any]] = {
    "churn": {
        "algorithm": "lightgbm",
        "parameters": {"n_estimators": 100, "learning_rate": 0.05, "num_leaves": 4, "min_child_samples": 100},
    },
    "clv": {
        "algorithm": "hist_gradient_boosting",
        "parameters": {"loss": "absolute_error", "max_iter": 150, "learning_rate": 0.05, "max_leaf_nodes": 8},
        "offset": None,
    },
}

T = TypeVar("T")


@dataclass(frozen=True)
class Done:
    """A finished command; what it said is shown when a test fails."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out[-3000:]}\n--- stderr\n{self.err[-6000:]}"


@dataclass(frozen=True)
class Home:
    """A HEADWATER_HOME with the other settings that its processes get."""

    path: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    def set(self, **settings: str) -> Home:
        """The same home under further settings, without their prefix: `set(NOW="2024-11-15")`."""
        return Home(self.path, {**self.settings, **{f"HEADWATER_{name}": value for name, value in settings.items()}})

    def copy(self, to: Path) -> Home:
        """Another home with the same content. Not for training: MLflow keeps absolute paths of its runs' files."""
        shutil.copytree(self.path, to, symlinks=True)  # the served version is a link
        return Home(to, self.settings)

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with none of its own settings."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HEADWATER_", "DAGSTER_", "DBT_"))}
        return {**kept, **self.settings, "HEADWATER_HOME": str(self.path), "DAGSTER_HOME": str(self.path / "dagster")}

    def command(self, program: str, *arguments: str) -> Done:
        """Run a program of the environment to its end."""
        done = subprocess.run(
            [str(BIN / program), *arguments],
            cwd=PROJECT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def headwater(self, *arguments: str) -> Done:
        return self.command("headwater", *arguments)

    def succeeds(self, *arguments: str) -> Done:
        """`headwater ARGUMENTS`, which must exit with 0."""
        done = self.headwater(*arguments)
        assert done.code == 0, done
        return done

    @contextmanager
    def started(self, program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A program that runs meanwhile, with its output in `<home>/<program>.log`; killed at the end if need be."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / f"{program}.log").open("a") as log:
            process = subprocess.Popen(
                [str(BIN / program), *arguments], cwd=PROJECT, env=self.environment, stdout=log, stderr=log, text=True
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()

    @property
    def lake(self) -> Lake:
        return Lake(self.path / "lake")

    @property
    def tables(self) -> list[Key]:
        return self.lake.keys()

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads((self.path / "summary.json").read_bytes())
        return found

    def rows(self) -> dict[str, int]:
        """Rows of every table, by dotted name."""
        return {key.dotted: self.lake.rows(key) for key in self.tables}

    def versions(self) -> dict[str, int | None]:
        """Delta versions of every table, by dotted name."""
        return {key.dotted: self.lake.version(key) for key in self.tables}

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """A query over the tables, in this process."""
        with self.lake.connect() as db:
            return db.sql(query).fetchall()

    def registered(self) -> dict[str, list[str]]:
        """Versions of every model in MLflow's registry, oldest first."""
        with closing(sqlite3.connect(self.path / "mlflow.db")) as db:
            found = db.execute("SELECT name, version FROM model_versions ORDER BY name, version").fetchall()
        return {name: [str(version) for n, version in found if n == name] for name, _ in found}

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """The Dagster instance that its processes write to."""
        with dg.DagsterInstance.from_config(str(self.path / "dagster")) as instance:
            yield instance


def differing_rows(one: Home, other: Home, key: Key, where: str = "true") -> int:
    """How many rows of a table only one of two homes has (of `one`, those that fulfil `where`); duplicates count."""
    with duckdb.connect() as db:
        left, right = (home.lake.scan_sql(key) for home in (one, other))
        columns = db.sql(f"SELECT * FROM {left}").columns
        assert db.sql(f"SELECT * FROM {right}").columns == columns, key
        kept = f"SELECT * FROM {left} WHERE {where}"
        missing = f"({kept} EXCEPT ALL SELECT * FROM {right}) UNION ALL (SELECT * FROM {right} EXCEPT ALL {kept})"
        return int(db.sql(f"SELECT count(*) FROM ({missing})").fetchall()[0][0])


def small_catalog(at: Path) -> Path:
    """The project's declarations with the models' settings PINNED."""
    shutil.copytree(PROJECT / "catalog", at, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    yaml = YAML()
    for name, settings in PINNED.items():
        file = at / "models" / f"{name}.yaml"
        declared = yaml.load(file)
        declared.update(settings)
        yaml.dump({key: value for key, value in declared.items() if value is not None}, file)
    return at


def uci_table(lines: pa.Table) -> pa.Table:
    """Normalised lines (streaming.retail.LINE_SCHEMA) in the columns of the UCI Online Retail file, and LandedAt."""
    with duckdb.connect() as db:
        db.register("lines", lines)
        return db.sql(
            """SELECT invoice_no AS "InvoiceNo", stock_code AS "StockCode", description AS "Description",
                quantity AS "Quantity", invoiced_at AS "InvoiceDate", unit_price_gbp AS "UnitPrice",
                customer_id AS "CustomerID", country AS "Country", landed_at AS "LandedAt" FROM lines"""
        ).to_arrow_table()


def small_shop() -> pa.Table:
    """A shop of other years than the UCI file's, in its columns: small, without drift, and with everything that is odd.

    Late lines, a month in which nothing happens, two dozen customers (above 90000) with a single purchase, and seven
    lines that break the contract: no stock code, or no quantity.
    """
    start = datetime(2017, 3, 1)
    with duckdb.connect() as db:
        db.register("lines", uci_table(simulate(13, 8000, drift=False, start=start).lines))
        db.execute(
            f"""CREATE TABLE open AS SELECT *, row_number() OVER () AS n FROM lines
            WHERE "InvoiceDate" NOT BETWEEN '{start + timedelta(days=170)}' AND '{start + timedelta(days=200)}'"""
        )
        return db.sql(
            """
            SELECT * EXCLUDE (n) REPLACE (
                CASE WHEN n % 2000 <> 500 THEN "StockCode" END AS "StockCode",
                CASE WHEN n % 2000 <> 1500 THEN "Quantity" END AS "Quantity")
            FROM open
            UNION ALL BY NAME
            SELECT * EXCLUDE (n) REPLACE ('Z' || n AS "InvoiceNo", 90000 + n AS "CustomerID")
            FROM open WHERE "CustomerID" IS NOT NULL AND "Quantity" > 0 AND "UnitPrice" > 0 AND n % 211 = 0
            ORDER BY "InvoiceDate", "InvoiceNo"
            """
        ).to_arrow_table()


def write_parquet(table: pa.Table, path: Path) -> Path:
    pq.write_table(table, path)
    return path


def write_csv(table: pa.Table, path: Path) -> Path:
    """As the UCI file is exported: month/day/year hours:minutes."""
    with duckdb.connect() as db:
        db.register("lines", table)
        written = db.sql(
            """SELECT * REPLACE (strftime("InvoiceDate", '%-m/%-d/%Y %-H:%M') AS "InvoiceDate",
                strftime("LandedAt", '%-m/%-d/%Y %-H:%M') AS "LandedAt") FROM lines"""
        )
        csv.write_csv(written.to_arrow_table(), path)
    return path


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])


def wait_for(what: str, look: Callable[[], T | None], within_s: float = 120, every_s: float = 0.5) -> T:
    """Look until something is found; fails after the deadline with what was awaited."""
    deadline = time.monotonic() + within_s
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise AssertionError(f"within {within_s:g} s there was no {what}")
        time.sleep(every_s)
    return found
