"""The lake: Delta tables by asset key.

Errors: LakeError
          ├─ MissingTableError      the table was never written
          ├─ UnknownVersionError    the table has no such Delta version
          ├─ ConcurrentWriteError   another process wrote the same meanwhile: read what there is now, and try again
          └─ UnusablePathError      Delta cannot find tables below a path such as this
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from catalog.keys import TABLE_LAYERS, Key
from catalog.settings import UNUSABLE_IN_PATH

__all__ = [
    "ConcurrentWriteError",
    "Lake",
    "LakeError",
    "MissingTableError",
    "Recent",
    "UnknownVersionError",
    "UnusablePathError",
    "parquet_files",
    "quoted",
]


# Files below each size are joined when there are many of them: so a row is rewritten a few times only.
_TIERS = (1 << 20, 16 << 20, 128 << 20)
_MANY_FILES = 32
_DAY_S = 24 * 60 * 60


class LakeError(RuntimeError):
    """The lake refused."""


class MissingTableError(LakeError):
    """The table was never written."""


class UnknownVersionError(LakeError):
    """The table has no such Delta version."""


class ConcurrentWriteError(LakeError):
    """Another process committed offsets of the same ids, or other columns. Retryable: nothing was written."""

    retryable = True


class UnusablePathError(LakeError):
    """Delta would look for the tables elsewhere than it wrote them, or not find them at all."""


@dataclass(frozen=True)
class Recent:
    """All `rows` of a table, those `appended` lately, and when the `newest` of what was written last happened."""

    rows: int
    appended: int
    newest: datetime | None


@dataclass(frozen=True)
class Lake:
    """Delta tables below `root`, one folder for each key. Raises UnusablePathError for a root that cannot hold any.

    `version_days`: for how long the files of a compacted table's older versions are kept.
    """

    root: Path
    version_days: int = 30

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
        """The table as it is, or as it was at a Delta version. Raises MissingTableError, UnknownVersionError."""
        if not self.exists(key):
            raise MissingTableError(f"table {key.dotted} does not exist in {self.root}: run `headwater run` first")
        try:
            return DeltaTable(str(self.path(key)), version=version)
        except (DeltaError, OSError) as error:
            if version is None:
                raise
            newest = DeltaTable(str(self.path(key))).version()
            raise UnknownVersionError(
                f"table {key.dotted} has no version {version}; its versions end at {newest}"
            ) from error

    def version(self, key: Key) -> int | None:
        """The Delta version; None when the table does not exist."""
        return self.table(key).version() if self.exists(key) else None

    def rows(self, key: Key) -> int:
        """How many there are, from the table's log. Raises MissingTableError."""
        return _rows(self.table(key))

    def recent(self, key: Key, column: str, last_s: float) -> Recent:
        """What was appended within the last seconds of the system's clock, from the table's log.

        `column`: when a row happened. Raises MissingTableError.
        """
        table = self.table(key)
        return Recent(_rows(table), _appended(table, last_s), _newest(table, self.path(key), column))

    def offset(self, key: Key, app_id: str) -> int:
        """The log offset that was committed with the table's rows; 0 before the first commit."""
        return (self.table(key).transaction_version(app_id) or 0) if self.exists(key) else 0

    def append(
        self, key: Key, rows: pa.Table, offsets: Mapping[str, int] | None = None, *, onto: DeltaTable | None = None
    ) -> int:
        """Append rows and, in the same transaction, log offsets by application id. Returns the new version.

        `onto` is the table as it was read: it gets the columns of `rows` that it lacks, and is what was written then.
        Raises ConcurrentWriteError when what was read of it (these offsets, its columns) is not so any more.
        """
        return self._write(key, rows, "append", offsets or {}, onto)

    def overwrite(self, key: Key, rows: pa.Table | pa.RecordBatchReader) -> int:
        """Replace the whole table atomically; readers of the old version are not disturbed. Returns the version."""
        return self._write(key, rows, "overwrite", {})

    def _write(self, key: Key, rows: Any, mode: str, offsets: Mapping[str, int], onto: DeltaTable | None = None) -> int:
        self.path(key).mkdir(parents=True, exist_ok=True)
        transactions = [Transaction(app, version) for app, version in offsets.items()]
        try:
            write_deltalake(
                onto or str(self.path(key)),
                rows,
                mode=mode,  # type: ignore[call-overload]  # a str, not the Literal the stubs want
                schema_mode="overwrite" if mode == "overwrite" else "merge" if onto else None,
                commit_properties=CommitProperties(app_transactions=transactions) if transactions else None,
            )
        except CommitFailedError as error:
            raise ConcurrentWriteError(f"{key.dotted} was written to by another process meanwhile: {error}") from error
        return int((onto or DeltaTable(str(self.path(key)))).version())

    def compact(self, key: Key) -> int:
        """Join small files where there are many of a size. Returns how many files the table has less.

        What is read meanwhile is not disturbed, and old versions keep their files for `version_days`: those that were
        joined longer ago are deleted. Nothing is done while another process does it: Delta lets both commit, and every
        row is there twice from then on.
        """
        lock = self.root / ".locks" / f"{key.dotted}.compaction.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
            table = self.table(key)
            before = _sizes(table)
            joined = self._join_small_files(table)
            after = _sizes(table)
            self._delete_joined(key, joined, after.keys())
            return len(before) - len(after)

    @staticmethod
    def _join_small_files(table: DeltaTable) -> Set[str]:
        """Returns which, also those that were made by it and joined again."""
        joined: set[str] = set()
        for target in _TIERS:
            before = _sizes(table)
            if sum(size < target for size in before.values()) >= _MANY_FILES:
                table.optimize.compact(target_size=target)
                joined |= before.keys() - _sizes(table).keys()
        return joined

    def _delete_joined(self, key: Key, joined: Set[str], live: Set[str]) -> None:
        """Note which files were joined just now, and delete those that were `version_days` ago.

        Not Delta's vacuum: it knows when a file was replaced only while the table's log has a line for each, which
        every reader would have to read.
        """
        notes = self.root / ".joined" / key.dotted
        if joined:
            notes.mkdir(parents=True, exist_ok=True)
            (notes / f"{time.time_ns()}.txt").write_text("\n".join(sorted(joined)))
        for note in sorted(notes.glob("*.txt")):
            if time.time() - note.stat().st_mtime > self.version_days * _DAY_S:
                for name in note.read_text().split("\n"):
                    if name not in live:
                        (self.path(key) / name).unlink(missing_ok=True)
                note.unlink()

    def schema(self, key: Key, version: int | None = None) -> pa.Schema:
        """The table's columns as Arrow types. Raises MissingTableError."""
        return pa.schema(self.table(key, version).schema().to_arrow())

    def files(self, key: Key, version: int | None = None) -> list[str]:
        """The parquet files that make up the table."""
        return parquet_files(self.table(key, version))

    def scan_sql(self, key: Key, version: int | None = None) -> str:
        """A DuckDB table expression over the table's files; typed even when the table has none.

        Raises MissingTableError, UnknownVersionError.
        """
        table = self.table(key, version)
        files = parquet_files(table)
        if version is not None and not all(map(os.path.exists, files)):
            raise UnknownVersionError(
                f"table {key.dotted}: the files of version {version} were deleted, {self.version_days} days after they "
                "had been joined (HEADWATER_LAKE_VERSION_DAYS)"
            )
        if files and key.layer != "raw":
            return f"read_parquet({_sql_list(files)})"
        schema = pa.schema(table.schema().to_arrow())
        columns = ", ".join(f'NULL::{_duckdb_type(f.type)} AS "{f.name}"' for f in schema)
        empty = f"SELECT {columns} WHERE false"
        # A captured table gets columns while it lives: its older files lack them.
        found = f" UNION ALL BY NAME FROM read_parquet({_sql_list(files)}, union_by_name = true)" if files else ""
        return f"({empty}{found})"

    def connect(
        self, keys: Sequence[Key] | None = None, versions: Mapping[Key, int] | None = None
    ) -> duckdb.DuckDBPyConnection:
        """A private in-memory DuckDB in which every table (or only `keys`) is a view named by its dotted key.

        `versions` are Delta versions of tables that are not to be read as they are now. Raises UnknownVersionError.
        """
        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
        wanted = self.keys() if keys is None else keys
        for layer in dict.fromkeys(k.layer for k in wanted):
            connection.execute(f"ATTACH ':memory:' AS {layer}")
        for layer, subject in dict.fromkeys((k.layer, k.subject) for k in wanted):
            connection.execute(f'CREATE SCHEMA {layer}."{subject}"')
        for key in wanted:
            scan = self.scan_sql(key, (versions or {}).get(key))
            connection.execute(f"CREATE VIEW {quoted(key)} AS SELECT * FROM {scan}")
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


