"""What a captured table looks like, in versions: a schema is recorded with the position from which it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from streaming.log_writer import LogWriter

__all__ = ["CapturedColumn", "SchemaHistory", "TableSchema", "differences", "schemas_topic"]


@dataclass(frozen=True)
class CapturedColumn:
    """A column: `type` in the database's own words (`numeric(12,2)`), `lake_type` as landing keeps it.

    `number`: the server's own for it, which another name does not change; None where that is not known.
    """

    name: str
    type: str
    lake_type: str
    nullable: bool = True
    number: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class TableSchema:
    """A table's columns in order and its primary key's columns in key order (empty: it has none)."""

    schema: str
    table: str
    columns: tuple[CapturedColumn, ...]
    key: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def digest(self) -> str:
        """The same for schemas that are equal."""
        plain = asdict(self)
        for column in plain["columns"]:
            del column["number"]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> TableSchema:
        columns = tuple(CapturedColumn(**column) for column in found["columns"])
        return cls(found["schema"], found["table"], columns, tuple(found["key"]))


def differences(before: TableSchema, after: TableSchema, renamed: Mapping[str, str] | None = None) -> list[str]:
    """What changed, a phrase for each: `added column vat numeric(12,2)`.

    `renamed`: names that columns without numbers had before, by the new one, in lower case.
    """
    origins = _origins(before, after, renamed or {})
    kept = {origin.name for origin in origins.values() if origin}
    found = [f"dropped column {column.name}" for column in before.columns if column.name not in kept]
    for column in after.columns:
        old = origins[column.name]
        if old is None:
            found.append(f"added column {column.name} {column.type}")
            continue
        if old.name != column.name:
            found.append(f"renamed column {old.name} to {column.name}")
        if old.type != column.type:
            found.append(f"column {column.name} from {old.type} to {column.type}")
        elif old.nullable != column.nullable:
            found.append(f"column {column.name} {'may' if column.nullable else 'must not'} be null")
    if before.key != after.key:
        found.append(f"primary key from ({', '.join(before.key)}) to ({', '.join(after.key)})")
    return found


def _origins(
    before: TableSchema, after: TableSchema, renamed: Mapping[str, str]
) -> Mapping[str, CapturedColumn | None]:
    """What each column was before; None of one that is new."""
    numbers = {old.number: old for old in before.columns if old.number is not None}
    names = {old.name: old for old in before.columns}
    folded = {name.lower(): old for name, old in names.items()}
    told = {new: folded[old] for new, old in renamed.items() if old in folded}
    moved = {old.name for old in told.values()}

    def origin(column: CapturedColumn) -> CapturedColumn | None:
        if numbers and column.number is not None:
            return numbers.get(column.number)
        return told.get(column.name.lower()) or (None if column.name in moved else names.get(column.name))

    return {column.name: origin(column) for column in after.columns}


def schemas_topic(system: str) -> str:
    """The topic that holds every version of every captured table's schema."""
    return f"capture.{system}.schemas"


@dataclass
class SchemaHistory:
    """The versions that were recorded so far, by table; a new one is durable before a row that has it is sent.

    A table that looks again as it did once has another version then: versions grow along the stream.
    """

    system: str
    versions: dict[str, list[TableSchema]] = field(default_factory=dict)
    _places: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    _current: dict[str, int] = field(default_factory=dict)
    _renamed: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def load(cls, system: str, records: Sequence[Mapping[str, Any]]) -> SchemaHistory:
        """From the records of the schemas topic, in any order."""
        history = cls(system)
        for found in sorted(records, key=lambda r: (r["schema"], r["table"], r["version"])):
            name, place = f"{found['schema']}.{found['table']}", found["position"]
            history.versions.setdefault(name, []).append(TableSchema.from_json(found))
            history._places.setdefault(name, []).append((place["epoch"], place["commit"]))
        return history

    def begin(self, table: str, place: tuple[int, int]) -> TableSchema | None:
        """Go on from that place (epoch, commit) of the stream: how the table looked there, None if it was not known."""
        if table in self.versions:
            reached = [number for number, known in enumerate(self._places[table], 1) if known <= place]
            self._current[table] = max(reached, default=1)
        return self.current(table)

    def current(self, table: str) -> TableSchema | None:
        """How the table looks at this place of the stream, as far as that was told."""
        known = self.versions.get(table)
        return known[self._current.get(table, len(known)) - 1] if known else None

    def version(self, schema: TableSchema) -> int | None:
        """The version of a table that looks so from here on; None if it has to be recorded.

        It is the current one, or one that was recorded before the stream was taken up again further back.
        """
        known, digest = self.versions.get(schema.name, []), schema.digest
        current = self._current.get(schema.name, len(known))
        for number in range(max(current, 1), len(known) + 1):
            if known[number - 1].digest == digest:
                if number > current:  # what was renamed on the way is told there
                    self._renamed.pop(schema.name, None)
                self._current[schema.name] = number
                return number
        return None

    def seen(self, schema: TableSchema) -> int | None:
        """The latest version that looks so, wherever the stream is."""
        known, digest = self.versions.get(schema.name, []), schema.digest
        return next((number for number in range(len(known), 0, -1) if known[number - 1].digest == digest), None)

    def rename(self, table: str, names: Mapping[str, str]) -> None:
        """Columns of the table have other names from its next version on: the old ones, and what each is now."""
        known = self._renamed.get(table, {})
        now = {new.lower(): known.get(old.lower(), old.lower()) for old, new in names.items()}
        gone = {old.lower() for old in names}
        self._renamed[table] = {new: old for new, old in known.items() if new not in gone} | now

    def record(self, schema: TableSchema, writer: LogWriter, position: Mapping[str, int], at_us: int) -> int:
        """Make the schema the table's next version, durably. Returns its number, from 1."""
        known = self.versions.setdefault(schema.name, [])
        number = len(known) + 1
        renamed, before = self._renamed.pop(schema.name, {}), self.current(schema.name)
        changed = differences(before, schema, renamed) if before else ["first seen"]
        body = {
            **asdict(schema),
            "version": number,
            "digest": schema.digest,
            "position": dict(position),
            "at_us": at_us,
            "changed": changed,
        }
        key = json.dumps({"table": schema.name, "version": number}).encode()
        writer.flush()
        writer.send(schemas_topic(self.system), key, json.dumps(body).encode(), at_us)
        writer.flush()
        known.append(schema)
        self._places.setdefault(schema.name, []).append((position["epoch"], position["commit"]))
        self._current[schema.name] = number
        return number
