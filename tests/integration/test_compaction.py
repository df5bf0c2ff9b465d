"""Small files are joined: each row stays once, and an older version's files are kept for as long as is set."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from catalog.keys import raw
from lake.query import query
from lake.tables import Lake, Recent, UnknownVersionError

PROJECT = Path(__file__).resolve().parents[2]
TABLE = raw("shop", "things")
FILES, ROWS = 40, 100
COMPACT = """
    import sys
    from pathlib import Path
    from catalog.keys import raw
    from lake.tables import Lake

    lake = Lake(Path(sys.argv[1]))
    print("ready", flush=True)
    sys.stdin.readline()
    print(lake.compact(raw("shop", "things")))
"""


def fill(lake: Lake) -> None:
    start = lake.rows(TABLE) if lake.exists(TABLE) else 0
    for number in range(FILES):
        lake.append(TABLE, pa.table({"id": range(start + number * ROWS, start + (number + 1) * ROWS)}))


def test_files_of_an_older_version_are_kept_as_long_as_is_set(tmp_path: Path) -> None:
    lake = Lake(tmp_path, version_days=3)
    counted = f"SELECT count(*) AS n, sum(id) AS total FROM {TABLE.dotted}"

    def files() -> int:
        return len(list(lake.path(TABLE).glob("*.parquet")))

    def joined_days_ago(days: float) -> None:
        for note in (tmp_path / ".joined" / TABLE.dotted).iterdir():
            os.utime(note, (time.time() - days * 86_400,) * 2)

    fill(lake)
    version, before = lake.version(TABLE), query(lake, counted)
    assert lake.compact(TABLE) == FILES - 1
    joined_days_ago(2.9)
    fill(lake)
    assert lake.compact(TABLE) == FILES
    assert query(lake, counted, version=version) == before
    assert files() == 2 * FILES + 2
    joined_days_ago(3.1)
    now = query(lake, counted)
    assert lake.compact(TABLE) == 0
    assert files() == 1
    assert query(lake, counted) == now
    assert now["n"].to_pylist() == [2 * FILES * ROWS]
    with pytest.raises(UnknownVersionError, match=f"version {version} were deleted, 3 days after"):
        query(lake, counted, version=version)


def test_what_landed_lately_is_known_without_reading_the_table(tmp_path: Path) -> None:
    lake, wide = Lake(tmp_path), {f"c{number}": [number] * 2 for number in range(40)}
    first, last = datetime(2024, 5, 1), datetime(2024, 5, 2)
    for number in range(FILES):
        at = [first, last] if number == FILES - 1 else [first, first]
        lake.append(TABLE, pa.table({**wide, "tags": [["a"], []], "at": pa.array(at, pa.timestamp("us"))}))
    assert lake.recent(TABLE, "at", 60) == Recent(2 * FILES, 2 * FILES, last)
    assert lake.compact(TABLE) == FILES - 1
    assert lake.recent(TABLE, "at", 60) == Recent(2 * FILES, 2 * FILES, last)
    assert lake.recent(TABLE, "at", 0) == Recent(2 * FILES, 0, last)
    lake.overwrite(TABLE, lake.read(TABLE).slice(0, 0))
    assert lake.recent(TABLE, "at", 60) == Recent(0, 2 * FILES, None)


def test_files_are_joined_once_and_rows_stay_once(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    fill(lake)
    command = [sys.executable, "-c", textwrap.dedent(COMPACT), str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": PROJECT}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    gone = [int(process.communicate()[0]) for process in processes]
    assert sum(gone) == FILES - 1, gone
    assert sorted(lake.read(TABLE, ["id"])["id"].to_pylist()) == list(range(FILES * ROWS))
