"""`kill -9` at twenty random moments of replay and landing: every table comes out as if nothing had happened."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
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
    """About 2,000 lines, late ones among them; one in fifty breaks the contract in some way."""
    table = simulate(seed=9, lines=2_000).lines
    broken = random.Random(SEED)
    for name in ("invoice_no", "quantity", "invoiced_at"):
        column = table.schema.get_field_index(name)
        keep = pa.array([broken.random() > 0.01 for _ in range(table.num_rows)])
        nulls = pa.nulls(table.num_rows, table.schema.field(column).type)
        table = table.set_column(column, name, pc.if_else(keep, table[name], nulls))
    path = tmp_path_factory.mktemp("lines") / "lines.parquet"
    pq.write_table(table, path)
    return path


class Runs:
    """Runs that have finished their imports when they start, one after another."""

    def __init__(self, lines: Path) -> None:
        command = [sys.executable, str(SCRIPT), str(lines)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def killed(self, home: Path, is_due: Callable[[], bool] = lambda: False) -> bool:
        """Whether a run in that directory still went on when it was due, and was killed (SIGKILL) then."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{home}\n")
        self._process.stdin.flush()
        run = int(self._process.stdout.readline())
        while not select.select([self._process.stdout], [], [], 0.002)[0]:
            if is_due():
                os.kill(run, signal.SIGKILL)
                break
        status = int(self._process.stdout.readline())
        assert status in (0, signal.SIGKILL)
        return status != 0

    def close(self) -> None:
        self._process.communicate()


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
    with closing(Runs(lines)) as runs:
        assert not runs.killed(tmp_path / "undisturbed")
        _kill_and_compare(runs, tmp_path)


def _at(home: Path, commits: float, after_s: float) -> Callable[[], bool]:
    """When the lake has seen so many commits, and a moment has passed since then."""
    reached: list[float] = []

    def is_due() -> bool:
        if not reached and progress(home) >= commits:
            reached.append(time.monotonic())
        return bool(reached) and time.monotonic() - reached[0] >= after_s

    return is_due


def _kill_and_compare(runs: Runs, tmp_path: Path) -> None:
    total = progress(tmp_path / "undisturbed")
    expected = landed(tmp_path / "undisturbed")
    assert expected["raw.shop.order_lines"].num_rows > 1_400
    assert expected["quarantine.shop.order_lines"].num_rows > 30

    moments, homes, kills, reached = random.Random(SEED), [tmp_path / "0"], 0, []
    while kills < KILLS:
        commits = progress(homes[-1]) + total * moments.uniform(-0.2, 0.5)
        if runs.killed(homes[-1], _at(homes[-1], commits, moments.uniform(0, 0.1))):
            kills += 1
            reached.append(progress(homes[-1]))
        else:  # it came to its end: the remaining kills go to a fresh one
            homes.append(tmp_path / str(len(homes)))
    assert not runs.killed(homes[-1])
    # The moments are spread over the run: before the lake exists, and at different stages of landing.
    print(f"commits at the kills, of {total}: {reached}")
    assert len(set(reached)) > 5

    for home in homes:
        found = landed(home)
        for name, table in expected.items():
            assert found[name].equals(table), f"{name} in {home} differs after kills at {reached}"
