"""What `headwater status` says of a real embedded log, a real lake and a connector's status file."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from catalog.load import Catalog, load_catalog
from catalog.settings import CATALOG_DIR, Settings, load_settings
from headwater.cli import cli
from lake import Lake
from streaming.capture.service import status_path
from streaming.dead_letters import Origin, dead_letter, letters, put, replay
from streaming.landing import GROUP, land
from streaming.prometheus import prometheus_text
from streaming.sqlite_log import SqliteLog
from streaming.sqlite_writer import SqliteWriter
from streaming.stream_status import StreamStatus, stream_status

NOW = datetime(2024, 5, 1, 12)
MINUTE = timedelta(minutes=1)
TOLD = {
    "state": "streaming", "resume": {"lsn": 7}, "position": 7, "epoch": 1, "rows": 12,
    "last_event_us": 1, "level_us": 1_700_000_000_000_000, "behind": False, "row_bytes": 2.0, "tables": {},
    "retained": {"behind_bytes": 3, "retained_bytes": 9, "limit_bytes": 10, "end": 9}, "problem": None,
    "at_us": 1_700_000_000_000_000, "pid": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog(CATALOG_DIR)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    url = "postgresql://capture@localhost:5432/shop"
    return load_settings({"HEADWATER_HOME": str(tmp_path), "HEADWATER_SHOP_URL": url})


def product(at: datetime, code: str = "A1") -> pa.Table:
    us = int((at - datetime(1970, 1, 1)).total_seconds() * 1e6)
    row = {"stock_code": code, "description": None, "list_price_gbp": 1.5, "updated_at": us}
    source = {"ts_us": us, "ts_ms": us // 1000, "lsn": us, "txId": 1}
    value = {"before": None, "after": row, "op": "c", "source": source, "ts_ms": us // 1000, "ts_us": us}
    return pa.table({"key": [json.dumps({"stock_code": code})], "value": [json.dumps(value)], "timestamp_us": [us]})


def looked_at(settings: Settings, catalog: Catalog, log: SqliteLog) -> StreamStatus:
    return stream_status(settings, catalog, log, Lake(settings.lake_dir), NOW)


def test_a_consumer_that_stands_still_is_a_problem_and_one_that_is_on_time_is_none(settings, catalog):
    products = next(source for source in catalog.sources if source.table == "products")
    with SqliteLog(settings.log_path) as log:
        log.append({"cdc.shop.products": product(NOW - 11 * 60 * MINUTE)})
        land(products, log, Lake(settings.lake_dir), 100)
        log.append({"cdc.shop.products": product(NOW - MINUTE / 6, "A2")})
        (found,) = [c for c in looked_at(settings, catalog, log).consumers if c.topic == "cdc.shop.products"]
        assert (found.rows, found.lag_rows, found.lag_s, found.problem) == (1, 1, 10.0, None)
        assert (found.last_event_at, found.rows_per_s) == (NOW - 11 * 60 * MINUTE, pytest.approx(1 / 60, abs=0.05))
        log.append({"cdc.shop.products": product(NOW, "A3")})
        status = stream_status(settings, catalog, log, Lake(settings.lake_dir), NOW + MINUTE)
        (found,) = [c for c in status.consumers if c.topic == "cdc.shop.products"]
        assert (found.group, found.lag_rows, found.lag_s) == (GROUP, 2, 70.0)
        assert found.problem == "the first of 2 records not landed is 70 s old"
        assert any("headwater land" in line for line in status.problems)
        metrics, at = prometheus_text(status), 'group="landing",topic="cdc.shop.products"'
        for family in ("lag_rows{%s} 2", 'consumer_position{%s,partition="cdc.shop.products-0"} 1'):
            assert f"headwater_{family % at}\n" in metrics
        assert f"headwater_consumer_last_event_seconds{{{at}}} {1714564800 - 11 * 3600}.0\n" in metrics


def test_a_source_that_never_ran_has_stopped_or_was_halted_says_what_to_do(settings, catalog):
    with SqliteLog(settings.log_path) as log:
        (source,) = looked_at(settings, catalog, log).sources
        assert (source.state, source.problem) == ("never ran", "no connector has run here")
        path = status_path(settings, "shop")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(TOLD))
        (source,) = looked_at(settings, catalog, log).sources
        assert (source.state, source.running, source.retained_bytes) == ("stopped", False, 9)
        assert source.problem is not None
        assert source.problem.startswith("no connector is running since 2023-11-14 22:13:20; the server keeps 9 bytes")
        bare = {"found": "no replica identity", "remedy": "ALTER TABLE ...", "runbook": "postgresql_replica_identity"}
        path.write_text(json.dumps({**TOLD, "refused": {"public.bare": bare}}))
        status = looked_at(settings, catalog, log)
        (line,) = [line for line in status.problems if line.startswith("source shop, table public.bare: not captured")]
        assert "no replica identity. ALTER TABLE ... (docs/runbooks/postgresql_replica_identity.md)" in line
        assert (source.lag_bytes, source.lag_rows) == (3, 2)
        assert (source.lag_s or 0) > 1e6, "since it was in step, by the system's clock"
        assert 'headwater_capture_position{system="shop"} 7\n' in prometheus_text(looked_at(settings, catalog, log))
        path.write_text(json.dumps({**TOLD, "halted": "the slot is gone"}))
        (source,) = looked_at(settings, catalog, log).sources
        assert (source.problem or "").startswith("the slot is gone; the server keeps 9 bytes")


def test_without_a_database_there_is_no_source(settings, catalog, tmp_path):
    embedded = load_settings({"HEADWATER_HOME": str(tmp_path)})
    with SqliteLog(settings.log_path) as log:
        status = looked_at(embedded, catalog, log)
    assert list(status.sources) == []
    assert status.problems == []
    assert json.dumps(status.as_json(), default=str)


def test_dead_letters_are_a_problem_until_they_were_put_through(settings, catalog):
    at, lost = 1_700_000_000_000_000, Origin("shop", "cdc.shop.products", 0, None, (1, 7, 2))
    with SqliteLog(settings.log_path) as log, closing(SqliteWriter(settings.log_path)) as writer:
        assert [each.waiting for each in looked_at(settings, catalog, log).dead_letters] == [{}]
        put([dead_letter(lost, "too large", key=b"{}", value=b"{}", timestamp_us=at, at_us=at)], writer)
        writer.flush()
        status = looked_at(settings, catalog, log)
        assert [each.waiting for each in status.dead_letters] == [{"products": 1}]
        (line,) = [line for line in status.problems if line.startswith("dead letters")]
        assert "1 records could not be carried (1 of products)" in line
        assert "headwater dlq replay shop --yes" in line
        assert 'headwater_dead_letters{system="shop",table="products"} 1' in prometheus_text(status)
        replay(letters(log, "shop"), log, writer, at)
        assert [each.waiting for each in looked_at(settings, catalog, log).dead_letters] == [{}]


def test_with_the_log_away_the_connectors_side_is_shown(settings):
    home = {"HEADWATER_HOME": str(settings.home), "HEADWATER_SHOP_URL": "postgresql://capture@127.0.0.1:1/shop"}
    path = status_path(settings, "shop")
    path.parent.mkdir()
    done = {"public.orders": {"state": "done", "rows": 41, "cursor": None}}
    place = {"file": "binlog.000003", "pos": 41, "gtid": "0-1-7", "server": "server 1 on db:3306"}
    path.write_text(json.dumps({**TOLD, "tables": done, "resume": place}))
    settings.log_path.write_text("this is no change log")
    shown = CliRunner().invoke(cli, ["status"], env=home)
    assert shown.exit_code == 1
    assert "public.orders  done" in shown.stdout
    assert "  binlog.000003:41  " in shown.stdout
    assert f"change log {settings.log_path}" in shown.stderr
    assert "set HEADWATER_LOG_URL to where it is" in shown.stderr
    assert "source shop: no connector is running since" in shown.stderr
    metrics = CliRunner().invoke(cli, ["status", "--prometheus"], env=home).stdout
    assert "headwater_log_problem 1.0" in metrics
