"""How the change stream is: every source and every consumer, how far behind, what is wrong and what to do about it.

Read from what the processes leave behind (a connector's status file, the log's offsets, the lake), so that it can be
asked whether they run or not, from any process of the same HEADWATER_HOME.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from catalog import keys
from catalog.keys import Key
from catalog.load import Catalog
from catalog.settings import Settings
from catalog.spec import Source
from lake import Lake
from streaming.capture.errors import Halt
from streaming.capture.service import ask_retained, last_status
from streaming.capture.source import Retained
from streaming.dead_letters import letters
from streaming.landing import GROUP
from streaming.log import ChangeLog, TopicPartition

__all__ = [
    "ConsumerState",
    "SourceState",
    "StreamStatus",
    "landing_state",
    "prometheus_text",
    "source_state",
    "stream_status",
]

# A connector writes its status once a second; a consumer is stalled when what it has not read is older than this.
_SILENT_S, _STALLED_S = 10.0, 15.0


@dataclass(frozen=True)
class SourceState:
    """One captured system. Bytes are of the server's own log: what it keeps for us, and how far its end is ahead.

    While no connector can say so, the server itself was asked. `bounded`: whether there is a limit at all.
    """

    system: str
    running: bool
    state: str
    position: Mapping[str, Any]
    epoch: int
    sent_rows: int
    rows_per_s: float
    last_event_at: datetime | None
    reported_at: datetime | None
    behind_bytes: int | None
    retained_bytes: int | None
    limit_bytes: int | None
    bounded: bool
    tables: Mapping[str, Mapping[str, Any]]
    problem: str | None
    remedy: str | None


@dataclass(frozen=True)
class ConsumerState:
    """One consumer group on one topic, its partitions summed. `lag_s`: the age of the first record it has not read."""

    group: str
    topic: str
    table: str
    position: Mapping[str, int]
    lag_rows: int
    lag_bytes: int
    lag_s: float
    rows: int
    quarantined_rows: int
    problem: str | None
    remedy: str | None


@dataclass(frozen=True)
class DeadLettersState:
    """The dead letters of one system that were not put through again yet, by table."""

    system: str
    waiting: Mapping[str, int]
    problem: str | None
    remedy: str | None


@dataclass(frozen=True)
class StreamStatus:
    """All of it at one instant."""

    at: datetime
    sources: Sequence[SourceState]
    consumers: Sequence[ConsumerState]
    dead_letters: Sequence[DeadLettersState]

    @property
    def problems(self) -> list[str]:
        """A line for each thing that is wrong, with what to do."""
        found = [(f"source {s.system}", s.problem, s.remedy) for s in self.sources]
        found += [(f"{c.group} of {c.topic}", c.problem, c.remedy) for c in self.consumers]
        found += [(f"dead letters of {d.system}", d.problem, d.remedy) for d in self.dead_letters]
        return [f"{who}: {problem}. {remedy or ''}".rstrip() for who, problem, remedy in found if problem]

    @property
    def warnings(self) -> list[str]:
        """A line for each thing that is not wrong yet but will be."""
        return [
            f"source {s.system}: nothing bounds what the server keeps for a connector that is away, which fills its "
            "disk. ALTER SYSTEM SET max_slot_wal_keep_size = '10GB', or what the disk can spare, and SELECT "
            "pg_reload_conf() (docs/how_to/capture_postgresql.md)"
            for s in self.sources
            if not s.bounded
        ]

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the problems and the warnings as lists of lines."""
        return {**asdict(self), "problems": self.problems, "warnings": self.warnings}


def stream_status(settings: Settings, catalog: Catalog, log: ChangeLog, lake: Lake, now: datetime) -> StreamStatus:
    """The state at `now`, which is the business clock's: in a replay the records' times are the replay's.

    Raises LogError when the log cannot be asked.
    """
    systems = dict.fromkeys(source.system for source in catalog.sources)
    sources = [source_state(settings, system) for system in systems] if settings.shop_url else []
    dead = [_dead_letters(log, system) for system in systems]
    return StreamStatus(now, sources, list(_consumers(catalog, log, lake, now)), dead)


