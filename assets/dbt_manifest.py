"""What dbt will make, read from its manifest: tables and tests, without importing dbt or dagster-dbt.

Loading the code location needs no more than this; importing dagster-dbt there would cost two seconds. The manifest is
made by `dbt parse` when a file of the project has changed since the last time.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.build import PROJECT, code_version
from catalog.keys import Key

__all__ = [
    "DBT_PROJECT",
    "PARTIAL_PARSE",
    "DbtParseError",
    "DbtTable",
    "DbtTest",
    "Manifest",
    "dbt_executable",
    "read_manifest",
]

DBT_PROJECT = PROJECT / "dbt_project"
PARTIAL_PARSE = DBT_PROJECT / "target" / "partial_parse.msgpack"


class DbtParseError(RuntimeError):
    """dbt could not parse the project; the message is dbt's own."""


@dataclass(frozen=True)
class DbtTable:
    """One dbt model: its asset key, what it reads, and what its YAML says."""

    node: str
    key: Key
    inputs: tuple[Key, ...]
    description: str
    owners: tuple[str, ...]
    checksum: str
    column_descriptions: Mapping[str, str]


@dataclass(frozen=True)
class DbtTest:
    """One dbt test of one table; a failure of a blocking one stops what is downstream."""

    node: str
    name: str
    table: Key
    blocking: bool
    description: str


@dataclass(frozen=True)
class Manifest:
    """Every table and test of the project."""

    tables: tuple[DbtTable, ...]
    tests: tuple[DbtTest, ...]

    def of_layers(self, *layers: str) -> "Manifest":
        """The part that makes the tables of some layers."""
        tables = tuple(t for t in self.tables if t.key.layer in layers)
        keys = {t.key for t in tables}
        return Manifest(tables, tuple(t for t in self.tests if t.table in keys))


def dbt_executable() -> str:
    """The dbt of this very environment, whatever PATH says."""
    return str(Path(sys.executable).parent / "dbt")


def read_manifest(warehouse_path: Path) -> Manifest:
    """The manifest of the project as it is now. Raises DbtParseError.

    `warehouse_path` is only named, not opened: a run on that very file can then reuse the parse (`PARTIAL_PARSE`).
    """
    found = json.loads(_up_to_date(warehouse_path).read_text())
    nodes: dict[str, Any] = {**found["nodes"], **found["sources"]}
    keys = {name: _key(node) for name, node in nodes.items() if node["resource_type"] in ("model", "source")}
    models = [n for n in nodes.values() if n["resource_type"] == "model"]
    tests = [n for n in nodes.values() if n["resource_type"] == "test" and n.get("attached_node") in keys]
    return Manifest(tuple(_table(n, keys) for n in models), tuple(_test(n, keys) for n in tests))


def _key(node: Mapping[str, Any]) -> Key:
    layer, _, subject = str(node["schema"]).partition("_")
    return Key(layer, subject, str(node.get("alias") or node["name"]))


def _table(node: Mapping[str, Any], keys: Mapping[str, Key]) -> DbtTable:
    return DbtTable(
        node=node["unique_id"],
        key=keys[node["unique_id"]],
        inputs=tuple(keys[i] for i in node["depends_on"]["nodes"]),
        description=" ".join(node["description"].split()),
        owners=tuple(node["config"]["meta"]["dagster"]["owners"]),
        checksum=node["checksum"]["checksum"][:16],
        column_descriptions={name: column["description"] for name, column in node["columns"].items()},
    )


def _test(node: Mapping[str, Any], keys: Mapping[str, Key]) -> DbtTest:
    return DbtTest(
        node=node["unique_id"],
        name=node["name"],
        table=keys[node["attached_node"]],
        blocking=node["config"]["severity"].lower() == "error",
        description=node["description"] or f"dbt test {(node.get('test_metadata') or {}).get('name', node['name'])}.",
    )


def _up_to_date(warehouse_path: Path) -> Path:
    target = DBT_PROJECT / "target"
    manifest, stamp = target / "manifest.json", target / "parsed.digest"
    digest = code_version("dbt_project")
    if manifest.is_file() and stamp.is_file() and stamp.read_text() == digest:
        return manifest
    with tempfile.TemporaryDirectory(prefix="headwater-dbt-") as scratch:
        _parse(Path(scratch), warehouse_path)
        target.mkdir(exist_ok=True)
        # Several processes may load the code location at once: a file appears whole or not at all.
        for file in (PARTIAL_PARSE, manifest):
            draft = target / f".{file.name}.{os.getpid()}"
            shutil.copy(Path(scratch) / file.name, draft)
            draft.replace(file)
        stamp.write_text(digest)
    return manifest


def _parse(scratch: Path, warehouse_path: Path) -> None:
    command = [dbt_executable(), "--quiet", "parse", *_project_arguments(scratch)]
    environment = {**os.environ, "DBT_WAREHOUSE_PATH": str(warehouse_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DbtParseError(f"dbt could not parse {DBT_PROJECT.name}:\n{done.stdout}{done.stderr}")


def _project_arguments(target: Path) -> Sequence[str]:
    project = str(DBT_PROJECT)
    return [
        "--project-dir", project, "--profiles-dir", project, "--target-path", str(target), "--log-path", str(target),
    ]  # fmt: skip
