"""What `headwater status` says of tables that cannot be landed, and of what waits in quarantine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from catalog.load import Catalog, load_catalog
from catalog.settings import CATALOG_DIR, Settings, load_settings
from catalog.spec import Source
from headwater.cli import cli
from lake import Lake
from streaming.landing import contract_of, land
from streaming.log import TopicPartition
from streaming.prometheus import prometheus_text
from streaming.sqlite_log import SqliteLog
from streaming.stream_status import StreamStatus, stream_status

NOW = datetime(2024, 5, 1, 12)
US = int((NOW - datetime(1970, 1, 1)).total_seconds() * 1e6)
TOPIC = "cdc.shop.products"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog(CATALOG_DIR)


@pytest.fixture(scope="module")
def products(catalog: Catalog) -> Source:
    return next(source for source in catalog.sources if source.table == "products")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    url = "postgresql://capture@localhost:5432/shop"
    return load_settings({"HEADWATER_HOME": str(tmp_path), "HEADWATER_SHOP_URL": url})


@pytest.fixture
def log(settings: Settings) -> Iterator[SqliteLog]:
    with SqliteLog(settings.log_path) as opened:
        opened.append({TOPIC: product()})
        yield opened


def product(price: float | str = 1.5, commit: int = 0) -> pa.Table:
    """A change; one with a `commit` is at that place."""
    row = {"stock_code": "A1", "description": None, "list_price_gbp": price, "updated_at": US}
    source: dict[str, object] = {"ts_us": US, "lsn": US, "txId": 1}
    source |= {"headwater": {"epoch": 1, "commit": commit, "order": 1}} if commit else {}
    value = {"before": None, "after": row, "op": "c", "source": source, "ts_us": US}
    text = json.dumps(value, separators=(",", ":"))
    return pa.table({"key": ['{"stock_code":"A1"}'], "value": [text], "timestamp_us": [US]})


def told(status: StreamStatus, who: str) -> str:
    """The one line that says what is wrong with it."""
    (line,) = [line for line in status.problems if line.startswith(who)]
    assert json.dumps(status.as_json(), default=str)
    return line


def test_a_table_landed_from_a_log_that_was_lost_is_a_problem(catalog, products, settings, log, tmp_path):
    lake = Lake(settings.lake_dir)
    log.append({TOPIC: product()})
    land(products, log, lake, 100)
    assert [line for line in stream_status(settings, catalog, log, lake, NOW).problems if TOPIC in line] == []
    with SqliteLog(tmp_path / "another.db") as another:
        gone = told(stream_status(settings, catalog, another, lake, NOW), f"landing of {TOPIC}")
        assert "the log has no such topic" in gone
        another.append({TOPIC: product()})
        status = stream_status(settings, catalog, another, lake, NOW)
        assert "landed up to offset 2" in (line := told(status, f"landing of {TOPIC}"))
        assert "docs/runbooks/landing_lost_log.md" in line
        assert f'headwater_consumer_problem{{group="landing",topic="{TOPIC}"}} 1.0' in prometheus_text(status)


def test_a_table_whose_columns_were_declared_otherwise_is_a_problem(catalog, products, settings, log):
    land(products, log, lake := Lake(settings.lake_dir), 100)
    columns = tuple(c.model_copy(update={"type": "string"}) if c.type == "float64" else c for c in products.columns)
    declared = replace(catalog, sources=(products.model_copy(update={"columns": columns}),))
    line = told(stream_status(settings, declared, log, lake, NOW), f"landing of {TOPIC}")
    assert "list_price_gbp: found double, declared is string" in line
    assert "docs/runbooks/landing_changed_columns.md" in line


def test_what_is_in_quarantine_is_a_problem_until_a_later_change_of_the_row_lands(catalog, products, settings, log):
    lake = Lake(settings.lake_dir)
    log.append({TOPIC: product("dear")})
    land(products, log, lake, 100)
    status = stream_status(settings, catalog, log, lake, NOW)
    line = told(status, f"quarantine of {contract_of(products).table.dotted}")
    assert "1 records could not land and wait (1 of them: list_price_gbp: not a float64)" in line
    assert "headwater dlq replay shop --quarantine --table products --yes" in line
    assert 'headwater_quarantine_waiting{table="raw.shop.products"} 1' in prometheus_text(status)
    log.append({TOPIC: product(2.5)})
    land(products, log, lake, 100)
    status = stream_status(settings, catalog, log, lake, NOW)
    assert [line for line in status.problems if "quarantine" in line] == []
    assert 'headwater_quarantine_waiting{table="raw.shop.products"} 0' in prometheus_text(status)


def test_what_was_put_through_again_and_refused_again_is_one_problem(products, catalog, settings, log):
    lake, home = (
        Lake(settings.lake_dir),
        {"HEADWATER_HOME": str(settings.home), "HEADWATER_SHOP_URL": settings.shop_url},
    )
    log.append({TOPIC: product("dear", US + 1)})
    land(products, log, lake, 100)

    def dlq(*arguments: str) -> list[dict[str, object]]:
        done = CliRunner().invoke(cli, ["dlq", *arguments], env=home)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout or "[]")

    (before,) = dlq("list", "shop", "--quarantine", "--json")
    dlq("replay", "shop", "--quarantine", "--yes")
    land(products, log, lake, 100)
    (listed,) = dlq("list", "shop", "--quarantine", "--json")
    assert (listed["offset"], before["offset"], listed["settled"]) == (2, 1, False)
    line = told(stream_status(settings, catalog, log, lake, NOW), "quarantine of")
    assert "1 records could not land and wait (1 of them: list_price_gbp: not a float64)" in line
    log.append({TOPIC: product(2.5, US + 2)})
    land(products, log, lake, 100)
    assert [(each["offset"], each["settled"]) for each in dlq("list", "shop", "--quarantine", "--json")] == [(2, True)]
    dlq("replay", "shop", "--quarantine", "--yes")
    assert log.end(TopicPartition(TOPIC, 0)) == 4, "what is settled stays where it is"
    dlq("replay", "shop", "--quarantine", "--all", "--yes")
    land(products, log, lake, 100)
    assert sorted((e["offset"], e["settled"]) for e in dlq("list", "shop", "--quarantine", "--json")) == [(4, True)]
    assert [line for line in stream_status(settings, catalog, log, lake, NOW).problems if "quarantine" in line] == []
