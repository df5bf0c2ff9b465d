"""Lands one topic partition batch by batch, exactly once.

The log offset is committed in the very Delta transaction that writes the rows, together with the place of the last
change and with which topic of that name it was, and a batch starts where the table says that the one before stopped.
Quarantine is written first, with an offset of its own: after a crash in between, the batch is read again and what is
already in quarantine is left out. A batch may thus be cut anywhere, or differently the next time. Of two processes that
land the same batch one is refused by Delta, which has each offset of a partition only once, and goes on behind the
other.

Errors: LandingError
          ├─ LostLogError          the table was landed from another log than this one
          └─ ChangedColumnsError   the table has other columns than its source now declares
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from catalog.keys import Key
from lake.tables import ConcurrentWriteError, Lake
from streaming.contract import QUARANTINE_SCHEMA, Checked, Contract, check
from streaming.landing_order import Place
from streaming.landing_schemas import SchemaChange, Schemas, was_added
from streaming.landing_unchanged import Unchanged
from streaming.locks import exclusive
from streaming.log import ChangeLog, TopicPartition, next_offset

__all__ = [
    "ChangedColumnsError",
    "LandingError",
    "LostLogError",
    "PartitionLanding",
    "Step",
    "accept_log",
    "landed_schema",
    "make_tables",
    "refusal",
]

# Of two that land the same one always gets through, and few share a table.
_ATTEMPTS = 20


class LandingError(RuntimeError):
    """Landing refused, until a person decides. `runbook` is a page of docs/runbooks, without its suffix."""

    def __init__(self, found: str, remedy: str, runbook: str) -> None:
        super().__init__(f"{found}. {remedy} (docs/runbooks/{runbook}.md)")
        self.found = found
        self.remedy = remedy
        self.runbook = runbook


class LostLogError(LandingError):
    """The table was landed from a topic that is longer than this one, or that was made anew since."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"{found}: the two do not belong together",
            "Bring the log back, or set this one table aside, land it anew and read it again with --resnapshot",
            "landing_lost_log",
        )


class ChangedColumnsError(LandingError):
    """The table has other columns than its source now declares. To cast between them could change values silently."""

    def __init__(self, table: Key, differences: Sequence[str]) -> None:
        super().__init__(
            f"{table.dotted} has other columns than its source declares: {'; '.join(differences)}. What has landed is "
            "not rewritten",
            "Declare the columns as they were, or set this one table aside and land it anew",
            "landing_changed_columns",
        )


@dataclass(frozen=True)
class Step:
    """One batch that is in the lake: `read` records up to offset `until`."""

    read: int
    until: int
    checked: Checked
    changes: Sequence[SchemaChange]


@dataclass(frozen=True)
class _Mark:
    """How far a topic partition has landed: the next offset, the last change's place, the last schema version, and
    which topic of that name it was (None: landed before that was kept, or the log cannot say).
    """

    offset: int
    place: Place | None
    version: int
    topic: int | None

    @classmethod
    def read(cls, table: DeltaTable, source: TopicPartition) -> _Mark:
        offset, epoch, commit, order, version, topic = (table.transaction_version(name) for name in _names(source))
        place = None if epoch is None or commit is None or order is None else Place(epoch, commit, order)
        return cls(offset or 0, place, version or 0, topic)

    def transactions(self, source: TopicPartition) -> Mapping[str, int]:
        """As application ids of a Delta transaction, which hold an integer each."""
        values = (self.offset, *(self.place or (None, None, None)), self.version or None, self.topic)
        return {name: value for name, value in zip(_names(source), values, strict=True) if value is not None}


def _names(source: TopicPartition) -> tuple[str, ...]:
    return (str(source), *(f"{source}/{part}" for part in ("epoch", "commit", "order", "schema", "topic")))


