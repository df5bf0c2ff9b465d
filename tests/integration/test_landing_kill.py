"""`kill -9` at twenty random moments of replay and landing: every table comes out as if nothing had happened."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from catalog.keys import quarantine, raw
from lake.tables import Lake
from streaming.shop import TABLES
from streaming.simulator import simulate

SCRIPT = Path(__file__).with_name("landing_run.py")
KILLS = 20
SEED = 20


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 12,000 lines, late ones among them; one in fifty breaks the contract in some way."""
    table = simulate(seed=9, lines=12_000).lines
    broken = random.Random(SEED)
    for name in ("invoice_no", "quantity", "invoiced_at"):
        column = table.schema.get_field_index(name)
        keep = pa.array([broken.random() > 0.007 for _ in range(table.num_rows)])
        nulls = pa.nulls(table.num_rows, table.schema.field(column).type)
        table = table.set_column(column, name, pc.if_else(keep, table[name], nulls))
    path = tmp_path_factory.mktemp("lines") / "lines.parquet"
    pq.write_table(table, path)
    return path


def start(lines: Path, home: Path) -> subprocess.Popen[str]:
    """A run that has finished its imports."""
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(lines), str(home)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def killed(process: subprocess.Popen[str], after_s: float) -> bool:
    """Whether the run still went on after that time, and was killed (SIGKILL) then."""
    with process:
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    assert process.returncode == 0
    return False


def landed(home: Path) -> dict[str, pa.Table]:
    """Every raw and quarantine table in order of the log."""
    lake = Lake(home / "lake")
    keys = [make("shop", table) for make in (raw, quarantine) for table in TABLES]
    return {
        key.dotted: lake.read(key).sort_by([("log_partition", "ascending"), ("log_offset", "ascending")])
        for key in keys
    }


def progress(home: Path) -> int:
    """Commits that the lake has seen."""
    return len(list((home / "lake").glob("*/*/*/_delta_log/*.json")))


def test_twenty_kills_change_nothing(lines: Path, tmp_path: Path) -> None:
    process = start(lines, tmp_path / "undisturbed")
    began = time.monotonic()
    assert not killed(process, 120)
    undisturbed_s = time.monotonic() - began
    expected = landed(tmp_path / "undisturbed")
    assert expected["raw.shop.order_lines"].num_rows > 10_000
    assert expected["quarantine.shop.order_lines"].num_rows > 100

    moments, homes, kills, reached = random.Random(SEED), [tmp_path / "0"], 0, []
    while kills < KILLS:
        if killed(start(lines, homes[-1]), moments.uniform(0, undisturbed_s * 0.8)):
            kills += 1
            reached.append(progress(homes[-1]))
        else:  # it came to its end: the remaining kills go to a fresh one
            homes.append(tmp_path / str(len(homes)))
    assert not killed(start(lines, homes[-1]), 120)
    # The moments are spread over the run: before the lake exists, and at different stages of landing.
    print(f"undisturbed {undisturbed_s:.1f} s; commits at the kills: {reached}")
    assert len(set(reached)) > 5

    for home in homes:
        found = landed(home)
        for name, table in expected.items():
            assert found[name].equals(table), f"{name} in {home} differs after kills at {reached}"
