"""What a captured table's columns are, version by version, and what a new version means for the table in the lake.

A connector records a version (see capture.tables) before the first row that has it. A column that came later than the
table's declaration is added; one that went is null from then on. A version whose values would not be what the table's
columns say does not fit: its rows go to quarantine, until the declaration says otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from catalog import keys
from catalog.column_types import LakeType, parse_type
from catalog.spec import HISTORY_NAMES, Source
from lake.schema import arrow_type
from lake.tables import ConcurrentWriteError, Lake
from streaming.capture.tables import CapturedColumn, TableSchema, schemas_topic
from streaming.contract import ADDED, Contract, Field
from streaming.log import ChangeLog, next_offset

__all__ = ["SCHEMAS_SCHEMA", "SchemaChange", "Schemas", "Version", "land_schemas", "was_added"]

SCHEMAS_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("version", pa.int64()),
        ("source_epoch", pa.int64()),
        ("source_position", pa.int64()),
        ("recorded_at", pa.timestamp("us")),
        ("changed", pa.list_(pa.string())),
        ("key", pa.list_(pa.string())),
        ("columns", pa.string()),
        ("log_partition", pa.int64()),
        ("log_offset", pa.int64()),
    ]
)
_AT_ONCE = 10_000
# What every engine that reads the lake takes as a column's name.
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Types whose values in a change are also values of another type, each checked: (captured, in the table).
_ALSO = {("string", "json"), ("json", "string"), ("int64", "time"), ("time", "int64")}


@dataclass(frozen=True)
class Version:
    """One version of a captured table's columns, as it was recorded; `changed` says what in phrases."""

    number: int
    schema: TableSchema
    changed: tuple[str, ...]
    epoch: int
    position: int


@dataclass(frozen=True)
class SchemaChange:
    """A version of a captured table's columns that came into force: what changed, from where in the source's history.

    `added` columns are in the table from here on; `refused` says why rows of this version cannot land, if so.
    """

    version: int
    epoch: int
    position: int
    changed: tuple[str, ...]
    added: tuple[str, ...] = ()
    refused: str | None = None


class Schemas:
    """The recorded versions of one source's table; read from the log when a record names one that is not known."""

    def __init__(self, source: Source, log: ChangeLog) -> None:
        self._source = source
        self._log = log
        self._versions: dict[int, Version] = {}

    def contract(self, declared: Contract, versions: frozenset[int], found: pa.Schema) -> Contract:
        """The contract of records that name these versions, for a table that has the columns `found`."""
        if not versions <= self._versions.keys():
            self._refresh()
        fields = [*declared.fields, *_added_before(declared, found)]
        misfits: dict[int, str] = {}
        keys_fit: set[int] = set()
        for version in sorted(versions & self._versions.keys()):
            schema = self._versions[version].schema
            fields = [_as_captured(field, schema) for field in (*fields, *self._additions(schema, fields))]
            if problems := [*self._problems(schema, fields)]:
                misfits[version] = f"schema {version}: {'; '.join(problems)}"
                if declared.keyed and not [*self._problems(schema, [field for field in fields if field.key])]:
                    keys_fit.add(version)
        return replace(declared, fields=tuple(fields), misfits=misfits, keys_fit=frozenset(keys_fit))

    def changes(self, declared: Contract, found: pa.Schema, after: int, until: int) -> Sequence[SchemaChange]:
        """The recorded versions beyond `after`, up to `until`, whether or not a row of them has ever come.

        Of the first one there is nothing to say, unless its rows cannot land.
        """
        numbers = frozenset(range(max(after, 1), until + 1))
        contract = self.contract(declared, numbers, found)
        added = {field.name for field in contract.fields if field.added}
        changes, before = [], added
        for number in sorted(numbers & self._versions.keys()):
            version, why = self._versions[number], contract.misfits.get(number)
            names = {column.name for column in version.schema.columns}
            if number > max(after, 1) or (number > after and why is not None):
                new = tuple(column.name for column in version.schema.columns if column.name in added - before)
                changes.append(SchemaChange(number, version.epoch, version.position, version.changed, new, why))
            before = names
        return changes

    def _refresh(self) -> None:
        for found, _, _ in _records(self._source.system, self._log, {}):
            if self._is_ours(found):
                version = _version(found)
                self._versions[version.number] = version

    def _is_ours(self, found: Mapping[str, Any]) -> bool:
        relation = self._source.relation
        return found["table"] == self._source.table if relation is None else _relation(found) == relation

    def _additions(self, schema: TableSchema, fields: Sequence[Field]) -> Iterator[Field]:
        """Columns that the table did not have when it was first seen: what was left out then stays out."""
        first = {column.name for column in self._versions[min(self._versions)].schema.columns}
        taken = {field.name.lower() for field in fields} | set(HISTORY_NAMES)
        for column in schema.columns:
            new = column.name not in first and column.name.lower() not in taken
            if new and _PLAIN_NAME.fullmatch(column.name) and _type(column) is not None:
                yield Field(column.name, column.lake_type, added=True)

    def _problems(self, schema: TableSchema, fields: Sequence[Field]) -> Iterator[str]:
        captured, key = {column.name: column for column in schema.columns}, self._source.gate.key
        for field in fields:
            column = captured.get(field.name)
            if column is None and not field.nullable:
                yield f"column {field.name} is gone, which must not be null"
            if column is not None and not _fits(_type(column), field.kind):
                yield f"column {field.name} is {column.type} (as {column.lake_type}), the table has {field.type}"
        first = self._versions[min(self._versions)].schema.key
        if set(schema.key) not in (set(first), set(key)):
            yield f"the primary key is ({', '.join(schema.key)}), the table has ({', '.join(key)})"