class PartitionLanding:
    """Lands one topic partition. Belongs to one thread; any number of processes may land the same."""

    def __init__(
        self, contract: Contract, source: TopicPartition, log: ChangeLog, lake: Lake, schemas: Schemas | None = None
    ) -> None:
        """Both tables have to exist (see make_tables). Without `schemas` records are taken as they were declared."""
        self.source = source
        self._declared = contract
        self._log = log
        self._lake = lake
        self._schemas = schemas
        self._tables: tuple[DeltaTable, DeltaTable] | None = None
        self._known: _Mark | None = None
        self._contract: tuple[frozenset[int], Contract] | None = None

    @property
    def offset(self) -> int:
        """The next offset to land."""
        return self._mark.offset

    def step(self, max_rows: int) -> Step | None:
        """Land up to `max_rows` records; None when there are none.

        Raises LogError, LostLogError; ConcurrentWriteError when others were always faster.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return self._step(max_rows)
            except ConcurrentWriteError:
                self.forget()
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError  # the loop has returned or raised

    def forget(self) -> None:
        """Look again what is in the lake: somebody else has landed."""
        self._tables = self._known = self._contract = None

    def _step(self, max_rows: int) -> Step | None:
        mark = self._mark
        topic = self._log.identity(self.source.topic)
        end = self._log.end(self.source)
        if lost := _lost(self._declared.table, self.source, mark.offset, end, mark.topic, topic):
            raise lost
        records = self._log.read(self.source, mark.offset, max_rows)
        if not records.num_rows:
            return None
        until = next_offset(records, mark.offset)
        contract, checked = self._check(records, mark)
        table, held = self._open()
        rejected = checked.quarantined
        quarantined = held.transaction_version(str(self.source)) or 0
        rejected = rejected.filter(pc.greater_equal(rejected["log_offset"], quarantined))
        if rejected.num_rows:
            self._lake.append(contract.quarantine, rejected, {str(self.source): until}, onto=held)
        changes = self._changes(checked.versions, table)
        after = _Mark(until, checked.watermark, max([mark.version, *checked.versions]), topic)
        self._lake.append(contract.table, checked.landed, after.transactions(self.source), onto=table)
        self._known = after
        return Step(records.num_rows, until, checked, changes)

    def _open(self) -> tuple[DeltaTable, DeltaTable]:
        if self._tables is None:
            self._tables = self._lake.table(self._declared.table), self._lake.table(self._declared.quarantine)
        return self._tables

    @property
    def _mark(self) -> _Mark:
        """Kept, as Delta looks through its log each time: who is behind what others have landed, Delta refuses."""
        if self._known is None:
            self._known = _Mark.read(self._open()[0], self.source)
        return self._known

    def _check(self, records: pa.Table, mark: _Mark) -> tuple[Contract, Checked]:
        """Check with the contract of the last batch, and again if the records name other versions of the schema."""
        versions, contract = self._contract or (frozenset(), self._contract_of(frozenset()))
        checked = self._checked(contract, records, mark)
        if checked.versions <= versions:
            return contract, checked
        before, contract = contract, self._contract_of(checked.versions)
        self._contract = checked.versions, contract
        return contract, checked if contract == before else self._checked(contract, records, mark)

    def _contract_of(self, versions: frozenset[int]) -> Contract:
        if self._schemas is None:
            return self._declared
        return self._schemas.contract(self._declared, versions, pa.schema(self._open()[0].schema().to_arrow()))

    def _checked(self, contract: Contract, records: pa.Table, mark: _Mark) -> Checked:
        begin = records["offset"][0].as_py()
        unchanged = Unchanged(
            self._lake, contract.table, contract.quarantine, contract.fields, self.source.partition, begin
        )
        return check(contract, self.source.partition, records, mark.place, unchanged.fill)

    def _changes(self, versions: frozenset[int], table: DeltaTable) -> Sequence[SchemaChange]:
        """Up to the highest of these versions, what no partition of the topic has landed before."""
        if self._schemas is None or not versions or max(versions) <= self._mark.version:
            return ()
        known = landed_schema(table, self._log.partitions(self.source.topic))
        found = pa.schema(table.schema().to_arrow())
        return self._schemas.changes(self._declared, found, known, max(versions)) if known < max(versions) else ()


def landed_schema(table: DeltaTable, sources: Sequence[TopicPartition]) -> int:
    """The highest version of the captured table's schema of which anything has landed; 0 when none has."""
    return max((table.transaction_version(f"{source}/schema") or 0 for source in sources), default=0)


