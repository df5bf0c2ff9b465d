"""How long the code location takes to load, and which heavy packages that imports (there should be none).

Each repetition is a fresh interpreter; the peer is `import dagster, dagster_dbt` alone, in the same run, which is the
floor for any code location that has dbt tables.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "mlflow", "feast", "great_expectations", "evidently", "lightgbm", "sklearn", "matplotlib")
PROBE = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
wall, cpu = time.perf_counter(), time.process_time()
{statement}
print(json.dumps(dict(
    wall_s=round(time.perf_counter() - wall, 3), cpu_s=round(time.process_time() - cpu, 3),
    rss_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    heavy=sorted(set({heavy!r}) & set(sys.modules)),
)))
"""


def probe(statement: str, home: str) -> dict[str, object]:
    """Run one statement in a fresh interpreter; returns what it measured."""
    code = PROBE.format(statement=statement, heavy=HEAVY)
    environment = {**os.environ, "HEADWATER_HOME": home}
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    measured: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    repetitions = parser.parse_args().repetitions
    rows: dict[str, list[dict[str, object]]] = {"definitions": [], "dagster + dagster_dbt": []}
    with tempfile.TemporaryDirectory() as home:
        probe("import definitions", home)  # once unmeasured: dbt's manifest and the bytecode are made
        for _ in range(repetitions):
            rows["definitions"].append(probe("import definitions", home))
            rows["dagster + dagster_dbt"].append(probe("import dagster, dagster_dbt", home))
    for name, measured in rows.items():
        for row in measured:
            print(name, json.dumps(row))
    medians = {n: statistics.median(float(str(r["cpu_s"])) for r in m) for n, m in rows.items()}
    walls = {n: statistics.median(float(str(r["wall_s"])) for r in m) for n, m in rows.items()}
    ours, peer = "definitions", "dagster + dagster_dbt"
    print(
        f"median: {ours} {walls[ours]:.2f} s wall, {medians[ours]:.2f} CPU-s; {peer} {medians[peer]:.2f} CPU-s; "
        f"ratio {medians[ours] / medians[peer]:.2f}"
    )


if __name__ == "__main__":
    main()
