"""The contract check of a batch of records, as SQL: which records may land, and for what reason the others may not.

A record breaks its contract when it is no JSON object of the expected shape, when a column that must not be null is
missing or null, or when a value does not have the column's type (12.5 is no int64, "12" is none either). A delete needs
no more than its key: that is all that many sources have of it, and the row is gone whatever was in it; values of it
that do not fit are null. Where rows have no key, only their values tell which one went, or was replaced by an update:
that lands as two, the row that went (op d) and the one that came (op u). How batches move is landing's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property

import duckdb
import pyarrow as pa

from catalog.column_types import LakeType, parse_type
from catalog.keys import Key
from lake.schema import HISTORY_COLUMNS, arrow_type
from streaming.change import OPS, parse_sql
from streaming.landing_order import Place, repeated, streamed_sql
from streaming.landing_types import MICROS_RANGE, typed_sql

__all__ = ["ADDED", "FOUND", "QUARANTINE_SCHEMA", "Checked", "Contract", "Field", "check"]

_PLACE = ("landed_at", "log_partition", "log_offset")
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
# How a table remembers which of its columns it has got from a captured table's schema, undeclared.
ADDED = {"headwater.added": "true"}
# How much of a wrong value a reason quotes.
_QUOTED = 60
# Between the problem and the value in a reason.
FOUND = ", found "
_VALUES = "(SELECT * FROM records WHERE value IS NOT NULL)"


@dataclass(frozen=True)
class Field:
    """One column that a record must or may have, by its type's name; `key` is needed of a delete too.

    `added`: the captured table got it after it was declared.
    """

    name: str
    type: str
    nullable: bool = True
    key: bool = False
    added: bool = False

    @cached_property
    def kind(self) -> LakeType:
        return parse_type(self.type)


@dataclass(frozen=True)
class Contract:
    """What records of one topic must look like: rows inside change envelopes, or flat objects (`envelope` False).

    `keyed`: every change has a key. `misfits`: by the version of a captured table's schema, why its rows cannot land;
    `keys_fit`: those of them whose keys can, so that rows go which were there before.
    """

    topic: str
    table: Key
    quarantine: Key
    fields: tuple[Field, ...]
    envelope: bool = True
    keyed: bool = True
    misfits: Mapping[int, str] = field(default_factory=dict)
    keys_fit: frozenset[int] = frozenset()

    @property
    def event_column(self) -> str:
        """When it happened, in the landed table."""
        return "event_at" if self.envelope else "served_at"

    @cached_property
    def schema(self) -> pa.Schema:
        """The landed table: the record's own columns, then where and when it came from, then what was added."""
        own = [(f.name, arrow_type(f.kind)) for f in self.fields if not f.added]
        added = [pa.field(f.name, arrow_type(f.kind), metadata=ADDED) for f in self.fields if f.added]
        history = [c for c in HISTORY_COLUMNS if self.envelope or c.name in _PLACE]
        return pa.schema([*own, *((c.name, arrow_type(parse_type(c.type))) for c in history), *added])


@dataclass(frozen=True)
class Checked:
    """One batch, divided. `nulls` counts null or missing by column over the records that are landed or quarantined.

    An update of a row without key is two rows of `landed`. `repeated` records were there before; `watermark` is the
    place of the last change; `versions` are the versions of the captured table's schema that the records name.
    """

    landed: pa.Table
    quarantined: pa.Table
    nulls: Mapping[str, int]
    reasons: Mapping[str, int]
    tombstones: int
    repeated: int = 0
    watermark: Place | None = None
    versions: frozenset[int] = frozenset()


Fill = Callable[[duckdb.DuckDBPyConnection], None]
"""Fills in values that the database did not send, in the table `checked` (see landing_unchanged)."""


