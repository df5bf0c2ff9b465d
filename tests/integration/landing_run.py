"""What the kill test kills: replays lines into a log and lands them, in small steps. Run as a script.

Arguments: a parquet file of lines and a directory. Says `ready` once all is imported and read, before
the first step.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.load import load_catalog
from catalog.spec import Source
from lake.tables import Lake
from streaming.landing import land
from streaming.replay import replay
from streaming.sqlite_log import SqliteLog

CATALOG = Path(__file__).resolve().parents[2] / "catalog"


def run(lines: pa.Table, sources: Sequence[Source], home: Path) -> None:
    """A replay in slices of 1,500 lines, then each table in batches of 300 changes."""
    with SqliteLog(home / "log.db") as log:
        replay(lines, log, home / "replay.json", slice_lines=1_500)
        for source in sources:
            land(source, log, Lake(home / "lake"), 300)


if __name__ == "__main__":
    given = pq.ParquetFile(sys.argv[1]).read()
    declared = load_catalog(CATALOG).sources
    print("ready", flush=True)
    run(given, declared, Path(sys.argv[2]))
