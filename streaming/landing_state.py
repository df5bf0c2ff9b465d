"""How far the landing of each topic is, what keeps it, and what waits in quarantine.

Found from the log and the lake alone, so that it is the same whether landers run or not, and however many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timedelta

from catalog.spec import Source
from lake.tables import Lake, Recent
from streaming.contract import Contract
from streaming.landing import GROUP, contract_of, quarantine_waiting, served_contract
from streaming.landing_batches import refusal
from streaming.log import ChangeLog, TopicPartition

__all__ = ["ConsumerState", "QuarantineState", "landing_state", "quarantine_state", "served_state"]

# A consumer is stalled when what it has not read is older than this.
_STALLED_S = 15.0
# Over how long the throughput is taken.
_RATE_S = 60.0
# How many different problems of one table's quarantine a line names.
_NAMED = 3


@dataclass(frozen=True)
class ConsumerState:
    """One consumer group on one topic, its partitions summed. `lag_s`: the age of the first record it has not read.

    `rows_per_s`: of the last minute, by the system's clock. `last_event_at`: of the changes that landed last.
    """

    group: str
    topic: str
    table: str
    position: Mapping[str, int]
    lag_rows: int
    lag_bytes: int
    lag_s: float
    rows: int
    rows_per_s: float
    last_event_at: datetime | None
    quarantined_rows: int
    problem: str | None
    remedy: str | None


@dataclass(frozen=True)
class QuarantineState:
    """The records of one captured table that are in quarantine and that nothing has settled since, by problem."""

    table: str
    waiting: Mapping[str, int]
    problem: str | None
    remedy: str | None


def landing_state(source: Source, log: ChangeLog, lake: Lake, now: datetime) -> ConsumerState:
    """How far the landing of one captured table is. Raises LogError."""
    return _consumer(contract_of(source), log, lake, now)


def served_state(model_name: str, log: ChangeLog, lake: Lake, now: datetime) -> ConsumerState:
    """How far the landing of a model's served predictions is. Raises LogError."""
    return _consumer(served_contract(model_name), log, lake, now)


def quarantine_state(source: Source, lake: Lake, put_through: Set[tuple[int, int]] = frozenset()) -> QuarantineState:
    """What waits in the quarantine of one captured table; not what was put through again, by partition and offset."""
    table, found = contract_of(source).table.dotted, quarantine_waiting(source, lake)
    waiting = Counter(problem for place, problem in found.items() if place not in put_through)
    if not waiting:
        return QuarantineState(table, {}, None, None)
    most = waiting.most_common()
    why = "; ".join(f"{count} of them: {problem}" for problem, count in most[:_NAMED])
    rest = f"; and {len(most) - _NAMED} other problems" if len(most) > _NAMED else ""
    page = "runbooks/landing_changed_columns.md" if _is_schema(most[0][0]) else "how_to/dead_letters.md"
    return QuarantineState(
        table,
        dict(waiting),
        f"{sum(waiting.values())} records could not land and wait ({why}{rest})",
        f"`headwater dlq list {source.system} --quarantine --table {source.table}` shows them. Mend the rows in the "
        "database or the declaration: a later change of the row settles it, and `headwater dlq replay "
        f"{source.system} --quarantine --table {source.table} --yes` puts them through again. `headwater capture "
        f"{source.system} --resnapshot {source.table}` reads all rows again (docs/{page})",
    )


def _is_schema(problem: str) -> bool:
    return problem.startswith("schema ")


def _consumer(contract: Contract, log: ChangeLog, lake: Lake, now: datetime) -> ConsumerState:
    table, quarantine = contract.table, contract.quarantine
    lags = log.lag(GROUP, contract.topic)
    waiting = [source for source, lag in lags.items() if lag.records > 0]
    oldest = min((_first_unread(log, source, lags[source].committed) for source in waiting), default=now)
    lag_s, deleted = max((now - oldest).total_seconds(), 0.0), sum(lag.deleted for lag in lags.values())
    there = lake.exists(table)
    recent = lake.recent(table, contract.event_column, _RATE_S) if there else Recent(0, 0, None)
    problem = remedy = None
    if refused := refusal(contract, log, lake):
        problem, remedy = refused.found, f"{refused.remedy} (docs/runbooks/{refused.runbook}.md)"
    elif deleted:
        problem = f"{deleted} records were deleted by retention before they were landed"
        remedy = "Capture the table again with --resnapshot, and keep the log longer (HEADWATER_LOG_RETENTION)"
    elif waiting and lag_s > _STALLED_S:
        problem = f"the first of {sum(lags[s].records for s in waiting)} records not landed is {lag_s:.0f} s old"
        remedy = "Start `headwater land`, or `headwater run`; if one runs, see its last lines"
    return ConsumerState(
        group=GROUP,
        topic=contract.topic,
        table=table.dotted,
        position={str(source): lag.committed for source, lag in lags.items()},
        lag_rows=sum(max(lag.records, 0) for lag in lags.values()),
        lag_bytes=sum(lag.behind_bytes for lag in lags.values()),
        lag_s=round(lag_s, 3),
        rows=recent.rows,
        rows_per_s=round(recent.appended / _RATE_S, 1),
        last_event_at=recent.newest,
        quarantined_rows=lake.rows(quarantine) if lake.exists(quarantine) else 0,
        problem=problem,
        remedy=remedy,
    )


def _first_unread(log: ChangeLog, source: TopicPartition, committed: int) -> datetime:
    records = log.read(source, max(committed, log.begin(source)), 1)
    us = records["timestamp_us"][0].as_py() if records.num_rows else None
    return datetime(1970, 1, 1) + timedelta(microseconds=us) if us else datetime.max