def check(
    contract: Contract, partition: int, records: pa.Table, watermark: Place | None = None, fill: Fill | None = None
) -> Checked:
    """Divide `records` (log.BATCH_SCHEMA) by the contract, in order of offset; `watermark` is the last batch's."""
    with _database().cursor() as connection:
        connection.register("records", records)
        unsent = contract.envelope and _any_unsent(connection)
        connection.execute(f"CREATE TEMP TABLE checked AS {_checked_sql(contract, unsent)}")
        values, dropped, versions = records.num_rows - records["value"].null_count, 0, frozenset[int]()
        if contract.envelope:
            dropped, watermark = _drop_repeated(connection, watermark)
            found = connection.sql("SELECT DISTINCT schema_version FROM checked WHERE schema_version IS NOT NULL")
            versions = frozenset(version for (version,) in found.fetchall())
        if unsent and fill is not None:
            fill(connection)
        (fitting,) = connection.sql("SELECT count(*) FROM checked WHERE ok").fetchall()[0]
        if contract.envelope and not contract.keyed:
            connection.execute(f"INSERT INTO checked BY NAME {_replaced_sql(contract)}")
        landed = connection.sql(_landed_sql(contract, partition)).to_arrow_table()
        landed = landed.select(contract.schema.names).cast(contract.schema)
        bad = _quarantined(connection, contract, partition, values - dropped - fitting)
    nulls = {f.name: landed[f.name].null_count + bad[f"n_{f.name}"].to_pylist().count(True) for f in contract.fields}
    reasons: dict[str, int] = {}
    for problem in bad["problem"].to_pylist():
        reasons[problem] = reasons.get(problem, 0) + 1
    return Checked(
        landed,
        bad.select(QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA),
        nulls,
        reasons,
        records.num_rows - values,
        dropped,
        watermark,
        versions,
    )


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """One in memory for all batches: to open it costs 25 ms of CPU, and a cursor's temporary tables are its own."""
    return duckdb.connect()


def _any_unsent(connection: duckdb.DuckDBPyConnection) -> bool:
    found = connection.sql("""SELECT 1 FROM records WHERE contains(value, '"unsent":') LIMIT 1""").fetchall()
    return bool(found)


def _drop_repeated(connection: duckdb.DuckDBPyConnection, watermark: Place | None) -> tuple[int, Place | None]:
    # In order: many threads fill a table of DuckDB's in any.
    places = connection.sql(
        "SELECT log_offset, epoch, position, ordinal FROM checked WHERE streamed ORDER BY log_offset"
    ).to_arrow_table()
    again, watermark = repeated(places, watermark)
    if again.num_rows:
        connection.register("again", again)
        connection.execute("DELETE FROM checked WHERE log_offset IN (SELECT log_offset FROM again)")
    return again.num_rows, watermark


def _replaced_sql(contract: Contract) -> str:
    """The rows that updates replaced, as deletions; one that does not fit has never landed and is not there to go."""
    updates = """(SELECT r.* FROM records r JOIN checked c ON r."offset" = c.log_offset WHERE c.ok AND c.op = 'u')"""
    return f"SELECT * FROM ({_checked_sql(contract, False, updates, replaced=True)}) WHERE ok"


def _checked_sql(contract: Contract, unsent: bool, records: str = _VALUES, *, replaced: bool = False) -> str:
    """The records that are no tombstones: their typed values (`t_column`), their place, and whether they are `ok`.

    With `unsent` also `u_column`: whether the database did not send the value. `told` is for who finds more problems.
    """
    return f"""
        WITH parsed_records AS ({_parsed_sql(contract, records, replaced=replaced)}),
        typed_records AS (SELECT *, {", ".join(_values_sql(contract, unsent))} FROM parsed_records)
        SELECT "offset" AS log_offset, timestamp_us, key, NULL::VARCHAR AS told,
            {"op, ts, tx_id, epoch, position, ordinal, schema_version," if contract.envelope else ""}
            {f"coalesce({streamed_sql()}, false) AS streamed," if contract.envelope else ""}
            {", ".join(name for f in contract.fields for name in _names(f, unsent))},
            coalesce({" AND ".join(_fits(contract, unsent))}, false) AS ok
        FROM typed_records"""


def _parsed_sql(contract: Contract, records: str, *, replaced: bool = False) -> str:
    """The records with `row`, the raw JSON of each column."""
    if contract.envelope:
        return parse_sql(records, [f.name for f in contract.fields], replaced=replaced)
    shape = ", ".join(f'"{f.name}": "JSON"' for f in contract.fields)
    return f"SELECT *, parsed AS row FROM (SELECT *, TRY(from_json(value, '{{{shape}}}')) AS parsed FROM {records})"


