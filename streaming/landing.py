"""Lands the change log in the lake: what fits its contract in the table, the rest in quarantine, and what came of it.

How a batch lands exactly once is landing_batches' matter; how landing goes on for ever, landing_service's.

Errors: LandingError (see landing_batches.py)
          ├─ LostLogError          the table was landed from another log than this one
          └─ ChangedColumnsError   the table has other columns than its source now declares
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from catalog import keys
from catalog.keys import Key
from catalog.spec import Source
from lake.tables import Lake, quoted
from streaming.contract import FOUND, Contract, Field
from streaming.landing_batches import (
    ChangedColumnsError,
    LandingError,
    LostLogError,
    PartitionLanding,
    Step,
    landed_schema,
    make_tables,
)
from streaming.landing_schemas import SchemaChange, Schemas, land_schemas
from streaming.landing_types import typed_sql
from streaming.log import ChangeLog, TopicPartition
from streaming.log_writer import RetryableLogError

__all__ = [
    "ChangedColumnsError",
    "LandedHealth",
    "LandingError",
    "LandingReport",
    "LostLogError",
    "SchemaChange",
    "Total",
    "contract_of",
    "land",
    "land_served",
    "landed_health",
    "landed_version",
    "quarantine_waiting",
    "schema_changes",
    "served_contract",
]

GROUP = "landing"
_SERVED_FIELDS = (
    Field("prediction_id", "string", nullable=False),
    Field("request_id", "string"),
    Field("model", "string", nullable=False),
    Field("version", "string", nullable=False),
    Field("customer_id", "int64", nullable=False),
    Field("prediction", "float64", nullable=False),
    Field("features", "json", nullable=False),
    Field("features_as_of", "timestamp"),
    Field("served_at", "timestamp", nullable=False),
)


@dataclass(frozen=True)
class LandingReport:
    """What one run of landing did to the table `key`.

    `read` = `landed` + `quarantined` + `repeated` (a connector that was killed sent them again) + `tombstones` (keys
    without a value, which carry nothing to land); of a table without key an update counts twice in `landed` (see
    contract.py). `reasons` counts quarantined records by problem; `null_shares` is the
    share of null or missing by column, 0 to 1, over what was landed or quarantined. `version` is the table's Delta
    version. `schema_changes` are the versions of the captured table's columns that came into force.
    """

    key: Key
    read: int
    landed: int
    quarantined: int
    tombstones: int
    batches: int
    version: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    null_shares: Mapping[str, float] = field(default_factory=dict)
    repeated: int = 0
    schema_changes: tuple[SchemaChange, ...] = ()


@dataclass(frozen=True)
class LandedHealth:
    """Stored counts of a table and its quarantine, over all of the log or its last records."""

    key: Key
    landed: int
    quarantined: int
    reasons: Mapping[str, int]

    @property
    def quarantined_pct(self) -> float:
        """0 when nothing was read."""
        total = self.landed + self.quarantined
        return 100 * self.quarantined / total if total else 0.0


def land(source: Source, log: ChangeLog, lake: Lake, batch_rows: int) -> LandingReport:
    """Land the changes of one captured table that are not in the lake yet, `batch_rows` in each transaction.

    Raises LostLogError, ChangedColumnsError.
    """
    land_schemas(source.system, log, lake)
    return _land(contract_of(source), log, lake, batch_rows, Schemas(source, log))


def schema_changes(source: Source, log: ChangeLog, lake: Lake, after: int) -> Sequence[SchemaChange]:
    """The versions of a captured table's schema beyond `after` that have landed, whoever landed them.

    Where `after` is none that there is, the history was begun anew.
    """
    contract = contract_of(source)
    table = lake.table(contract.table)
    until = landed_schema(table, log.partitions(contract.topic))
    if until in (0, after):
        return ()
    found = pa.schema(table.schema().to_arrow())
    return Schemas(source, log).changes(contract, found, after if after < until else 0, until)


def landed_version(source: Source, lake: Lake) -> str | None:
    """What has landed of a captured table: another text whenever something has. None before anything has."""
    contract = contract_of(source)
    if not lake.exists(contract.table):
        return None
    versions = [lake.version(key) for key in (contract.table, contract.quarantine)]
    return ".".join("-" if version is None else str(version) for version in versions)


def land_served(model_name: str, log: ChangeLog, lake: Lake, batch_rows: int = 100_000) -> LandingReport:
    """Land the predictions that a model's endpoint has served; what is malformed: `quarantine/predictions/<model>`."""
    return _land(served_contract(model_name), log, lake, batch_rows)


def served_contract(model_name: str) -> Contract:
    """The contract of the predictions that a model's endpoint has served."""
    return Contract(
        topic=keys.served_topic(model_name),
        table=keys.served(model_name),
        quarantine=keys.quarantine("predictions", model_name),
        fields=_SERVED_FIELDS,
        envelope=False,
    )


def contract_of(source: Source) -> Contract:
    """The contract that a source's declaration makes."""
    return Contract(
        topic=keys.cdc_topic(source.system, source.table),
        table=keys.raw(source.system, source.table),
        quarantine=keys.quarantine(source.system, source.table),
        fields=tuple(Field(c.name, c.type, c.nullable, c.name in source.gate.key) for c in source.columns),
        keyed=not source.keyless,
    )


