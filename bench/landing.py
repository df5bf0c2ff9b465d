"""Change log to Delta: rows per CPU-second, from few rows to many. Prints the raw rows; it should be flat.

    python -m bench.landing [--rows 100000 1000000 10000000] [--batch 250000]

The changes are as a connector sends them (order lines, with their places), in the embedded log. Making them is not
measured; each size is landed in a process of its own, and what it takes to start (imports, a first row) is told apart.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from catalog.load import load_catalog
from catalog.settings import CATALOG_DIR
from lake.tables import Lake
from streaming.landing import land
from streaming.log import TopicPartition
from streaming.sqlite_log import SqliteLog

TOPIC = "cdc.shop.order_lines"
_AT_ONCE = 200_000
_US = 1_700_000_000_000_000
_KEY = """{"invoice_no":"%d","line_no":%d}"""
_VALUE = (
    """{"before":null,"after":{"invoice_no":"%d","line_no":%d,"customer_id":%d,"stock_code":"85123A","quantity":%d,"""
    """"unit_price_gbp":2.55,"invoiced_at":1583139600000000},"source":{"version":"0.1.0","connector":"postgresql","""
    """"name":"shop","db":"shop","schema":"public","table":"order_lines","snapshot":"false","ts_ms":1700000000000,"""
    """"ts_us":1700000000000000,"ts_ns":1700000000000000000,"txId":%d,"lsn":%d,"xmin":null,"headwater":{"epoch":1,"""
    """"commit":%d,"schema":1,"order":%d}},"transaction":{"id":"%d","total_order":%d,"data_collection_order":1},"""
    """"op":"c","ts_ms":1700000000000,"ts_us":1700000000000000,"ts_ns":1700000000000000000}"""
)


def fill(log: SqliteLog, rows: int) -> None:
    """Append `rows` inserts, twenty in a transaction."""
    for begin in range(0, rows, _AT_ONCE):
        table = duckdb.sql(
            f"""SELECT printf('{_KEY}', i // 20, i % 20) AS key, {_US}::BIGINT AS timestamp_us,
                printf('{_VALUE}', i // 20, i % 20, i % 5000, i % 100, i // 20, i, i // 20, i % 20 + 1, i // 20,
                    i % 20 + 1) AS value
            FROM range({begin}, {min(begin + _AT_ONCE, rows)}) AS numbers(i)"""
        ).to_arrow_table()
        log.append({TOPIC: table})


def measure(home: Path, batch_rows: int) -> dict[str, float]:
    """Land what the log in `home` has. CPU-seconds of this process, all its threads."""
    source = load_catalog(CATALOG_DIR).source("order_lines")
    with tempfile.TemporaryDirectory() as warm, SqliteLog(Path(warm) / "log.db") as log:
        fill(log, 1)
        land(source, log, Lake(Path(warm) / "lake"), batch_rows)
    start_cpu_s, began = time.process_time(), time.perf_counter()
    with SqliteLog(home / "log.db") as log:
        report = land(source, log, Lake(home / "lake"), batch_rows)
        left = log.end(TopicPartition(TOPIC, 0)) - report.landed
    assert left == 0, f"{left} rows did not land"
    cpu_s = time.process_time() - start_cpu_s
    return {
        "rows": report.landed,
        "batches": report.batches,
        "start_cpu_s": round(start_cpu_s, 2),
        "cpu_s": round(cpu_s, 2),
        "wall_s": round(time.perf_counter() - began, 2),
        "rows_per_cpu_s": round(report.landed / cpu_s),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "lake_mb": round(sum(f.stat().st_size for f in (home / "lake").rglob("*.parquet")) / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--batch", type=int, default=250_000)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.home is not None:
        print(json.dumps(measure(options.home, options.batch)))
        return
    found = []
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as directory:
            with SqliteLog(Path(directory) / "log.db") as log:
                fill(log, rows)
            command = [sys.executable, "-m", "bench.landing", "--home", directory, "--batch", str(options.batch)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout.strip(), flush=True)
        found.append(json.loads(done.stdout)["rows_per_cpu_s"])
    print(f"rows per CPU-second, most to fewest: {max(found) / min(found):.2f}")


if __name__ == "__main__":
    main()
