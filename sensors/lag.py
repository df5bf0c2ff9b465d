"""A stalled connector or consumer turns the `lag` check of its raw tables red, and green again once it has caught up.

A log that is away stalls all of them. Stalled is what has had a problem for a while without getting on: a backlog that
is worked off is none. Level in, edge out: an evaluation is reported when the answer changes, not at every tick. The
cursor keeps what was seen of each table.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from catalog import keys
from catalog.clock import ClockError
from catalog.keys import Key
from catalog.load import Catalog
from catalog.settings import Settings
from lake import Lake
from resources.platform import Platform
from streaming.log import LogError
from streaming.open_log import has_log, open_log
from streaming.stream_status import ASKED_WITHIN_S, ConsumerState, StreamStatus, stream_lag, without_log

__all__ = ["LAG", "STALLED_BETWEEN_RUNS_S", "build_lag_sensor", "lag_checks"]

LAG = "lag"
# Of the system's clock: a replay's own time leaps. Where a database is captured a lander runs beside the connector, and
# who is asked has to hear of its silence within a minute; a replay is landed by runs, which take their time.
STALLED_S, STALLED_BETWEEN_RUNS_S = 15.0, 120.0


@dataclass(frozen=True)
class Seen:
    """Where a table's consumer stood, since when (seconds since 1970) it stands there with a problem, what was said."""

    position: Mapping[str, int]
    since: float | None = None
    passed: bool | None = None


def build_lag_sensor(catalog: Catalog, settings: Settings) -> dg.SensorDefinition:
    """The sensor over the whole change stream; runs by itself only with HEADWATER_AUTOMATION=on."""

    @dg.sensor(
        name="lag",
        description="Fails the lag check of every raw table whose connector or consumer has stalled; says what to do.",
        minimum_interval_seconds=10,
        default_status=dg.DefaultSensorStatus.RUNNING if settings.automation else dg.DefaultSensorStatus.STOPPED,
    )
    def lag(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return _tick(context, catalog, settings)

    return lag


def lag_checks(catalog: Catalog) -> dg.AssetChecksDefinition:
    """The check itself, which a run answers for what it has landed; in between the sensor does."""
    tables = {keys.raw(source.system, source.table) for source in catalog.sources}

    @dg.multi_asset_check(
        name="raw_lag",
        specs=[
            dg.AssetCheckSpec(
                LAG, asset=dg.AssetKey(key.path), description="What the connector captured is in this table, in time."
            )
            for key in sorted(tables)
        ],
        can_subset=True,
    )
    def raw_lag(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        status = stream_lag(platform.settings, catalog, platform.log, platform.lake, platform.clock.now())
        for key in sorted(tables):
            if dg.AssetCheckKey(dg.AssetKey(key.path), LAG) in context.selected_asset_check_keys:
                consumer = _consumer(status, key)
                found = [f"{consumer.problem}. {consumer.remedy}"] if consumer and consumer.problem else []
                yield dg.AssetCheckResult(**_answer(key, consumer, found, not found))

    return raw_lag


def _consumer(status: StreamStatus, key: Key) -> ConsumerState | None:
    """None when the log cannot be asked."""
    return next((consumer for consumer in status.consumers if consumer.table == key.dotted), None)


def _tick(context: dg.SensorEvaluationContext, catalog: Catalog, settings: Settings) -> dg.SensorResult:
    if not has_log(settings):
        return dg.SensorResult(skip_reason=f"there is no change log yet in {settings.home}")
    status = _status(settings, catalog)
    patience_s = STALLED_S if settings.shop_url else STALLED_BETWEEN_RUNS_S
    before = {table: Seen(**seen) for table, seen in json.loads(context.cursor or "{}").items()}
    seen, events, wrong = {}, [], []
    for source in catalog.sources:
        key = keys.raw(source.system, source.table)
        consumer = _consumer(status, key)
        problems = _problems(status, source.system, consumer)
        last = before.get(key.dotted)
        position = consumer.position if consumer else last.position if last else {}
        now = seen[key.dotted] = _seen(last, position, problems, patience_s)
        if now.passed != (last.passed if last else None):
            events.append(dg.AssetCheckEvaluation(**_answer(key, consumer, problems, bool(now.passed))))
        wrong += problems
    cursor = json.dumps({table: asdict(each) for table, each in seen.items()})
    if events:
        return dg.SensorResult(asset_events=events, cursor=cursor)
    return dg.SensorResult(skip_reason="; ".join(dict.fromkeys(wrong)) or "everything keeps up", cursor=cursor)


def _status(settings: Settings, catalog: Catalog) -> StreamStatus:
    lake, now = Lake(settings.lake_dir), _now(settings)
    try:
        with closing(open_log(settings, patience_s=ASKED_WITHIN_S)) as log:
            return stream_lag(settings, catalog, log, lake, now)
    except LogError as error:
        return without_log(settings, catalog, error, lake, now)


def _now(settings: Settings) -> datetime:
    try:
        return settings.clock().now()
    except ClockError:  # the log was made, but no replay has completed
        return datetime.now(UTC).replace(tzinfo=None)


def _problems(status: StreamStatus, system: str, consumer: ConsumerState | None) -> list[str]:
    """What is wrong on a table's way from the database to the lake, with the remedies."""
    found = [(source.problem, source.remedy) for source in status.sources if source.system == system]
    found.append((consumer.problem, consumer.remedy) if consumer else (status.log_problem, status.log_remedy))
    return [f"{problem}. {remedy}" for problem, remedy in found if problem]


def _seen(last: Seen | None, position: Mapping[str, int], problems: Sequence[str], patience_s: float) -> Seen:
    if not problems:
        return Seen(position, passed=True)
    passed = last.passed if last else None
    if last is None or last.since is None or last.position != position:
        return Seen(position, time.time(), passed)
    stalled = time.time() - last.since >= patience_s
    return Seen(position, last.since, False if stalled else passed)


def _answer(key: Key, consumer: ConsumerState | None, problems: Sequence[str], passed: bool) -> dict[str, Any]:
    """The fields that a check's result and an evaluation of it have in common."""
    lag = {name: getattr(consumer, name) for name in ("lag_rows", "lag_bytes", "lag_s")} if consumer else {}
    return {
        "asset_key": dg.AssetKey(key.path),
        "check_name": LAG,
        "passed": passed,
        "severity": dg.AssetCheckSeverity.ERROR,
        "description": "; ".join(problems) or "Everything that was captured has landed.",
        "metadata": lag,
    }
