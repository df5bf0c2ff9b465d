"""The whole graph from an empty data directory: wall and CPU seconds for each asset, and a second, incremental run.

The data is HEADWATER_RETAIL_DATA, else the real retail file in the folder `shared` beside the project when it is
there, else the simulated shop.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
REAL_FILE = PROJECT.parent / "shared" / "data" / "online_retail.parquet"


def run(home: Path) -> dict[str, Any]:
    """One `headwater run`; returns its summary.json."""
    environment = {**os.environ, "HEADWATER_HOME": str(home)}
    if REAL_FILE.is_file():
        environment.setdefault("HEADWATER_RETAIL_DATA", str(REAL_FILE))
    command = [sys.executable, "-m", "headwater.cli", "run"]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    summary: dict[str, Any] = json.loads((home / "summary.json").read_text())
    return summary


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        full, again = run(home), run(home)
    print(f"{'asset':<44}{'wall_s':>9}{'cpu_s':>9}")
    for asset in sorted(full["assets"], key=lambda a: -a["cpu_s"]):
        print(f"{asset['key']:<44}{asset['wall_s']:>9.2f}{asset['cpu_s']:>9.2f}")
    lines = full["tables"]["raw.shop.order_lines"]["rows"]
    print(
        f"whole graph, {lines:,} lines: {full['wall_s']:.1f} s wall, {full['cpu_s']:.1f} CPU-s, "
        f"{full['peak_rss_mb']:.0f} MB; again, nothing new: {again['wall_s']:.1f} s wall, {again['cpu_s']:.1f} CPU-s; "
        f"ratio {full['cpu_s'] / again['cpu_s']:.1f}"
    )


if __name__ == "__main__":
    main()