def _names(field: Field, unsent: bool) -> list[str]:
    return [f'"t_{field.name}"', f'"u_{field.name}"'] if unsent else [f'"t_{field.name}"']


def _values_sql(contract: Contract, unsent: bool) -> Iterator[str]:
    for f in contract.fields:
        raw = f'row."{f.name}"'
        typed, placeholder = typed_sql(f.kind, raw), f"coalesce(list_contains(unsent, '{f.name}'), false)"
        if contract.keys_fit and not f.key:
            typed = f"CASE WHEN NOT {_only_key_sql(contract)} THEN {typed} END"
        yield f'CASE WHEN NOT {placeholder} THEN {typed} END AS "t_{f.name}"' if unsent else f'{typed} AS "t_{f.name}"'
        if unsent:
            yield f'{placeholder} AS "u_{f.name}"'


def _fits(contract: Contract, unsent: bool) -> Iterator[str]:
    """Conditions that a record has to meet."""
    yield f"timestamp_us {MICROS_RANGE}"
    if contract.envelope:
        yield "parsed IS NOT NULL AND (row IS NOT NULL OR op = 't')"
        yield f"op IN {OPS} AND ts {MICROS_RANGE}"
        yield "epoch >= 0 AND ordinal >= 0 AND position IS NOT NULL"
        if contract.keyed:
            yield "(key IS NOT NULL OR op = 't')"
        if contract.misfits:
            # That the table was emptied has no row that would not fit; that a row is gone needs its key.
            fits = f"coalesce(schema_version NOT IN ({', '.join(map(str, contract.misfits))}), true)"
            yield f"(op = 't' OR {_only_key_sql(contract)} OR {fits})"
    else:
        yield "parsed IS NOT NULL"
    for f in contract.fields:
        lacking, sent = f'row."{f.name}" IS NULL', f' OR "u_{f.name}"' if unsent else ""
        may_lack = "true" if f.nullable else _may_lack_sql(contract, f)
        if contract.envelope and contract.keyed and not f.key:
            sent += " OR op = 'd'"
        yield f'("t_{f.name}" IS NOT NULL OR ({may_lack} AND {lacking}){sent})'


def _only_key_sql(contract: Contract) -> str:
    """Whether it is the deletion of a row of which only the key can be read as what it is."""
    if not contract.keys_fit:
        return "false"
    return f"coalesce(op = 'd' AND schema_version IN ({', '.join(map(str, sorted(contract.keys_fit)))}), false)"


def _may_lack_sql(contract: Contract, field: Field) -> str:
    """Whether the record may do without a column that must not be null."""
    if not contract.envelope:
        return "false"
    return "op = 't'" if field.key else "op IN ('d', 't')"


def _landed_sql(contract: Contract, partition: int) -> str:
    own = ", ".join(f'"t_{f.name}" AS "{f.name}"' for f in contract.fields)
    envelope = (
        "op AS change_op, epoch AS source_epoch, position AS source_position, ordinal AS source_order, tx_id, "
        "make_timestamp(ts) AS event_at,"
    )
    return f"""
        SELECT {own}, {envelope if contract.envelope else ""} make_timestamp(timestamp_us) AS landed_at,
            {partition}::BIGINT AS log_partition, log_offset
        FROM checked WHERE ok ORDER BY log_offset{", op <> 'd'" if contract.envelope else ""}"""


def _quarantined(connection: duckdb.DuckDBPyConnection, contract: Contract, partition: int, expected: int) -> pa.Table:
    """The records that may not land, read once more for the reason; without any nothing is read."""
    if not expected:
        names = [*QUARANTINE_SCHEMA.names, "problem", *(f"n_{f.name}" for f in contract.fields)]
        return pa.table({name: pa.array([], pa.string()) for name in names}).cast(
            pa.schema([QUARANTINE_SCHEMA.field(n) if n in QUARANTINE_SCHEMA.names else (n, pa.string()) for n in names])
        )
    return connection.sql(_quarantined_sql(contract, partition)).to_arrow_table()


