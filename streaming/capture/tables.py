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
    """A column: `type` in the database's own words (`numeric(12,2)`), `lake_type` as landing keeps it."""

    name: str
    type: str
    lake_type: str
    nullable: bool = True


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
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> TableSchema:
        columns = tuple(CapturedColumn(**column) for column in found["columns"])
        return cls(found["schema"], found["table"], columns, tuple(found["key"]))


def differences(before: TableSchema, after: TableSchema) -> list[str]:
    """What changed, a phrase for each: `added column vat numeric(12,2)`. A rename reads as dropped and added."""
    old, new = {c.name: c for c in before.columns}, {c.name: c for c in after.columns}
    found = [f"dropped column {name}" for name in old if name not in new]
    found += [f"added column {name} {c.type}" for name, c in new.items() if name not in old]
    for name, column in new.items():
        if name in old and old[name].type != column.type:
            found.append(f"column {name} from {old[name].type} to {column.type}")
        elif name in old and old[name].nullable != column.nullable:
            found.append(f"column {name} {'may' if column.nullable else 'must not'} be null")
    if before.key != after.key:
        found.append(f"primary key from ({', '.join(before.key)}) to ({', '.join(after.key)})")
    return found


def schemas_topic(system: str) -> str:
    """The topic that holds every version of every captured table's schema."""
    return f"capture.{system}.schemas"


@dataclass
class SchemaHistory:
    """The versions that were recorded so far, by table; a new one is durable before a row that has it is sent."""

    system: str
    versions: dict[str, list[TableSchema]] = field(default_factory=dict)

    @classmethod
    def load(cls, system: str, records: Sequence[Mapping[str, Any]]) -> SchemaHistory:
        """From the records of the schemas topic, in any order."""
        history = cls(system)
        for found in sorted(records, key=lambda r: (r["schema"], r["table"], r["version"])):
            history.versions.setdefault(f"{found['schema']}.{found['table']}", []).append(TableSchema.from_json(found))
        return history

    def version(self, schema: TableSchema) -> int | None:
        """The latest recorded version that looks like this; None if it was never seen."""
        known = self.versions.get(schema.name, [])
        same = [number for number, one in enumerate(known, 1) if one.digest == schema.digest]
        return same[-1] if same else None

    def record(self, schema: TableSchema, writer: LogWriter, position: Mapping[str, int], at_us: int) -> int:
        """Make the schema the table's next version, durably. Returns its number, from 1."""
        known = self.versions.setdefault(schema.name, [])
        number = len(known) + 1
        changed = differences(known[-1], schema) if known else ["first seen"]
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
        return number
