"""The lake: Delta tables by asset key.

Errors: LakeError
          ├─ MissingTableError   the table was never written
          └─ UnusablePathError   Delta cannot find tables below a path such as this
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from catalog.keys import TABLE_LAYERS, Key
from catalog.settings import UNUSABLE_IN_PATH

__all__ = ["Lake", "LakeError", "MissingTableError", "UnusablePathError", "parquet_files", "quoted"]


class LakeError(RuntimeError):
    """The lake refused."""


class MissingTableError(LakeError):
    """The table was never written."""


class UnusablePathError(LakeError):
    """Delta would look for the tables elsewhere than it wrote them, or not find them at all."""


@dataclass(frozen=True)
class Lake:
    """Delta tables below `root`, one folder for each key. Raises UnusablePathError for a root that cannot hold any."""

    root: Path

    def __post_init__(self) -> None:
        real = os.path.realpath(self.root)
        if found := UNUSABLE_IN_PATH.search(real):
            raise UnusablePathError(
                f"{real!r}: found {found.group()!r} in the path, with which Delta tables cannot be found again; set "
                "HEADWATER_HOME to a directory without # ? [ ] \\ ^ |, control characters, and % before two hex digits"
            )

    def path(self, key: Key) -> Path:
        return self.root.joinpath(*key)

    def exists(self, key: Key) -> bool:
        return (self.path(key) / "_delta_log").is_dir() and DeltaTable.is_deltatable(str(self.path(key)))

    def keys(self) -> list[Key]:
        """Every table there is, in order of layer, then name."""
        found = []
        for layer in TABLE_LAYERS:
            for log in sorted(self.root.glob(f"{layer}/*/*/_delta_log")):
                key = Key(layer, log.parent.parent.name, log.parent.name)
                if self.exists(key):
                    found.append(key)
        return found

    def table(self, key: Key, version: int | None = None) -> DeltaTable:
        """Raises MissingTableError."""
        if not self.exists(key):
            raise MissingTableError(f"table {key.dotted} does not exist in {self.root}: run `headwater run` first")
        return DeltaTable(str(self.path(key)), version=version)

    def version(self, key: Key) -> int | None:
        """The Delta version; None when the table does not exist."""
        return self.table(key).version() if self.exists(key) else None

    def rows(self, key: Key) -> int:
        return int(self.connect([key]).sql(f"select count(*) from {quoted(key)}").fetchall()[0][0])

    def offset(self, key: Key, app_id: str) -> int:
        """The log offset that was committed with the table's rows; 0 before the first commit."""
        return (self.table(key).transaction_version(app_id) or 0) if self.exists(key) else 0

    def append(self, key: Key, rows: pa.Table, offsets: Mapping[str, int] | None = None) -> int:
        """Append rows and, in the same transaction, log offsets by application id. Returns the new version."""
        return self._write(key, rows, "append", offsets or {})

    def overwrite(self, key: Key, rows: pa.Table | pa.RecordBatchReader) -> int:
        """Replace the whole table atomically; readers of the old version are not disturbed. Returns the version."""
        return self._write(key, rows, "overwrite", {})

    def _write(self, key: Key, rows: Any, mode: str, offsets: Mapping[str, int]) -> int:
        self.path(key).mkdir(parents=True, exist_ok=True)
        transactions = [Transaction(app, version) for app, version in offsets.items()]
        write_deltalake(
            str(self.path(key)),
            rows,
            mode=mode,  # type: ignore[call-overload]  # a str, not the Literal the stubs want
            schema_mode="overwrite" if mode == "overwrite" else None,
            commit_properties=CommitProperties(app_transactions=transactions) if transactions else None,
        )
        version = DeltaTable(str(self.path(key))).version()
        return version

    def schema(self, key: Key, version: int | None = None) -> pa.Schema:
        """The table's columns as Arrow types. Raises MissingTableError."""
        return pa.schema(self.table(key, version).schema().to_arrow())

    def files(self, key: Key, version: int | None = None) -> list[str]:
        """The parquet files that make up the table."""
        return parquet_files(self.table(key, version))

    def scan_sql(self, key: Key, version: int | None = None) -> str:
        """A DuckDB table expression over the table's files; typed even when the table has none."""
        table = self.table(key, version)
        files = parquet_files(table)
        if files:
            return f"read_parquet({_sql_list(files)})"
        schema = pa.schema(table.schema().to_arrow())
        columns = ", ".join(f'NULL::{_duckdb_type(f.type)} AS "{f.name}"' for f in schema)
        return f"(SELECT {columns} WHERE false)"

    def connect(self, keys: Sequence[Key] | None = None) -> duckdb.DuckDBPyConnection:
        """A private in-memory DuckDB in which every table (or only `keys`) is a view named by its dotted key."""
        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
        wanted = self.keys() if keys is None else keys
        for layer in dict.fromkeys(k.layer for k in wanted):
            connection.execute(f"ATTACH ':memory:' AS {layer}")
        for layer, subject in dict.fromkeys((k.layer, k.subject) for k in wanted):
            connection.execute(f'CREATE SCHEMA {layer}."{subject}"')
        for key in wanted:
            connection.execute(f"CREATE VIEW {quoted(key)} AS SELECT * FROM {self.scan_sql(key)}")
        return connection

    def read(self, key: Key, columns: Sequence[str] | None = None) -> pa.Table:
        """The whole table, or some of its columns, as Arrow."""
        chosen = ", ".join(f'"{c}"' for c in columns) if columns else "*"
        return self.connect([key]).sql(f"SELECT {chosen} FROM {quoted(key)}").to_arrow_table()

    def committed_at(self, key: Key) -> datetime:
        """The wall-clock instant of the table's last commit, naive UTC (provenance, not business time)."""
        last = self.table(key).history(1)[0]["timestamp"]
        return datetime.fromtimestamp(last / 1000, UTC).replace(tzinfo=None)


def quoted(key: Key) -> str:
    """The key as an SQL name."""
    return f'{key.layer}."{key.subject}"."{key.name}"'


def parquet_files(table: DeltaTable) -> list[str]:
    """The paths of a local table's files. delta-rs gives them percent-encoded: in a home with a space none is found."""
    return [unquote(uri) for uri in table.file_uris()]


def _sql_list(files: Sequence[str]) -> str:
    return "[" + ", ".join("'" + f.replace("'", "''") + "'" for f in files) + "]"


# Spelled out because DuckDB imports pandas (a second) when it is handed an Arrow table to describe.
_DUCKDB_TYPES = {
    "int64": "BIGINT",
    "int32": "INTEGER",
    "double": "DOUBLE",
    "string": "VARCHAR",
    "bool": "BOOLEAN",
    "timestamp[us]": "TIMESTAMP",
    "date32[day]": "DATE",
}


def _duckdb_type(kind: pa.DataType) -> str:
    if known := _DUCKDB_TYPES.get(str(kind)):
        return known
    described = duckdb.arrow(pa.table({"c": pa.array([], kind)})).types[0]
    return str(described)