def _dead_letters(log: ChangeLog, system: str) -> DeadLettersState:
    waiting = Counter(letter.origin.table for letter in letters(log, system) if not letter.replayed)
    if not waiting:
        return DeadLettersState(system, {}, None, None)
    where = ", ".join(f"{count} of {table}" for table, count in sorted(waiting.items()))
    return DeadLettersState(
        system,
        dict(waiting),
        f"{sum(waiting.values())} records could not be carried ({where})",
        f"`headwater dlq list {system}` says why; what was mended goes through with `headwater dlq replay {system} "
        "--yes` (docs/how_to/dead_letters.md)",
    )


def source_state(settings: Settings, system: str) -> SourceState:
    """What the system's connector last said of itself, whether it still runs, and what the server keeps for it."""
    found = last_status(settings, system)
    if found is None:
        return SourceState(
            system, False, "never ran", {}, 0, 0, 0.0, None, None, None, None, None, True, {},
            "no connector has run here", f"Start `headwater capture {system}`",
        )  # fmt: skip
    reported = _instant(found["at_us"])
    lost = None
    try:
        retained = _retained(settings, system, found)
    except Halt as error:
        retained, lost = None, error
    silent = datetime.now(UTC).replace(tzinfo=None) - (reported or datetime.min)
    problem, remedy = _source_problem(found, system, silent, retained, lost)
    return SourceState(
        system=system,
        running=found["running"],
        state=found["state"] if found["running"] else "stopped",
        position={name: value for name, value in found["resume"].items() if isinstance(value, int | str)},
        epoch=found["epoch"],
        sent_rows=found["rows"],
        rows_per_s=found.get("rows_per_s", 0.0) if found["running"] else 0.0,
        last_event_at=_instant(found["last_event_us"]),
        reported_at=reported,
        behind_bytes=retained.behind_bytes if retained else None,
        retained_bytes=retained.retained_bytes if retained else None,
        limit_bytes=retained.limit_bytes if retained else None,
        bounded=retained is None or retained.bounded,
        tables=found["tables"],
        problem=problem,
        remedy=remedy,
    )


def _retained(settings: Settings, system: str, found: Mapping[str, Any]) -> Retained | None:
    """As the connector measured it or, when that is old, as the server says now; None when nobody knows.

    Raises Halt when the server has given up keeping it.
    """
    said = Retained(**found["retained"]) if found["retained"] else None
    if settings.shop_url is None or not found["resume"] or (said and found["running"] and not found["problem"]):
        return said
    return ask_retained(settings, system, found["resume"]) or said


def _source_problem(
    found: Mapping[str, Any], system: str, silent: timedelta, retained: Retained | None, lost: Halt | None
) -> tuple[str | None, str | None]:
    limit = retained.limit_bytes if retained else None
    alarm = None
    if retained and limit and retained.retained_bytes > 0.8 * limit:
        alarm = f"the server keeps {retained.retained_bytes} bytes for us and gives up at {limit}"
    also = f"; {alarm} (docs/runbooks/retained_wal.md)" if alarm else ""
    if found.get("halted"):
        return f"{found['halted']}{also}", f"Do that, then start `headwater capture {system}` again"
    if lost:
        return lost.found, f"{lost.remedy} (docs/runbooks/{lost.runbook}.md)"
    if not found["running"]:
        again = f"Start `headwater capture {system}`: it goes on where it was"
        return f"no connector is running since {_instant(found['at_us'])}{also}", again
    if found["problem"]:
        return f"{found['problem']}{also}", "It tries again by itself; if it lasts, see what the message names"
    if alarm:
        return alarm, "See docs/runbooks/retained_wal.md"
    if silent.total_seconds() > _SILENT_S:
        return f"the connector (process {found['pid']}) has said nothing for {silent.total_seconds():.0f} s", (
            f"Its process hangs: kill {found['pid']} and start it again, nothing is lost"
        )
    return None, None


def _consumers(catalog: Catalog, log: ChangeLog, lake: Lake, now: datetime) -> Iterator[ConsumerState]:
    yield from (landing_state(source, log, lake, now) for source in catalog.sources)
    for model in catalog.models:
        served, quarantine = keys.served(model.name), keys.quarantine("predictions", model.name)
        yield _consumer(log, lake, keys.served_topic(model.name), served, quarantine, now)


def landing_state(source: Source, log: ChangeLog, lake: Lake, now: datetime) -> ConsumerState:
    """How far the landing of one captured table is. Raises LogError."""
    topic = keys.cdc_topic(source.system, source.table)
    table, quarantine = keys.raw(source.system, source.table), keys.quarantine(source.system, source.table)
    return _consumer(log, lake, topic, table, quarantine, now)


