"""Several processes that land in the same table join its small files at the same moment: each row stays once."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa

from catalog.keys import raw
from lake.tables import Lake

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


def test_files_are_joined_once_and_rows_stay_once(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for number in range(FILES):
        lake.append(TABLE, pa.table({"id": range(number * ROWS, number * ROWS + ROWS)}))
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