def land_schemas(system: str, log: ChangeLog, lake: Lake) -> int:
    """Land the versions that are not in the table `monitoring/<system>/schemas` yet. Returns how many."""
    table = keys.schemas(system)
    sources = log.partitions(schemas_topic(system))
    if not any(log.ends(sources).values()):
        return 0
    if not lake.exists(table):
        lake.append(table, SCHEMAS_SCHEMA.empty_table())
    onto = lake.table(table)
    begins = {str(source): onto.transaction_version(str(source)) or 0 for source in sources}
    found = list(_records(system, log, begins))
    if not found:
        return 0
    rows = pa.Table.from_pylist([_row(*each) for each in found], schema=SCHEMAS_SCHEMA)
    offsets = {f"{schemas_topic(system)}-{partition}": offset + 1 for _, partition, offset in found}
    try:
        lake.append(table, rows, offsets, onto=onto)
    except ConcurrentWriteError:
        return 0  # they are in the table: another process landed them
    return len(found)


def _records(system: str, log: ChangeLog, begins: Mapping[str, int]) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Recorded versions with the partition and offset that they are at."""
    for source in log.partitions(schemas_topic(system)):
        offset = max(begins.get(str(source), 0), log.begin(source))
        while (records := log.read(source, offset, _AT_ONCE)).num_rows:
            offset = next_offset(records, offset)
            for at, value in zip(records["offset"].to_pylist(), records["value"].to_pylist(), strict=True):
                if value is not None:
                    yield json.loads(value), source.partition, at


def _row(found: Mapping[str, Any], partition: int, offset: int) -> dict[str, Any]:
    version = _version(found)
    return {
        "relation": _relation(found),
        "version": version.number,
        "source_epoch": version.epoch,
        "source_position": version.position,
        "recorded_at": datetime(1970, 1, 1) + timedelta(microseconds=found["at_us"]),
        "changed": list(version.changed),
        "key": list(version.schema.key),
        "columns": json.dumps(found["columns"]),
        "log_partition": partition,
        "log_offset": offset,
    }


def _version(found: Mapping[str, Any]) -> Version:
    position = found["position"]
    return Version(
        found["version"],
        TableSchema.from_json(found),
        tuple(found["changed"]),
        position.get("epoch", 0),
        position.get("commit", 0),
    )


def _relation(found: Mapping[str, Any]) -> str:
    return f"{found['schema']}.{found['table']}"


def _added_before(declared: Contract, found: pa.Schema) -> Iterator[Field]:
    """The columns that the table got from earlier versions."""
    known = set(declared.schema.names)
    for column in found:
        if column.name not in known and was_added(column):
            yield Field(column.name, _name_of(column.type), added=True)


def was_added(column: pa.Field) -> bool:
    """Whether a table's column came from a captured table's schema, undeclared."""
    return (column.metadata or {}).keys() >= {name.encode() for name in ADDED}


def _as_captured(field: Field, schema: TableSchema) -> Field:
    """Text that is JSON is read as such, though the table calls it text."""
    for column in schema.columns if field.added else ():
        kind = _type(column)
        if column.name == field.name and kind is not None and arrow_type(kind) == arrow_type(field.kind):
            return replace(field, type=column.lake_type)
    return field


def _name_of(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list<{_name_of(kind.value_type)}>"
    if pa.types.is_decimal(kind):
        return f"decimal({kind.precision},{kind.scale})"
    names = {"double": "float64", "timestamp[us]": "timestamp", "date32[day]": "date"}
    return names.get(str(kind), str(kind))


def _type(column: CapturedColumn) -> LakeType | None:
    try:
        return parse_type(column.lake_type)
    except ValueError:
        return None


def _fits(captured: LakeType | None, kept: LakeType) -> bool:
    """Whether each value of the one is, as it is written in a change, either the same value of the other or refused."""
    if captured is None:
        return False
    if captured.element is not None and kept.element is not None:
        inner = kept.element
        while inner.element is not None and captured.element.element is None:
            inner = inner.element  # PostgreSQL does not say how many dimensions an array has: each value does
        return _fits(captured.element, inner)
    numbers = captured.kind in ("int64", "decimal") and kept.kind in ("int64", "decimal")
    return captured == kept or numbers or (captured.kind, kept.kind) in {*_ALSO}
