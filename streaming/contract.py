"""The contract check of a batch of records, as SQL: which records may land, and for what reason the others may not.

A record breaks its contract when it is no JSON object of the expected shape, when a column that must not be null is
missing or null, or when a value does not have the column's type (12.5 is no int64, "12" is none either). A delete needs
no more than its key: that is all that many sources have of it. How batches move is landing's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import duckdb
import pyarrow as pa

from catalog.keys import Key
from streaming.change import OPS, instant_sql, parse_sql

__all__ = ["FOUND", "QUARANTINE_SCHEMA", "Checked", "Contract", "Field", "check"]

FieldType = Literal["string", "int64", "float64", "bool", "timestamp", "json"]
_ARROW: Mapping[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us"),
    "json": pa.string(),
}
_ENVELOPE = [
    ("change_op", pa.string()),
    ("source_position", pa.int64()),
    ("tx_id", pa.int64()),
    ("event_at", pa.timestamp("us")),
]
_PLACE = [("landed_at", pa.timestamp("us")), ("log_partition", pa.int64()), ("log_offset", pa.int64())]
QUARANTINE_SCHEMA = pa.schema(
    [
        ("reason", pa.string()),
        ("topic", pa.string()),
        ("log_partition", pa.int64()),
        ("log_offset", pa.int64()),
        ("landed_at", pa.timestamp("us")),
        ("key", pa.string()),
        ("value", pa.string()),
    ]
)
# Years 1 to 9999: what a timestamp can be before arithmetic on it overflows somewhere downstream.
_MIN_US, _MAX_US = -62_135_596_800_000_000, 253_402_300_799_999_999
_RANGE = f"BETWEEN {_MIN_US} AND {_MAX_US}"
# How much of a wrong value a reason quotes.
_QUOTED = 60
# Between the problem and the value in a reason.
FOUND = ", found "


@dataclass(frozen=True)
class Field:
    """One column that a record must or may have; `json` keeps an object as text, `key` is needed of a delete too."""

    name: str
    type: FieldType
    nullable: bool = True
    key: bool = False


@dataclass(frozen=True)
class Contract:
    """What records of one topic must look like: rows inside change envelopes, or flat objects (`envelope` False)."""

    topic: str
    table: Key
    quarantine: Key
    fields: tuple[Field, ...]
    envelope: bool = True

    @property
    def schema(self) -> pa.Schema:
        """The landed table: the record's own columns, then where and when it came from."""
        own = [(f.name, _ARROW[f.type]) for f in self.fields]
        return pa.schema(own + (_ENVELOPE if self.envelope else []) + _PLACE)


@dataclass(frozen=True)
class Checked:
    """One batch, divided. `nulls` counts null or missing by column over the `read` records that are no tombstones."""

    landed: pa.Table
    quarantined: pa.Table
    nulls: Mapping[str, int]
    reasons: Mapping[str, int]
    tombstones: int


def check(contract: Contract, partition: int, records: pa.Table) -> Checked:
    """Divide `records` (log.BATCH_SCHEMA) by the contract, in order of offset."""
    with duckdb.connect() as connection:
        connection.register("records", records)
        connection.execute(f"CREATE TEMP TABLE checked AS {_checked_sql(contract)}")
        landed = connection.sql(_landed_sql(contract, partition)).to_arrow_table().cast(contract.schema)
        bad = connection.sql(_quarantined_sql(contract, partition)).to_arrow_table()
        counts = ", ".join([f'count(*) - count(row."{f.name}")' for f in contract.fields])
        nulls = connection.sql(f"SELECT {counts} FROM checked").fetchall()[0]
        tombstones = records.num_rows - connection.sql("SELECT count(*) FROM checked").fetchall()[0][0]
    reasons: dict[str, int] = {}
    for problem in bad["problem"].to_pylist():
        reasons[problem] = reasons.get(problem, 0) + 1
    return Checked(
        landed,
        bad.select(QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA),
        dict(zip([f.name for f in contract.fields], nulls, strict=True)),
        reasons,
        tombstones,
    )


def _checked_sql(contract: Contract) -> str:
    """The records that are no tombstones, with `row` (raw JSON by column), `typed` values, and `ok`."""
    records = "(SELECT * FROM records WHERE value IS NOT NULL)"
    parsed = (
        parse_sql(records, [f.name for f in contract.fields]) if contract.envelope else _flat_sql(contract, records)
    )
    typed = ", ".join(f'{_typed_sql(f)} AS "t_{f.name}"' for f in contract.fields)
    fits = [f"timestamp_us {_RANGE}", *(_fits_sql(contract, f) for f in contract.fields)]
    if contract.envelope:
        fits += ["key IS NOT NULL", f"coalesce(op IN {OPS}, false)", f"ts {_RANGE}", "lsn IS NOT NULL"]
    return f"""
        WITH parsed_records AS ({parsed}),
        typed_records AS (SELECT *, {typed} FROM parsed_records)
        SELECT *, parsed IS NOT NULL AND row IS NOT NULL AND coalesce({" AND ".join(fits)}, false) AS ok
        FROM typed_records"""


def _fits_sql(contract: Contract, field: Field) -> str:
    lacking, typed = f'row."{field.name}" IS NULL', f'"t_{field.name}" IS NOT NULL'
    may_lack = "true" if field.nullable else _may_lack_sql(contract, field)
    return f"({typed} OR ({may_lack} AND {lacking}))"


def _may_lack_sql(contract: Contract, field: Field) -> str:
    """Whether the record may do without a column that must not be null."""
    return "op = 'd'" if contract.envelope and not field.key else "false"


