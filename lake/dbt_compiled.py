"""The SQL by which dbt makes its tables, compiled by dbt itself: for whoever makes one elsewhere than in the warehouse.

Compiling takes dbt some seconds and is done once for each state of dbt_project.

Errors: LakeError
          └─ DbtCompileError   dbt could not compile the project; the message is dbt's own
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from catalog.keys import Key
from lake.as_of import CATALOG, MadeTable
from lake.schema import DBT_PROJECT_DIR
from lake.tables import LakeError
from lake.warehouse import dbt_args, dbt_environment, key_of_node

__all__ = ["DbtCompileError", "compiled_tables"]


class DbtCompileError(LakeError):
    """dbt could not compile the project."""


def compiled_tables(cache: Path, project: Path = DBT_PROJECT_DIR) -> dict[Key, MadeTable]:
    """Every table of the project. `cache` keeps them until a file of the project changes. Raises DbtCompileError."""
    digest = _digest(project)
    with suppress(FileNotFoundError):
        kept = json.loads(cache.read_text(encoding="utf-8"))
        if kept["digest"] == digest:
            return {Key.parse(name): MadeTable(t["sql"], _keys(t["inputs"])) for name, t in kept["tables"].items()}
    tables = _compile(project)
    plain = {key.slashed: {"sql": t.sql, "inputs": [each.slashed for each in t.inputs]} for key, t in tables.items()}
    with suppress(PermissionError):  # who may only read the home compiles each time
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft = cache.with_name(f".{cache.name}.{os.getpid()}")
        draft.write_text(json.dumps({"digest": digest, "tables": plain}), encoding="utf-8")
        draft.replace(cache)
    return tables


def _keys(names: list[str]) -> tuple[Key, ...]:
    return tuple(Key.parse(name) for name in names)


def _digest(project: Path) -> str:
    """Of every file that says what the tables are."""
    digest = hashlib.sha256()
    for file in sorted(f for f in project.rglob("*") if f.suffix in (".sql", ".yml") and "target" not in f.parts):
        digest.update(str(file.relative_to(project)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _compile(project: Path) -> dict[Key, MadeTable]:
    with tempfile.TemporaryDirectory(prefix="headwater-dbt-") as scratch:
        home = Path(scratch)
        arguments = [*dbt_args("compile", home=home), "--no-introspect", "--no-populate-cache"]  # no database is opened
        done = subprocess.run(
            [sys.executable, "-m", "dbt.cli.main", "--quiet", *arguments],
            cwd=project,
            env={**os.environ, **dbt_environment(home / f"{CATALOG}.duckdb"), "DBT_PROFILES_DIR": str(project)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise DbtCompileError(f"dbt could not compile {project.name}:\n{done.stdout}{done.stderr}")
        manifest = json.loads((home / "dbt" / "manifest.json").read_text(encoding="utf-8"))
    nodes: Mapping[str, Any] = {**manifest["nodes"], **manifest["sources"]}
    return {
        key_of_node(node): MadeTable(
            node["compiled_code"], tuple(key_of_node(nodes[each]) for each in node["depends_on"]["nodes"])
        )
        for node in manifest["nodes"].values()
        if node["resource_type"] == "model"
    }