def _consumer(log: ChangeLog, lake: Lake, topic: str, table: Key, quarantine: Key, now: datetime) -> ConsumerState:
    lags = log.lag(GROUP, topic)
    waiting = [source for source, lag in lags.items() if lag.records]
    oldest = min((_first_unread(log, source, lags[source].committed) for source in waiting), default=now)
    lag_s, deleted = max((now - oldest).total_seconds(), 0.0), sum(lag.deleted for lag in lags.values())
    problem = remedy = None
    if deleted:
        problem = f"{deleted} records were deleted by retention before they were landed"
        remedy = "Capture the table again with --resnapshot, and keep the log longer (HEADWATER_LOG_RETENTION)"
    elif waiting and lag_s > _STALLED_S:
        problem = f"the first of {sum(lags[s].records for s in waiting)} records not landed is {lag_s:.0f} s old"
        remedy = "Start `headwater land`, or `headwater run`; if one runs, see its last lines"
    return ConsumerState(
        group=GROUP,
        topic=topic,
        table=table.dotted,
        position={str(source): lag.committed for source, lag in lags.items()},
        lag_rows=sum(lag.records for lag in lags.values()),
        lag_bytes=sum(lag.behind_bytes for lag in lags.values()),
        lag_s=round(lag_s, 3),
        rows=lake.rows(table) if lake.exists(table) else 0,
        quarantined_rows=lake.rows(quarantine) if lake.exists(quarantine) else 0,
        problem=problem,
        remedy=remedy,
    )


def _first_unread(log: ChangeLog, source: TopicPartition, committed: int) -> datetime:
    records = log.read(source, max(committed, log.begin(source)), 1)
    found = _instant(records["timestamp_us"][0].as_py()) if records.num_rows else None
    return found or datetime.max


def _instant(us: int | None) -> datetime | None:
    return datetime(1970, 1, 1) + timedelta(microseconds=us) if us else None


def prometheus_text(status: StreamStatus) -> str:
    """The numbers in Prometheus' text format."""
    lines: list[str] = []

    def family(name: str, meaning: str, samples: Sequence[tuple[Mapping[str, str], float | None]]) -> None:
        lines.extend((f"# HELP headwater_{name} {meaning}", f"# TYPE headwater_{name} gauge"))
        for labels, value in samples:
            if value is not None:
                shown = ",".join(f'{label}="{text}"' for label, text in labels.items())
                lines.append(f"headwater_{name}{{{shown}}} {value}")

    sources = [({"system": s.system}, s) for s in status.sources]
    family("capture_running", "Whether a connector runs.", [(at, float(s.running)) for at, s in sources])
    family("capture_sent_rows", "Records sent by this process.", [(at, s.sent_rows) for at, s in sources])
    family("capture_rows_per_second", "Records sent in the last second.", [(at, s.rows_per_s) for at, s in sources])
    family("capture_behind_bytes", "Server's log not confirmed by us.", [(at, s.behind_bytes) for at, s in sources])
    family("capture_retained_bytes", "Server's log kept for us.", [(at, s.retained_bytes) for at, s in sources])
    family("capture_limit_bytes", "At which it stops keeping it.", [(at, s.limit_bytes) for at, s in sources])
    family("capture_bounded", "Whether there is such a limit.", [(at, float(s.bounded)) for at, s in sources])
    family("capture_problem", "Whether something is wrong.", [(at, float(bool(s.problem))) for at, s in sources])
    consumers = [({"group": c.group, "topic": c.topic}, c) for c in status.consumers]
    family("lag_rows", "Records not read.", [(at, c.lag_rows) for at, c in consumers])
    family("lag_bytes", "Bytes not read.", [(at, c.lag_bytes) for at, c in consumers])
    family("lag_seconds", "Age of the first record not read.", [(at, c.lag_s) for at, c in consumers])
    family("landed_rows", "Rows of the table.", [(at, c.rows) for at, c in consumers])
    family("quarantined_rows", "Rows in quarantine.", [(at, c.quarantined_rows) for at, c in consumers])
    family("consumer_problem", "Whether something is wrong.", [(at, float(bool(c.problem))) for at, c in consumers])
    dead = [({"system": d.system, "table": t}, n) for d in status.dead_letters for t, n in d.waiting.items()]
    family("dead_letters", "Records that wait to be put through again.", dead)
    return "\n".join(lines) + "\n"
