"""Point-in-time joins beside Feast's own file stores: CPU, wall, rows returned, mismatches against brute force.

    python -m bench.pit --rows 50000 1000000 [--timeout 300]

One data set for all: 3 feature views (Parquet with event and created timestamps; a tenth of the rows are known late,
some instants repeat) and entity rows, some before any value and some given twice. Each store runs in a process of its
own, through Feast's `get_historical_features(...).to_arrow()`; imports and set-up are not counted. Feast's stores run
twice: by default, which returns values that were not known yet, and with `filter_by_created_timestamp`.
`ours, arrow` is given Arrow instead of pandas.

The oracle is plain numpy, row by row, on the first ORACLE_ROWS entity rows; a row that a store does not return is lost,
not a mismatch. Raw rows are printed; the last line names the ratios. Feast's DuckDB store
needs ibis, which is among the development dependencies.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

VIEWS = 3
ENTITIES = 5_000
VIEW_ROWS = 250_000
ORACLE_ROWS = 20_000
DAY_US = 86_400_000_000
START_US = 1_600_000_000_000_000
SPAN_US = 400 * DAY_US
TTL_DAYS = 60
STORES = {
    "ours": "ml.offline_store.AsOfOfflineStore",
    "ours, arrow": "ml.offline_store.AsOfOfflineStore",
    "feast duckdb": "duckdb",
    "feast duckdb, created filter": "duckdb",
    "feast dask": "dask",
    "feast dask, created filter": "dask",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000], help="entity rows of each round")
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a store is given up")
    parser.add_argument("--stores", nargs="+", default=list(STORES), choices=list(STORES))
    parser.add_argument("--measure", nargs=2, metavar=("STORE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return
    for rows in arguments.rows:
        with TemporaryDirectory(prefix="pit-") as folder:
            generate(Path(folder), rows)
            compare(Path(folder), rows, arguments.stores, arguments.timeout)


def generate(folder: Path, rows: int) -> None:
    """Views and entity rows, the same for every run: whole seconds, because dask keeps no finer created times."""
    rng = np.random.default_rng(17)
    for number in range(VIEWS):
        event = START_US + rng.integers(0, SPAN_US // 1_000_000, VIEW_ROWS) * 1_000_000
        late = np.where(rng.random(VIEW_ROWS) < 0.1, rng.integers(0, 30 * 86_400, VIEW_ROWS) * 1_000_000, 0)
        columns = {
            "customer_id": rng.integers(0, ENTITIES, VIEW_ROWS),
            "event_timestamp": pa.array(event, pa.timestamp("us", "UTC")),
            "created_timestamp": pa.array(event + late, pa.timestamp("us", "UTC")),
            **{f"v{number}_f{n}": rng.random(VIEW_ROWS) for n in range(4)},
        }
        pq.write_table(pa.table(columns), folder / f"view{number}.parquet")
    ids = rng.integers(0, ENTITIES + ENTITIES // 20, rows)
    at = START_US + rng.integers(-10 * 86_400, SPAN_US // 1_000_000, rows) * 1_000_000
    twice = rng.integers(0, rows, rows // 50)
    ids[: len(twice)], at[: len(twice)] = ids[twice], at[twice]
    entities = {
        "customer_id": ids,
        "event_timestamp": pa.array(at, pa.timestamp("us", "UTC")),
        "row_no": np.arange(rows),
    }
    pq.write_table(pa.table(entities), folder / "entities.parquet")


def compare(folder: Path, rows: int, stores: list[str], timeout: float) -> None:
    print(
        f"\n{rows:,} entity rows x {VIEWS} views of {VIEW_ROWS:,} rows, 4 features each; time to live {TTL_DAYS} days"
    )
    print(f"{'store':30} {'cpu s':>9} {'wall s':>9} {'returned':>10} {'lost':>8} {'in order':>9} {'mismatches':>11}")
    expected = oracle(folder)
    found = {}
    for store in stores:
        result = run(store, folder, timeout)
        if "error" in result:
            print(f"{store:30} {result['error']}", flush=True)
            continue
        wrong, compared = count_mismatches(folder / "found.parquet", expected)
        found[store] = result
        lost = rows - result["rows"]
        print(
            f"{store:30} {result['cpu_s']:9.2f} {result['wall_s']:9.2f} {result['rows']:10,} {lost:8,} "
            f"{result['in_order']!s:>9} {wrong:5,}/{compared:,}",
            flush=True,
        )
    ours = [found[name]["cpu_s"] for name in ("ours", "ours, arrow") if name in found]
    ratios = [
        f"{name} / {label}: {result['cpu_s'] / cpu:.1f}x"
        for name, result in found.items()
        if not name.startswith("ours")
        for label, cpu in zip(("ours", "ours, arrow"), ours, strict=False)
    ]
    print(f"CPU ratios at {rows:,} rows: " + "; ".join(ratios))


def run(store: str, folder: Path, timeout: float) -> dict[str, Any]:
    (folder / "found.parquet").unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", __file__, "--measure", store, str(folder)]
    before = cpu_seconds(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        spent = cpu_seconds(resource.RUSAGE_CHILDREN) - before
        return {"error": f"given up after {timeout:.0f} s of wall time, {spent:.0f} s of CPU with its imports"}
    if done.returncode:
        return {"error": f"failed: {(done.stderr.strip().splitlines() or ['killed'])[-1][:150]}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(store: str, folder: Path) -> dict[str, Any]:
    """One warm-up on 100 rows, then the real call; CPU of this process with all its threads."""
    feast = open_store(STORES[store], folder)
    entities = pq.read_table(folder / "entities.parquet")
    refs = [f"view{v}:v{v}_f{n}" for v in range(VIEWS) for n in range(4)]
    options = {"filter_by_created_timestamp": True} if store.endswith("created filter") else {}

    def join(rows: Any) -> pa.Table:
        return feast.get_historical_features(entity_df=rows, features=refs, **options).to_arrow()

    given = entities if store == "ours, arrow" else entities.to_pandas()
    join(given[:100] if store != "ours, arrow" else given.slice(0, 100))
    wall, cpu = time.perf_counter(), cpu_seconds()
    found = join(given)
    spent = {"cpu_s": cpu_seconds() - cpu, "wall_s": time.perf_counter() - wall}
    numbers = found.column("row_no").to_numpy()
    pq.write_table(found.select(["row_no", *(r.split(":")[1] for r in refs)]), folder / "found.parquet")
    return {**spent, "rows": found.num_rows, "in_order": bool((np.diff(numbers) > 0).all())}


def open_store(kind: str, folder: Path) -> Any:
    from datetime import timedelta

    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, Int64

    config = RepoConfig(
        project="pit",
        provider="local",
        registry=str(folder / f"registry-{kind}-{time.time_ns()}.db"),
        offline_store={"type": kind},
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    views = [
        FeatureView(
            name=f"view{number}",
            entities=[customer],
            ttl=timedelta(days=TTL_DAYS),
            source=FileSource(
                path=str(folder / f"view{number}.parquet"),
                timestamp_field="event_timestamp",
                created_timestamp_column="created_timestamp",
            ),
            schema=[
                Field(name="customer_id", dtype=Int64),
                *(Field(name=f"v{number}_f{n}", dtype=Float64) for n in range(4)),
            ],
        )
        for number in range(VIEWS)
    ]
    store.apply([customer, *views])
    return store


def cpu_seconds(who: int = resource.RUSAGE_SELF) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def oracle(folder: Path) -> dict[str, Any]:
    """For each of the first rows: the values of the usable row with the greatest (event, created), if still valid."""
    entities = pq.read_table(folder / "entities.parquet").slice(0, ORACLE_ROWS)
    ids, at = entities.column("customer_id").to_numpy(), _us(entities, "event_timestamp")
    answers = {}
    for number in range(VIEWS):
        view = pq.read_table(folder / f"view{number}.parquet")
        key, event, created = (
            view.column("customer_id").to_numpy(),
            _us(view, "event_timestamp"),
            _us(view, "created_timestamp"),
        )
        rows_of = np.split(np.argsort(key, kind="stable"), np.cumsum(np.bincount(key, minlength=ENTITIES))[:-1])
        values = {f"v{number}_f{n}": view.column(f"v{number}_f{n}").to_numpy() for n in range(4)}
        for name in values:
            answers[name] = np.full(len(ids), np.nan)
        for i, (customer, t) in enumerate(zip(ids, at, strict=True)):
            mine = rows_of[customer] if customer < ENTITIES else np.empty(0, np.int64)
            mine = mine[(event[mine] <= t) & (created[mine] <= t)]
            if not len(mine):
                continue
            best = mine[np.lexsort((created[mine], event[mine]))[-1]]
            if t - event[best] <= TTL_DAYS * DAY_US:
                for name, column in values.items():
                    answers[name][i] = column[best]
    return answers


def count_mismatches(path: Path, expected: dict[str, Any]) -> tuple[int, int]:
    """Entity rows with any value that differs, and how many were compared."""
    found = pq.read_table(path)
    numbers = found.column("row_no").to_numpy()
    kept = numbers < ORACLE_ROWS
    wrong = np.zeros(int(kept.sum()), bool)
    for name, answers in expected.items():
        value = found.column(name).to_numpy(zero_copy_only=False)[kept].astype(float)
        right = answers[numbers[kept]]
        wrong |= ~((value == right) | (np.isnan(value) & np.isnan(right)))
    return int(wrong.sum()), len(wrong)


def _us(table: pa.Table, name: str) -> Any:
    return table.column(name).cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()


if __name__ == "__main__":
    main()