def _quarantined_sql(contract: Contract, partition: int) -> str:
    """`problem` is the reason without the value that was found, `n_column` whether the column is null or missing."""
    bad = '(SELECT r.*, c.told FROM records r JOIN checked c ON r."offset" = c.log_offset WHERE NOT c.ok)'
    typed = ", ".join(_values_sql(contract, unsent=False))
    nulls = ", ".join(f'row."{f.name}" IS NULL AS "n_{f.name}"' for f in contract.fields)
    return f"""
        WITH parsed_records AS ({_parsed_sql(contract, bad)}),
        typed_records AS (SELECT *, {typed} FROM parsed_records),
        explained AS (SELECT *, CASE {_problem_sql(contract)} END AS why FROM typed_records)
        SELECT why.problem AS problem, '{contract.topic}' AS topic, {partition}::BIGINT AS log_partition,
            "offset" AS log_offset,
            CASE WHEN timestamp_us {MICROS_RANGE} THEN make_timestamp(timestamp_us) END AS landed_at, key, value,
            why.problem || coalesce('{FOUND}' || left(why.found, {_QUOTED}), '') AS reason, {nulls}
        FROM explained ORDER BY "offset" """


def _problem_sql(contract: Contract) -> str:
    """WHEN branches, each a struct of problem and what was found; the first that applies is the reason."""
    branches = [("told IS NOT NULL", "told", "NULL"), ("parsed IS NULL", _text("value: not a JSON object"), "value")]
    if contract.envelope:
        image = f"json_extract(value, {_image_sql(contract)})"
        branches += [(f"schema_version = {version}", _text(why), "NULL") for version, why in contract.misfits.items()]
        branches += [
            (f"key IS NULL AND {'true' if contract.keyed else 'false'} AND op IS DISTINCT FROM 't'",
             _text("key: null"), "NULL"),
            (f"NOT coalesce(op IN {OPS}, false)", _text(f"op: not one of {', '.join(OPS)}"), "coalesce(op, 'none')"),
            (f"op <> 't' AND coalesce(json_type({image}), 'NULL') = 'NULL'",
             _text("after: missing or null (before, for a delete)"), "NULL"),
            (f"op <> 't' AND json_type({image}) <> 'OBJECT'",
             _text("after: not a JSON object (before, for a delete)"), image),
        ]  # fmt: skip
    for f in contract.fields:
        branches += _field_problems(contract, f)
    branches.append((f"NOT timestamp_us {MICROS_RANGE}", _text("timestamp: out of range"), "timestamp_us"))
    if contract.envelope:
        branches += [
            (f"NOT coalesce(ts {MICROS_RANGE}, false)", _text("source.ts_ms: missing or out of range"), "NULL"),
            ("placed", _text("source.headwater: not epoch, commit and order"), "parsed.source.headwater"),
            ("position IS NULL", _text("source.lsn: missing or not an integer"), "parsed.source.lsn"),
        ]
    branches.append(("true", _text("value: not of the expected shape"), "NULL"))
    return " ".join(
        f"WHEN {when} THEN {{'problem': {problem}, 'found': ({found})::VARCHAR}}" for when, problem, found in branches
    )


def _field_problems(contract: Contract, field: Field) -> Iterator[tuple[str, str, str]]:
    raw, name = f'row."{field.name}"', field.name
    if not field.nullable:
        lacks = f"{raw} IS NULL AND NOT ({_may_lack_sql(contract, field)})"
        there = f"json_exists(value, {_image_sql(contract)} || '.\"{name}\"')"
        yield f"{lacks} AND NOT {there}", _text(f"{name}: missing, but required"), "NULL"
        yield lacks, _text(f"{name}: null, but must not be"), "NULL"
    problem = f"{name}: not {_article(field.type)} {field.type}"
    yield f'{raw} IS NOT NULL AND "t_{name}" IS NULL', _text(problem), f"{raw}::VARCHAR"


def _image_sql(contract: Contract) -> str:
    """Where in the value the row is, as a JSON path."""
    return "CASE op WHEN 'd' THEN '$.before' ELSE '$.after' END" if contract.envelope else "'$'"


def _article(kind: str) -> str:
    return "an" if kind[0] in "aeiou" else "a"


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
