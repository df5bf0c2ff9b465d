"""dbt's manifest, which the asset graph is built from: parsed when the project's files have changed, else reused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from assets.build import PROJECT, code_version

__all__ = ["DBT_PROJECT", "DbtParseError", "dbt_executable", "ensure_manifest"]

DBT_PROJECT = PROJECT / "dbt_project"


class DbtParseError(RuntimeError):
    """dbt could not parse the project; the message is dbt's own."""


def dbt_executable() -> str:
    """The dbt of this very environment, whatever PATH says."""
    return str(Path(sys.executable).parent / "dbt")


def ensure_manifest() -> Path:
    """The path of an up-to-date manifest.json; runs `dbt parse` (some seconds) when a file of the project changed."""
    target = DBT_PROJECT / "target"
    manifest, stamp = target / "manifest.json", target / "parsed.digest"
    digest = code_version("dbt_project")
    if manifest.is_file() and stamp.is_file() and stamp.read_text() == digest:
        return manifest
    with tempfile.TemporaryDirectory(prefix="headwater-dbt-") as scratch:
        _parse(Path(scratch))
        target.mkdir(exist_ok=True)
        # Several processes may load the code location at once: each file appears whole or not at all.
        for name in ("partial_parse.msgpack", "manifest.json"):
            partial = target / f".{name}.{os.getpid()}"
            shutil.copy(Path(scratch) / name, partial)
            partial.replace(target / name)
        stamp.write_text(digest)
    return manifest


def _parse(scratch: Path) -> None:
    command = [dbt_executable(), "--quiet", "parse", "--project-dir", str(DBT_PROJECT), "--profiles-dir",
               str(DBT_PROJECT), "--target-path", str(scratch), "--log-path", str(scratch)]  # fmt: skip
    # Parsing opens no warehouse; the file's name only gives the database its name.
    environment = {**os.environ, "DBT_WAREHOUSE_PATH": str(scratch / "warehouse.duckdb")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DbtParseError(f"dbt could not parse {DBT_PROJECT.name}:\n{done.stdout}{done.stderr}")