def _flat_sql(contract: Contract, records: str) -> str:
    shape = ", ".join(f'"{f.name}": "JSON"' for f in contract.fields)
    return f"SELECT *, parsed AS row FROM (SELECT *, TRY(from_json(value, '{{{shape}}}')) AS parsed FROM {records})"


def _typed_sql(field: Field) -> str:
    """The raw JSON as a value of the field's type, null where it has another."""
    raw = f'row."{field.name}"'
    text = f"{raw}::VARCHAR"
    unquoted = (
        f"CASE WHEN NOT starts_with({text}, '\"') THEN NULL WHEN contains({text}, '\\') THEN {raw} ->> '$' "
        f"ELSE substring({text}, 2, length({text}) - 2) END"
    )
    if field.type == "int64":  # the round trip refuses 12.5, which a cast would round
        return f"CASE WHEN TRY_CAST({text} AS BIGINT)::VARCHAR = {text} THEN TRY_CAST({text} AS BIGINT) END"
    if field.type == "float64":
        return f"CASE WHEN isfinite(TRY_CAST({text} AS DOUBLE)) THEN TRY_CAST({text} AS DOUBLE) END"
    if field.type == "bool":
        return f"CASE {text} WHEN 'true' THEN true WHEN 'false' THEN false END"
    if field.type == "timestamp":
        micros = f"TRY_CAST({text} AS BIGINT)"
        written = f"CASE WHEN starts_with({text}, '\"') THEN {instant_sql(unquoted)} END"
        return (
            f"CASE WHEN {micros} {_RANGE} THEN make_timestamp({micros}) "
            f"WHEN year({written}) BETWEEN 1 AND 9999 THEN {written} END"  # the year of infinity is null
        )
    return text if field.type == "json" else unquoted


def _landed_sql(contract: Contract, partition: int) -> str:
    own = ", ".join(f'"t_{f.name}" AS "{f.name}"' for f in contract.fields)
    envelope = "op AS change_op, lsn AS source_position, tx_id, make_timestamp(ts) AS event_at,"
    return f"""
        SELECT {own}, {envelope if contract.envelope else ""} make_timestamp(timestamp_us) AS landed_at,
            {partition}::BIGINT AS log_partition, "offset" AS log_offset
        FROM checked WHERE ok ORDER BY "offset" """


def _quarantined_sql(contract: Contract, partition: int) -> str:
    """The records that may not land; `problem` is the reason without the value that was found."""
    return f"""
        WITH told AS (
            SELECT *, CASE {_problem_sql(contract)} END AS told FROM checked WHERE NOT ok)
        SELECT told.problem AS problem, '{contract.topic}' AS topic, {partition}::BIGINT AS log_partition,
            "offset" AS log_offset,
            CASE WHEN timestamp_us {_RANGE} THEN make_timestamp(timestamp_us) END AS landed_at, key, value,
            told.problem || coalesce('{FOUND}' || left(told.found, {_QUOTED}), '') AS reason
        FROM told ORDER BY "offset" """


def _problem_sql(contract: Contract) -> str:
    """WHEN branches, each a struct of problem and what was found; the first that applies is the reason."""
    branches = [("parsed IS NULL", "value: not a JSON object", "value")]
    if contract.envelope:
        image = f"json_extract(value, {_image_sql(contract)})"
        branches += [
            ("key IS NULL", "key: null", "NULL"),
            (f"NOT coalesce(op IN {OPS}, false)", f"op: not one of {', '.join(OPS)}", "coalesce(op, 'none')"),
            (f"coalesce(json_type({image}), 'NULL') = 'NULL'", "after: missing or null (before, for a delete)", "NULL"),
            (f"json_type({image}) <> 'OBJECT'", "after: not a JSON object (before, for a delete)", image),
        ]
    for field in contract.fields:
        branches += _field_problems(contract, field)
    branches.append((f"NOT timestamp_us {_RANGE}", "timestamp: out of range", "timestamp_us"))
    if contract.envelope:
        branches += [
            (f"NOT coalesce(ts {_RANGE}, false)", "source.ts_ms: missing or out of range", "NULL"),
            ("lsn IS NULL", "source.lsn: missing or not an integer", "parsed.source.lsn"),
        ]
    branches.append(("true", "value: not of the expected shape", "NULL"))
    return " ".join(
        f"WHEN {when} THEN {{'problem': '{problem}', 'found': ({found})::VARCHAR}}" for when, problem, found in branches
    )


def _field_problems(contract: Contract, field: Field) -> Iterator[tuple[str, str, str]]:
    raw, name = f'row."{field.name}"', field.name
    if not field.nullable:
        lacks = f"{raw} IS NULL AND NOT ({_may_lack_sql(contract, field)})"
        there = f"json_exists(value, {_image_sql(contract)} || '.{name}')"
        yield f"{lacks} AND NOT {there}", f"{name}: missing, but required", "NULL"
        yield lacks, f"{name}: null, but must not be", "NULL"
    problem = f"{name}: not {_article(field.type)} {field.type}"
    yield f'{raw} IS NOT NULL AND "t_{name}" IS NULL', problem, f"{raw}::VARCHAR"


def _image_sql(contract: Contract) -> str:
    """Where in the value the row is, as a JSON path."""
    return "CASE op WHEN 'd' THEN '$.before' ELSE '$.after' END" if contract.envelope else "'$'"


def _article(kind: str) -> str:
    return "an" if kind[0] in "aeiou" else "a"
