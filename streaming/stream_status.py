"""How the change stream is: every source and every consumer, how far behind, what is wrong and what to do about it.

Read from what the processes leave behind (a connector's status file, the log's offsets, the lake), so that it can be
asked whether they run or not, from any process of the same HEADWATER_HOME.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from catalog.load import Catalog
from catalog.settings import Settings
from lake import Lake
from streaming.capture.errors import Halt
from streaming.capture.service import ask_retained, last_status
from streaming.capture.source import Retained
from streaming.dead_letters import DeadLetter, Origin, letters
from streaming.landing import contract_of
from streaming.landing_state import ConsumerState, QuarantineState, landing_state, quarantine_state, served_state
from streaming.log import ChangeLog
from streaming.log_writer import LogError

__all__ = [
    "ASKED_WITHIN_S",
    "ConsumerState",
    "SourceState",
    "StreamStatus",
    "source_state",
    "stream_lag",
    "stream_status",
    "without_log",
]

# So long the log may take to answer who only wants to know how it is: without it much can be said too.
ASKED_WITHIN_S = 5.0
# A connector writes its status once a second, but for while it waits for a log that acknowledges nothing (15 s).
_SILENT_S = 30.0
# One that has not for so long waits for something: nothing is known of what has happened since.
_WAITS_S = 5.0
_LOG_AWAY = (
    "Start it (`headwater up`, if it is the local stack's), or set HEADWATER_LOG_URL to where it is. Connector and "
    "lander wait and go on by themselves; what is not read meanwhile, the database keeps"
)


@dataclass(frozen=True)
class SourceState:
    """One captured system. Bytes are of the server's own log: what it keeps for us, and how far its end is ahead.

    `position`: where to resume, in the server's own terms; `log_position`: as one number, which grows. While no
    connector can say so, the server itself was asked. `bounded`: whether there is a limit at all. `lag_s`: the
    seconds since everything that had been committed by then was in our log; 0 while nothing more is known to be.
    `lag_rows`: about so many, for nobody can count them without reading: from what a row took so far.
    """

    system: str
    running: bool
    state: str
    position: Mapping[str, Any]
    log_position: int
    epoch: int
    sent_rows: int
    rows_per_s: float
    last_event_at: datetime | None
    reported_at: datetime | None
    lag_rows: int | None
    lag_bytes: int | None
    lag_s: float | None
    retained_bytes: int | None
    limit_bytes: int | None
    bounded: bool
    tables: Mapping[str, Mapping[str, Any]]
    refused: Mapping[str, Mapping[str, str]]
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
    """All of it at one instant. With `log_problem` the log could not be asked: nothing is known of its consumers."""

    at: datetime
    sources: Sequence[SourceState]
    consumers: Sequence[ConsumerState]
    dead_letters: Sequence[DeadLettersState]
    quarantines: Sequence[QuarantineState]
    log_problem: str | None = None

    @property
    def log_remedy(self) -> str | None:
        """What to do about `log_problem`."""
        return _LOG_AWAY if self.log_problem else None

    @property
    def problems(self) -> list[str]:
        """A line for each thing that is wrong, with what to do."""
        found: list[tuple[str, str | None, str | None]] = [("change log", self.log_problem, self.log_remedy)]
        found += [(f"source {s.system}", s.problem, s.remedy) for s in self.sources]
        found += [
            (f"source {s.system}, table {name}", f"not captured: {why['found']}", _remedy(why))
            for s in self.sources
            for name, why in s.refused.items()
        ]
        found += [(f"{c.group} of {c.topic}", c.problem, c.remedy) for c in self.consumers]
        found += [(f"quarantine of {q.table}", q.problem, q.remedy) for q in self.quarantines]
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
    known = {system: letters(log, system) for system in _systems(catalog)}
    put_through = [letter.origin for found in known.values() for letter in found if letter.replayed]
    return replace(
        stream_lag(settings, catalog, log, lake, now),
        dead_letters=[_dead_letters(system, found) for system, found in known.items()],
        quarantines=_quarantines(settings, catalog, lake, put_through),
    )


def stream_lag(settings: Settings, catalog: Catalog, log: ChangeLog, lake: Lake, now: datetime) -> StreamStatus:
    """Of the sources and the consumers only, which may be asked every few seconds. Raises LogError."""
    return StreamStatus(now, _sources(settings, catalog), list(_consumers(catalog, log, lake, now)), [], [])


def without_log(settings: Settings, catalog: Catalog, away: LogError, lake: Lake, now: datetime) -> StreamStatus:
    """What can be said while the log cannot be asked: how the connectors are, and what waits in quarantine."""
    sources, quarantines = _sources(settings, catalog), _quarantines(settings, catalog, lake, [])
    return StreamStatus(now, sources, [], [], quarantines, log_problem=f"{away}")


def _systems(catalog: Catalog) -> list[str]:
    return list(dict.fromkeys(source.system for source in catalog.sources))


def _sources(settings: Settings, catalog: Catalog) -> list[SourceState]:
    return [source_state(settings, system) for system in _systems(catalog)] if settings.shop_url else []


def _quarantines(
    settings: Settings, catalog: Catalog, lake: Lake, put_through: Sequence[Origin]
) -> list[QuarantineState]:
    """A replay's rows stay as they are: of those the gates tell."""
    places: dict[str, set[tuple[int, int]]] = {}
    for origin in put_through:
        if origin.partition is not None and origin.offset is not None:
            places.setdefault(origin.topic, set()).add((origin.partition, origin.offset))
    sources = catalog.sources if settings.shop_url else ()
    return [quarantine_state(each, lake, places.get(contract_of(each).topic, set())) for each in sources]


