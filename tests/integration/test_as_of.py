"""The lake as of an instant is the lake that was built at that instant, every table of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner

from catalog import keys
from catalog.keys import Key
from catalog.load import load_catalog
from catalog.settings import CATALOG_DIR, Settings, load_settings
from headwater.cli import cli
from lake import Lake
from lake.as_of import AsOf, MadeTable
from lake.dbt_compiled import DbtCompileError, compiled_tables
from lake.query import query
from lake.schema import DBT_PROJECT_DIR
from lake.warehouse import dbt_args, dbt_environment, publish, refresh_sources
from streaming.landing import land
from streaming.replay import replay
from streaming.simulator import simulate
from streaming.sqlite_log import SqliteLog

SOURCES = load_catalog(CATALOG_DIR).sources
RAW = [keys.raw(source.system, source.table) for source in SOURCES]


@dataclass(frozen=True)
class Shop:
    """A home in which everything has landed, and one that was built at `instant` by the whole of dbt."""

    instant: datetime
    now: Settings
    then: Lake
    tables: Mapping[Key, MadeTable]

    def as_of(self, table: Key, *, event_time: bool = False) -> pa.Table:
        found = AsOf(self.instant, event_time, lambda: self.tables)
        return query(Lake(self.now.lake_dir), f"SELECT * FROM {table.dotted} ORDER BY ALL", as_of=found)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    lines = _with_late_ones(simulate(seed=5, lines=3_000).lines)
    instant = sorted(lines["landed_at"].to_pylist())[lines.num_rows // 2]
    then = load_settings({"HEADWATER_HOME": str(tmp_path_factory.mktemp("then"))})
    now = load_settings({"HEADWATER_HOME": str(tmp_path_factory.mktemp("now"))})
    for settings, until in ((then, instant), (now, None)):
        with closing(SqliteLog(settings.log_path)) as log:
            replay(lines, log, settings.replay_path, until)
            for source in SOURCES:
                land(source, log, Lake(settings.lake_dir), 100_000)
    tables = compiled_tables(now.home / "dbt" / "compiled.json")
    _build(then, list(tables))
    return Shop(instant, now, Lake(then.lake_dir), tables)


def _with_late_ones(lines: pa.Table) -> pa.Table:
    """Every seventh line lands three days after it was booked."""
    booked = lines["invoiced_at"].to_pylist()
    landed = [at + timedelta(days=0 if number % 7 else 3) for number, at in enumerate(booked)]
    return lines.set_column(
        lines.schema.get_field_index("landed_at"), "landed_at", pa.array(landed, pa.timestamp("us"))
    )


def _build(settings: Settings, tables: list[Key]) -> None:
    lake = Lake(settings.lake_dir)
    refresh_sources(settings.warehouse_path, lake, RAW)
    done = subprocess.run(
        [sys.executable, "-m", "dbt.cli.main", *dbt_args("run", home=settings.home)],
        cwd=DBT_PROJECT_DIR,
        env={**os.environ, **dbt_environment(settings.warehouse_path), "DBT_PROFILES_DIR": str(DBT_PROJECT_DIR)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    publish(settings.warehouse_path, lake, tables)


def test_every_table_as_of_an_instant_is_what_was_built_then(shop: Shop) -> None:
    assert {key.layer for key in shop.tables} == {"staging", "marts", "features"}
    for table in (*shop.tables, *RAW):
        with shop.then.connect([table]) as db:
            built = db.sql(f"SELECT * FROM {table.dotted} ORDER BY ALL").to_arrow_table()
        assert built.num_rows, table
        assert shop.as_of(table).equals(built), table


def test_by_event_time_what_landed_late_counts_when_it_happened(shop: Shop) -> None:
    lines = keys.raw("shop", "order_lines")
    every = Lake(shop.now.lake_dir).read(lines, ["event_at", "landed_at"])
    happened, landed = (pc.less_equal(every[name], pa.scalar(shop.instant)) for name in ("event_at", "landed_at"))
    late = pc.sum(pc.and_not(happened, landed)).as_py()
    assert late
    assert shop.as_of(lines, event_time=True).num_rows - shop.as_of(lines).num_rows == late
    orders = Key("marts", "sales", "orders")
    assert shop.as_of(orders, event_time=True).num_rows >= shop.as_of(orders).num_rows


def test_the_command_asks_for_an_instant(shop: Shop) -> None:
    asked = "SELECT count(*) AS n FROM marts.sales.orders JOIN raw.shop.orders USING (invoice_no) WHERE change_op = 'c'"
    arguments = ["sql", asked, "--as-of", shop.instant.isoformat(), "--format", "json"]
    done = CliRunner().invoke(cli, arguments, env={"HEADWATER_HOME": str(shop.now.home)})
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == [{"n": shop.then.rows(Key("marts", "sales", "orders"))}]


def test_dbts_sql_is_compiled_again_when_the_project_has_changed(shop: Shop, tmp_path: Path) -> None:
    cache = shop.now.home / "dbt" / "compiled.json"
    kept = cache.stat().st_mtime_ns
    assert compiled_tables(cache) == shop.tables
    assert cache.stat().st_mtime_ns == kept
    with pytest.raises(DbtCompileError, match=r"dbt_project\.yml"):  # another project: it has to be compiled
        compiled_tables(cache, tmp_path)