def _rows(table: DeltaTable) -> int:
    return sum(pa.table(table.get_add_actions())["num_records"].to_pylist())


def _appended(table: DeltaTable, last_s: float) -> int:
    since_ms, asked = (time.time() - last_s) * 1000, 8
    while True:
        commits = table.history(asked)
        recent = [commit for commit in commits if commit["timestamp"] >= since_ms]
        if len(recent) < asked:
            break
        asked *= 4
    return sum(int(commit["operationMetrics"]["num_added_rows"]) for commit in recent if _appends(commit))


def _newest(table: DeltaTable, path: Path, column: str) -> Any:
    written = pa.table(table.get_add_actions()).select(["path", "modification_time"]).to_pylist()
    last = max(written, key=lambda file: file["modification_time"], default=None)
    if last is None:
        return None
    # Delta's own statistics are of a table's first 32 columns only.
    footer = pq.read_metadata(path / unquote(last["path"]))
    groups = map(footer.row_group, range(footer.num_row_groups))
    chunks = (group.column(place) for group in groups for place in range(group.num_columns))
    found = [chunk.statistics for chunk in chunks if chunk.path_in_schema == column and chunk.statistics]
    return max((statistics.max for statistics in found if statistics.has_min_max), default=None)


def _appends(commit: Mapping[str, Any]) -> bool:
    return bool(commit["operation"] == "WRITE" and commit["operationParameters"]["mode"] == "Append")


def _sizes(table: DeltaTable) -> Mapping[str, int]:
    """Bytes of each file by its name."""
    found = pa.table(table.get_add_actions())
    names = [Path(path).name for path in found["path"].to_pylist()]
    return dict(zip(names, found["size_bytes"].to_pylist(), strict=True))


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
    "binary": "BLOB",
}


def _duckdb_type(kind: pa.DataType) -> str:
    if known := _DUCKDB_TYPES.get(str(kind)):
        return known
    if pa.types.is_list(kind):
        return f"{_duckdb_type(kind.value_type)}[]"
    if pa.types.is_decimal(kind):
        return f"DECIMAL({kind.precision},{kind.scale})"
    described = duckdb.arrow(pa.table({"c": pa.array([], kind)})).types[0]
    return str(described)