def _dead_letters(system: str, found: Sequence[DeadLetter]) -> DeadLettersState:
    waiting = Counter(letter.origin.table for letter in found if not letter.replayed)
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
            system, False, "never ran", {}, 0, 0, 0, 0.0, None, None, None, None, None, None, None, True, {}, {},
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
    lag_s = _lag_s(found, retained)
    return SourceState(
        system=system,
        running=found["running"],
        state=found["state"] if found["running"] else "stopped",
        position={name: value for name, value in found["resume"].items() if isinstance(value, int | str)},
        log_position=found["position"],
        epoch=found["epoch"],
        sent_rows=found["rows"],
        rows_per_s=found.get("rows_per_s", 0.0) if found["running"] else 0.0,
        last_event_at=_instant(found["last_event_us"]),
        reported_at=reported,
        lag_rows=_lag_rows(found, retained, lag_s),
        lag_bytes=retained.behind_bytes if retained else None,
        lag_s=lag_s,
        retained_bytes=retained.retained_bytes if retained else None,
        limit_bytes=retained.limit_bytes if retained else None,
        bounded=retained is None or retained.bounded,
        tables=found["tables"],
        refused=found.get("refused", {}),
        problem=problem,
        remedy=remedy,
    )


def _remedy(why: Mapping[str, str]) -> str:
    return f"{why['remedy']} (docs/runbooks/{why['runbook']}.md); it is then taken in by itself"


def _retained(settings: Settings, system: str, found: Mapping[str, Any]) -> Retained | None:
    """As the connector measured it or, when that is old, as the server says now; None when nobody knows.

    Raises Halt when the server has given up keeping it.
    """
    said = Retained(**found["retained"]) if found["retained"] else None
    if settings.shop_url is None or not found["resume"] or (said and found["running"] and not found["problem"]):
        return said
    return ask_retained(settings, system, found["resume"]) or said


def _lag_s(found: Mapping[str, Any], retained: Retained | None) -> float | None:
    """None as long as nothing at all is known of it."""
    now_us = time.time_ns() // 1000
    if not found["running"] or found["problem"]:
        at_us, behind = now_us, retained is None or retained.end > found["position"]
    elif now_us - found["at_us"] > _WAITS_S * 1e6:
        at_us, behind = now_us, True
    else:
        at_us, behind = found["at_us"], found["behind"]
    if not behind:
        return 0.0
    since_us = found["level_us"] or found["last_event_us"]
    return round(max(at_us - since_us, 0) / 1e6, 3) if since_us else None


def _lag_rows(found: Mapping[str, Any], retained: Retained | None, lag_s: float | None) -> int | None:
    if lag_s == 0:
        return 0
    return round(retained.behind_bytes / found["row_bytes"]) if retained and found["row_bytes"] else None


def _source_problem(
    found: Mapping[str, Any], system: str, silent: timedelta, retained: Retained | None, lost: Halt | None
) -> tuple[str | None, str | None]:
    limit = retained.limit_bytes if retained else None
    alarm = None
    if retained and limit and retained.retained_bytes > 0.8 * limit:
        alarm = f"the server keeps {retained.retained_bytes} bytes for us and gives up at {limit}"
    also = f"; {alarm} (docs/runbooks/retained_wal.md)" if alarm else ""
    if found.get("halted"):
        return f"{found['halted']}{also}", f"Once that is mended, start `headwater capture {system}` again"
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
    yield from (served_state(model.name, log, lake, now) for model in catalog.models)


def _instant(us: int | None) -> datetime | None:
    return datetime(1970, 1, 1) + timedelta(microseconds=us) if us else None