def make_tables(contract: Contract, sources: Sequence[TopicPartition], lake: Lake) -> None:
    """Both tables exist from the first run on, empty if need be: a gate can then say that they are.

    Raises ChangedColumnsError.
    """
    with exclusive(lake.root / ".locks" / f"{contract.table.dotted}.lock"):
        for key, schema in ((contract.quarantine, QUARANTINE_SCHEMA), (contract.table, contract.schema)):
            if not lake.exists(key):
                lake.append(key, schema.empty_table())
        differences = _differences(contract, lake)
        if not differences:
            return
        if _has_landed(contract.table, sources, lake):
            raise ChangedColumnsError(contract.table, differences)
        lake.overwrite(contract.table, contract.schema.empty_table())


def refusal(contract: Contract, log: ChangeLog, lake: Lake) -> LandingError | None:
    """Why the table cannot be landed as it is now, whether a lander runs or not. Raises LogError."""
    if not lake.exists(contract.table):
        return None
    sources = log.partitions(contract.topic)
    if (differences := _differences(contract, lake)) and _has_landed(contract.table, sources, lake):
        return ChangedColumnsError(contract.table, differences)
    if not sources and (lake.rows(contract.table) or lake.rows(contract.quarantine)):
        return LostLogError(f"{contract.table.dotted} was landed from {contract.topic}, but the log has no such topic")
    table, topic = lake.table(contract.table), log.identity(contract.topic)
    offsets = {source: table.transaction_version(str(source)) or 0 for source in sources}
    # Each look through Delta's log takes milliseconds, and all that has landed is of the same topic.
    landed = next((table.transaction_version(f"{source}/topic") for source, offset in offsets.items() if offset), None)
    for source, end in log.ends(sources).items():
        if lost := _lost(contract.table, source, offsets[source], end, landed, topic):
            return lost
    return None


def _lost(
    table: Key, source: TopicPartition, offset: int, end: int, landed: int | None, topic: int | None
) -> LostLogError | None:
    """Why what has landed, up to `offset` of the topic `landed`, is of another log than this one, if it is."""
    found = f"{table.dotted} was landed up to offset {offset} of {source}"
    if offset > end:
        return LostLogError(f"{found}, but that log ends at {end}")
    if offset and None not in (landed, topic) and landed != topic:
        return LostLogError(f"{found}, but that topic was made anew since, and what it has below was never landed")
    return None


def accept_log(contract: Contract, log: ChangeLog, lake: Lake) -> None:
    """Go on in the topic as it is, from the offsets that have landed: for one that was brought back.

    Raises LogError; LostLogError where a partition ends before what has landed of it.
    """
    table, topic = lake.table(contract.table), log.identity(contract.topic)
    accepted: dict[str, int] = {}
    if not (sources := log.partitions(contract.topic)):
        raise LostLogError(f"{contract.table.dotted} is landed from {contract.topic}, but the log has no such topic")
    for source, end in log.ends(sources).items():
        mark = replace(_Mark.read(table, source), topic=topic)
        if lost := _lost(contract.table, source, mark.offset, end, topic, topic):
            raise lost
        accepted |= mark.transactions(source)
    lake.append(contract.table, contract.schema.empty_table(), accepted, onto=table)


def _has_landed(table: Key, sources: Sequence[TopicPartition], lake: Lake) -> bool:
    return any(lake.offset(table, str(source)) for source in sources) or lake.rows(table) > 0


def _differences(contract: Contract, lake: Lake) -> list[str]:
    """What cannot be reconciled by adding a column that may be null, or was added so."""
    schema = lake.schema(contract.table)
    # Types, not their text: Delta calls a list's elements `element`, Arrow `item`.
    found, declared = {f.name: f.type for f in schema}, {f.name: f.type for f in contract.schema}
    optional = {f.name for f in contract.fields if f.nullable}
    fine = {name for name in optional if name not in found} | {f.name for f in schema if was_added(f)} - declared.keys()
    return [
        f"{name}: found {found.get(name, 'no such column')}, declared is {declared.get(name, 'none')}"
        for name in dict.fromkeys([*declared, *found])
        if found.get(name) != declared.get(name) and name not in fine
    ]
