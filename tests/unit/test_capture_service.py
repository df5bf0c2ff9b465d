"""What `headwater capture` says and keeps while there is no database to capture from."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from catalog.settings import CATALOG_DIR, Settings, load_settings
from headwater.cli import cli
from streaming.capture.engine import Options
from streaming.capture.service import capture, last_status, status_path

NOWHERE = "postgresql://capture@127.0.0.1:1/shop"
TOLD = {
    "state": "streaming", "position": 7, "resume": {"lsn": 7}, "epoch": 2, "rows": 12, "last_event_us": 1,
    "tables": {"public.orders": {"state": "done", "cursor": None, "rows": 41}}, "refused": {}, "retained": None,
    "problem": None, "at_us": 1_700_000_000_000_000, "pid": 1,
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HEADWATER_HOME": str(tmp_path), "HEADWATER_SHOP_URL": NOWHERE}


@pytest.fixture
def settings(home: dict[str, str]) -> Settings:
    return load_settings(home)


def test_what_was_known_is_kept_while_the_database_is_away(settings: Settings) -> None:
    path, stop = status_path(settings, "shop"), threading.Event()
    path.parent.mkdir()
    path.write_text(json.dumps(TOLD))

    def say(text: str) -> None:
        if "trying again" in text:
            stop.set()

    outcome = capture(settings, "shop", Options(), stop, say, once=False)
    assert not outcome.connected
    said = last_status(settings, "shop")
    assert said is not None
    assert "127.0.0.1:1" in said["problem"]
    assert {name: said[name] for name in ("position", "resume", "epoch", "tables")} == {
        name: TOLD[name] for name in ("position", "resume", "epoch", "tables")
    }


def test_a_declaration_that_is_half_written_stops_nothing(home: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(CATALOG_DIR / "sources", tmp_path / "catalog" / "sources")
    settings, stop = load_settings({**home, "HEADWATER_CATALOG": str(tmp_path / "catalog")}), threading.Event()
    heard: list[str] = []

    def say(text: str) -> None:
        heard.append(text)
        (settings.catalog / "sources" / "parcels.yaml").write_text("system: shop\ntable: ")
        if "the tables of before" in text:
            stop.set()

    capture(settings, "shop", Options(), stop, say, once=False)
    assert "parcels.yaml" in heard[-1]


def test_a_table_that_is_not_captured_is_not_read_again(home: dict[str, str]) -> None:
    done = CliRunner().invoke(cli, ["capture", "shop", "--resnapshot", "orders", "--resnapshot", "nosuch"], env=home)
    assert done.exit_code == 2
    assert "found nosuch, captured are public.customers, public." in done.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("url", "problem", "remedy"),
    [
        (f"{NOWHERE}?sslmod=require", "sslmod", "Correct the options in HEADWATER_SHOP_URL"),
        ("mysql://capture@127.0.0.1:1/shop?tls=on", "found option tls", "Set HEADWATER_SHOP_URL to mysql://"),
    ],
)
def test_the_last_line_of_a_halt_says_what_to_do(home: dict[str, str], url: str, problem: str, remedy: str) -> None:
    done = CliRunner().invoke(cli, ["capture", "shop"], env={**home, "HEADWATER_SHOP_URL": url})
    assert done.exit_code == 1
    last = [json.loads(line) for line in done.stderr.splitlines()][-1]
    assert last["event"] == "capture has halted"
    assert problem in last["problem"]
    assert remedy in last["remedy"]
    assert (Path(__file__).resolve().parents[2] / last["runbook"]).exists()
