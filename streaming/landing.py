"""Lands the change log in the lake, exactly once: what fits its contract in the table, the rest in quarantine.

The log offset is committed in the very Delta transaction that writes the rows, and a run starts where the table says
that it stopped. Quarantine is written first, with an offset of its own: after a crash in between, the batch is read
again and what is already in quarantine is left out. A batch may thus be cut anywhere, or differently the next time.

Errors: LandingError
          ├─ LostLogError          the table was landed from a log that is longer than this one
          └─ ChangedColumnsError   the table has other columns than its source now declares
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from catalog import keys
from catalog.keys import Key
from catalog.spec import Source
from lake.tables import Lake, quoted
from streaming.contract import FOUND, QUARANTINE_SCHEMA, Checked, Contract, Field, check
from streaming.locks import exclusive
from streaming.log import ChangeLog, TopicPartition, next_offset

__all__ = [
    "ChangedColumnsError",
    "LandedHealth",
    "LandingError",
    "LandingReport",
    "LostLogError",
    "land",
    "land_served",
    "landed_health",
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


class LandingError(RuntimeError):
    """Landing refused."""


class LostLogError(LandingError):
    """The table was landed from a log that is longer than this one: the two do not belong together."""


class ChangedColumnsError(LandingError):
    """The table has other columns than its source now declares. To cast between them could change values silently."""


@dataclass(frozen=True)
class LandingReport:
    """What one run of landing did to the table `key`.

    `read` = `landed` + `quarantined` + `tombstones` (keys without a value, which carry nothing to land). `reasons`
    counts quarantined records by problem; `null_shares` is the share of null or missing by column, 0 to 1, over what
    was read. `version` is the table's Delta version.
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
    return _land(contract_of(source), log, lake, batch_rows)


def land_served(model_name: str, log: ChangeLog, lake: Lake, batch_rows: int = 100_000) -> LandingReport:
    """Land the predictions that a model's endpoint has served; what is malformed: `quarantine/predictions/<model>`."""
    contract = Contract(
        topic=keys.served_topic(model_name),
        table=keys.served(model_name),
        quarantine=keys.quarantine("predictions", model_name),
        fields=_SERVED_FIELDS,
        envelope=False,
    )
    return _land(contract, log, lake, batch_rows)


def contract_of(source: Source) -> Contract:
    """The contract that a source's declaration makes."""
    return Contract(
        topic=keys.cdc_topic(source.system, source.table),
        table=keys.raw(source.system, source.table),
        quarantine=keys.quarantine(source.system, source.table),
        fields=tuple(Field(c.name, c.type, c.nullable, c.name in source.gate.key) for c in source.columns),
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


def _land(contract: Contract, log: ChangeLog, lake: Lake, batch_rows: int) -> LandingReport:
    with exclusive(lake.root / ".locks" / f"{contract.table.dotted}.lock"):
        sources = log.partitions(contract.topic)
        _create(contract, sources, lake)
        total = _Total()
        for source in sources:
            for checked, read in _land_partition(contract, source, log, lake, batch_rows):
                total.add(checked, read)
        return total.report(contract.table, lake)


def _create(contract: Contract, sources: Sequence[TopicPartition], lake: Lake) -> None:
    """Both tables exist from the first run on, empty if need be: a gate can then say that they are."""
    for key, schema in ((contract.quarantine, QUARANTINE_SCHEMA), (contract.table, contract.schema)):
        if not lake.exists(key):
            lake.append(key, schema.empty_table())
    differences = _differences(contract, lake)
    if not differences:
        return
    if any(lake.offset(contract.table, str(source)) for source in sources) or lake.rows(contract.table):
        raise ChangedColumnsError(
            f"{contract.table.dotted} has other columns than its source declares: {'; '.join(differences)}. What has "
            "landed is not rewritten: declare the columns as they were, or set HEADWATER_HOME to a new directory"
        )
    lake.overwrite(contract.table, contract.schema.empty_table())


def _differences(contract: Contract, lake: Lake) -> list[str]:
    found = {f.name: str(f.type) for f in lake.schema(contract.table)}
    declared = {f.name: str(f.type) for f in contract.schema}
    return [
        f"{name}: found {found.get(name, 'no such column')}, declared is {declared.get(name, 'none')}"
        for name in dict.fromkeys([*declared, *found])
        if found.get(name) != declared.get(name)
    ]


def _land_partition(
    contract: Contract, source: TopicPartition, log: ChangeLog, lake: Lake, batch_rows: int
) -> Iterator[tuple[Checked, int]]:
    offset, quarantined = lake.offset(contract.table, str(source)), lake.offset(contract.quarantine, str(source))
    while (records := _read(log, source, offset, batch_rows, contract.table)).num_rows:
        offset = next_offset(records, offset)
        checked = check(contract, source.partition, records)
        rejected = checked.quarantined.filter(pc.greater_equal(checked.quarantined["log_offset"], quarantined))
        if rejected.num_rows:
            lake.append(contract.quarantine, rejected, {str(source): offset})
        lake.append(contract.table, checked.landed, {str(source): offset})
        yield checked, records.num_rows
    # The lake holds the truth; the log's own commit is for whoever asks it for the lag.
    log.commit(GROUP, {source: offset})


def _read(log: ChangeLog, source: TopicPartition, offset: int, batch_rows: int, table: Key) -> pa.Table:
    end = log.end(source)
    if offset > end:
        raise LostLogError(
            f"{table.dotted} was landed up to offset {offset} of {source}, but that log ends at {end}: the two do not "
            "belong together. Set HEADWATER_HOME to a new directory, or bring the log back"
        )
    return log.read(source, offset, batch_rows)


@dataclass
class _Total:
    """Sums over the batches of one run."""

    read: int = 0
    landed: int = 0
    quarantined: int = 0
    tombstones: int = 0
    batches: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    nulls: Counter[str] = field(default_factory=Counter)

    def add(self, checked: Checked, read: int) -> None:
        self.read += read
        self.landed += checked.landed.num_rows
        self.quarantined += checked.quarantined.num_rows
        self.tombstones += checked.tombstones
        self.batches += 1
        self.reasons.update(checked.reasons)
        self.nulls.update(checked.nulls)

    def report(self, key: Key, lake: Lake) -> LandingReport:
        rows = max(self.read - self.tombstones, 1)
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
        )