def landed_health(source: Source, lake: Lake, last: int | None = None) -> LandedHealth:
    """Counts over the table's lifetime, or over the newest `last` offsets of each log partition.

    Raises MissingTableError when nothing was ever landed.
    """
    contract = contract_of(source)
    newest = f"WHERE log_offset > newest - {last}" if last is not None else ""
    with lake.connect([contract.table, contract.quarantine]) as connection:
        counts = connection.sql(
            f"""
            WITH seen AS (
                SELECT log_partition, log_offset, NULL AS problem FROM {quoted(contract.table)}
                UNION ALL
                SELECT log_partition, log_offset, split_part(reason, '{FOUND}', 1) FROM {quoted(contract.quarantine)}),
            placed AS (SELECT *, max(log_offset) OVER (PARTITION BY log_partition) AS newest FROM seen)
            SELECT problem, count(*) FROM placed {newest} GROUP BY problem ORDER BY problem"""
        ).fetchall()
    reasons = {problem: count for problem, count in counts if problem is not None}
    landed = sum(count for problem, count in counts if problem is None)
    return LandedHealth(contract.table, landed, sum(reasons.values()), reasons)


def quarantine_waiting(source: Source, lake: Lake) -> Mapping[tuple[int, int], str]:
    """The records in quarantine that nothing has settled since, by partition and offset: the problem of each.

    A change of the same row that is later in the log or at the source, and has landed, settles them, or that the table
    was emptied; and a record that does not say whose change it is, that the table was read again.
    """
    contract = contract_of(source)
    if not lake.exists(contract.quarantine) or not lake.rows(contract.quarantine):
        return {}
    own = [f for f in contract.fields if f.key and contract.keyed]
    names = "".join(f', "{f.name}"' for f in own)
    said = "(said -> '{}')"
    typed = "".join(f', {typed_sql(f.kind, said.format(f.name))} AS "{f.name}"' for f in own)
    unknown = " OR ".join([f'waiting."{f.name}" IS NULL' for f in own] or ["true"])
    # What was put through again is later in the log than what followed it at the source.
    place = ", ".join(f"TRY_CAST(told ->> '{name}' AS BIGINT)" for name in ("epoch", "commit", "order"))
    among = f"AND ({names[2:]}) IN (SELECT ({names[2:]}) FROM waiting)" if own else "AND false"
    with lake.connect([contract.table, contract.quarantine]) as connection:
        found = connection.sql(
            f"""
            WITH waiting AS (
                SELECT log_partition, log_offset, split_part(reason, '{FOUND}', 1) AS problem, row({place}) AS place
                    {typed}
                FROM (
                    SELECT *, CASE WHEN json_valid(key) THEN key::JSON END AS said,
                        CASE WHEN json_valid(value) THEN value::JSON -> '$.source.headwater' END AS told
                    FROM {quoted(contract.quarantine)})),
            same AS (
                SELECT log_partition {names}, max(log_offset) AS at,
                    max(row(source_epoch, source_position, source_order)) AS place
                FROM {quoted(contract.table)}
                WHERE change_op <> 't' {among} GROUP BY ALL),
            read AS (
                SELECT log_partition, max(log_offset) AS at, max(log_offset) FILTER (change_op = 't') AS emptied_at
                FROM {quoted(contract.table)} WHERE change_op IN ('r', 't') GROUP BY ALL)
            SELECT log_partition, log_offset, problem FROM waiting LEFT JOIN same USING (log_partition {names})
                LEFT JOIN read USING (log_partition)
            WHERE log_offset > coalesce(same.at, -1) AND NOT coalesce(waiting.place < same.place, false)
                AND log_offset > coalesce(CASE WHEN {unknown} THEN read.at ELSE read.emptied_at END, -1)
            ORDER BY problem, log_partition, log_offset"""
        ).fetchall()
    return {(partition, offset): problem for partition, offset, problem in found}


def _land(
    contract: Contract, log: ChangeLog, lake: Lake, batch_rows: int, schemas: Schemas | None = None
) -> LandingReport:
    sources = log.partitions(contract.topic)
    make_tables(contract, sources, lake)
    total = Total()
    for source in sources:
        landing = PartitionLanding(contract, source, log, lake, schemas)
        while (step := landing.step(batch_rows)) is not None:
            total.add(step)
        _commit(log, source, landing.offset)
    if total.batches:
        lake.compact(contract.table)
    return total.report(contract.table, lake)


def _commit(log: ChangeLog, source: TopicPartition, offset: int) -> None:
    """The lake holds the truth; the log's own commit is for whoever asks it for the lag."""
    try:
        log.commit(GROUP, {source: offset})
    except RetryableLogError:
        # While `headwater land` runs, only its members may commit, and do. A broker that is away is away for the next
        # read too.
        return


@dataclass
class Total:
    """Sums over the batches of one run."""

    read: int = 0
    landed: int = 0
    quarantined: int = 0
    tombstones: int = 0
    repeated: int = 0
    batches: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    nulls: Counter[str] = field(default_factory=Counter)
    changes: dict[int, SchemaChange] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """Add what one batch came to."""
        checked = step.checked
        self.read += step.read
        self.landed += checked.landed.num_rows
        self.quarantined += checked.quarantined.num_rows
        self.tombstones += checked.tombstones
        self.repeated += checked.repeated
        self.batches += 1
        self.reasons.update(checked.reasons)
        self.nulls.update(checked.nulls)
        self.changes |= {change.version: change for change in step.changes}

    def report(self, key: Key, lake: Lake) -> LandingReport:
        """The sums, with the table's version now."""
        rows = max(self.landed + self.quarantined, 1)
        return LandingReport(
            key=key,
            read=self.read,
            landed=self.landed,
            quarantined=self.quarantined,
            tombstones=self.tombstones,
            batches=self.batches,
            version=lake.table(key).version(),
            reasons=dict(self.reasons),
            null_shares={name: count / rows for name, count in self.nulls.items()},
            repeated=self.repeated,
            schema_changes=tuple(self.changes[version] for version in sorted(self.changes)),
        )
