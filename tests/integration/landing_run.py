"""What the kill test kills: replays lines into a log and lands them, in small steps. Run as a script.

Argument: a parquet file of lines. Each line of input is a directory: a process of its own, which has all imported when
it begins, works in it; said are its number, and at its end its exit status (as os.waitpid has it).
"""

from __future__ import annotations

import os
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
    """A replay in slices of 400 lines, then each table in batches of 300 changes."""
    with SqliteLog(home / "log.db") as log:
        replay(lines, log, home / "replay.json", slice_lines=400)
        for source in sources:
            land(source, log, Lake(home / "lake"), 300)


if __name__ == "__main__":
    declared = load_catalog(CATALOG).sources
    for directory in sys.stdin:
        if (child := os.fork()) == 0:  # no thread runs before the first step
            run(pq.ParquetFile(sys.argv[1]).read(), declared, Path(directory.strip()))
            os._exit(0)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)
