"""The DuckDB file in which dbt works: raw tables go in as views, built tables come out as Delta.

The file is a workshop, not a store: it can be deleted between runs. One process at a time has it open for writing;
everybody else reads the lake. What dbt builds is said in dbt_project, never here.

Errors: WarehouseError
          ├─ WarehouseBusyError       another process has the file open: try again later
          └─ MissingRelationError     dbt has not built what should be published
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from catalog.keys import Key
from lake.tables import Lake, LakeError, quoted

__all__ = [
    "MissingRelationError",
    "Published",
    "WarehouseBusyError",
    "WarehouseError",
    "dbt_args",
    "dbt_environment",
    "key_of_node",
    "publish",
    "refresh_sources",
    "relation",
    "relation_types",
]


class WarehouseError(LakeError):
    """The warehouse file refused."""


class WarehouseBusyError(WarehouseError):
    """Another process has the file open. Retryable: nothing was done."""

    retryable = True


class MissingRelationError(WarehouseError):
    """A table that should be published is not in the warehouse."""


@dataclass(frozen=True)
class Published:
    """One table copied to the lake: its rows, its Delta version, and whether that version is new."""

    rows: int
    version: int
    changed: bool


def relation(key: Key) -> str:
    """The table's name in the warehouse: schema `layer_subject`, table `name`."""
    return f'"{key.group}"."{key.name}"'


def refresh_sources(warehouse_path: Path, lake: Lake, keys: Sequence[Key]) -> None:
    """Make each raw table of `keys` a view in the warehouse over the files of its present Delta version.

    dbt and its column lineage see real relations with real columns. Raises MissingTableError for a key that was never
    landed, WarehouseBusyError.
    """
    views = [(key, lake.scan_sql(key)) for key in keys]
    with _open(warehouse_path, read_only=False) as db:
        for key, scan in views:
            db.execute(f'CREATE SCHEMA IF NOT EXISTS "{key.group}"')
            db.execute(f"CREATE OR REPLACE VIEW {relation(key)} AS SELECT * FROM {scan}")


def publish(warehouse_path: Path, lake: Lake, keys: Sequence[Key]) -> dict[Key, Published]:
    """Copy built tables to the lake, streaming. A table whose rows did not change keeps its Delta version.

    Raises MissingRelationError, WarehouseBusyError.
    """
    with _open(warehouse_path, read_only=True) as db:
        return {key: _publish(db, lake, key) for key in keys}


def relation_types(warehouse_path: Path, keys: Sequence[Key]) -> dict[Key, dict[str, str]]:
    """Column name to SQL type, of each table or view. Raises MissingRelationError, WarehouseBusyError."""
    with _open(warehouse_path, read_only=True) as db:
        return {key: dict(_described(db, relation(key), key)) for key in keys}


def _publish(db: duckdb.DuckDBPyConnection, lake: Lake, key: Key) -> Published:
    built = _contents(db, relation(key), key)
    version = lake.version(key)
    if version is not None and built == _contents(lake.connect([key]), quoted(key), key):
        return Published(built.rows, version, changed=False)
    batches = db.sql(f"SELECT * FROM {relation(key)}").to_arrow_reader(200_000)
    return Published(built.rows, lake.overwrite(key, batches), changed=True)


@dataclass(frozen=True)
class _Contents:
    """What a table holds, whatever the order of its rows: two 64-bit sums over row hashes, and its columns."""

    rows: int
    total: int
    mixed: int
    columns: tuple[tuple[str, str], ...]


def _contents(db: duckdb.DuckDBPyConnection, name: str, key: Key) -> _Contents:
    described = _described(db, name, key)
    rows, total, mixed = db.execute(
        "SELECT count(*), coalesce(sum(h::hugeint), 0), coalesce(bit_xor(h), 0) "
        f"FROM (SELECT hash(contents) AS h FROM {name} AS contents)"
    ).fetchall()[0]
    return _Contents(int(rows), int(total), int(mixed), described)


def _described(db: duckdb.DuckDBPyConnection, name: str, key: Key) -> tuple[tuple[str, str], ...]:
    try:
        described = db.execute(f"DESCRIBE SELECT * FROM {name}").fetchall()
    except duckdb.CatalogException:
        raise MissingRelationError(
            f"{key.dotted} is not in the warehouse: dbt has not built {relation(key)}; run dbt for {key.slashed} first"
        ) from None
    return tuple((row[0], row[1]) for row in described)


@contextmanager
def _open(path: Path, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
    if read_only and not path.is_file():
        raise MissingRelationError(f"warehouse {path} does not exist: run dbt first")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        db = duckdb.connect(str(path), read_only=read_only)
    except (duckdb.IOException, duckdb.ConnectionException) as error:
        if "lock" in str(error) or "different configuration" in str(error):
            raise WarehouseBusyError(
                f"warehouse {path} is open elsewhere, try again when it is done: {error}"
            ) from error
        raise WarehouseError(
            f"warehouse {path} cannot be opened: {error}; it may be deleted, a run makes it anew"
        ) from error
    try:
        yield db
    finally:
        db.close()


def dbt_environment(warehouse_path: Path) -> dict[str, str]:
    """The environment variables that dbt's profile reads."""
    return {"DBT_WAREHOUSE_PATH": str(warehouse_path.absolute())}


def dbt_args(
    command: str, select: Sequence[str] = (), *, home: Path, variables: Mapping[str, Any] | None = None
) -> list[str]:
    """The arguments of one dbt command: what dbt writes goes below `home`, never into the project.

    Tests run only where all the tables that they compare are built: a test between marts and features does not belong
    to a run of marts alone.
    """
    arguments = [command, "--target-path", str(home / "dbt"), "--log-path", str(home / "dbt" / "logs")]
    if select:
        # One argument: dagster-dbt takes only the one that follows --select.
        arguments += ["--select", " ".join(select), "--indirect-selection", "buildable"]
    if variables:
        arguments += ["--vars", json.dumps(variables, sort_keys=True, default=str)]
    return arguments


def key_of_node(node: Mapping[str, Any]) -> Key:
    """The asset key of a model or source in dbt's manifest. Raises ValueError for a name that is no key."""
    layer, _, subject = str(node["schema"]).partition("_")
    return Key.parse(f"{layer}/{subject}/{node.get('alias') or node['name']}")
