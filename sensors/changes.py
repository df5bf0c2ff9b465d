"""New changes in the log ask for a run of everything that follows from data: raw tables to predictions and monitors.

Models and deployments are left alone: they are rebuilt on drift or on demand, not by every row. One run for each state
of the log's ends (`run_key`): a run that failed is not repeated until something new arrives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing

import dagster as dg

from catalog import keys
from catalog.load import Catalog
from catalog.settings import Settings
from sensors.in_progress import CAUSE, TRIGGER, run_in_progress
from streaming.landing import GROUP
from streaming.log import Lag, TopicPartition
from streaming.open_log import has_log, open_log

__all__ = ["build_change_sensor", "followed_topics"]


def build_change_sensor(catalog: Catalog, settings: Settings) -> dg.SensorDefinition:
    """The sensor over the change log's lag; runs by itself only with HEADWATER_AUTOMATION=on."""
    models = dg.AssetSelection.key_prefixes(["models"], ["deployments"])

    @dg.sensor(
        name="changes",
        description="Requests one run, from raw tables to monitors, when the change log holds what has not landed.",
        target=dg.AssetSelection.all() - models,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING if settings.automation else dg.DefaultSensorStatus.STOPPED,
    )
    def changes(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return _tick(context, followed_topics(catalog), settings)

    return changes


def followed_topics(catalog: Catalog) -> tuple[str, ...]:
    """The topics that landing reads: one for each captured table, one for each model's served predictions."""
    captured = (keys.cdc_topic(source.system, source.table) for source in catalog.sources)
    return (*captured, *(keys.served_topic(model.name) for model in catalog.models))


def _tick(context: dg.SensorEvaluationContext, topics: Sequence[str], settings: Settings) -> dg.SensorResult:
    if not has_log(settings):
        return dg.SensorResult(skip_reason=f"there is no change log yet in {settings.home}")
    with closing(open_log(settings)) as log:
        lags = {source: lag for topic in topics for source, lag in log.lag(GROUP, topic).items()}
    waiting = {source: lag for source, lag in lags.items() if lag.records > 0}
    if not waiting:
        return dg.SensorResult(skip_reason=f"everything has landed: {len(lags)} partitions are at their end")
    ends = _digest(lags)
    if context.cursor == ends:
        return dg.SensorResult(skip_reason="a run was already requested for the log as it is", cursor=ends)
    if busy := run_in_progress(context.instance):
        return dg.SensorResult(skip_reason=f"run {busy.run_id} is in progress", cursor=context.cursor)
    request = dg.RunRequest(run_key=f"changes:{ends}", tags={TRIGGER: "changes", CAUSE: _cause(waiting)})
    return dg.SensorResult(run_requests=[request], cursor=ends)


def _digest(lags: dict[TopicPartition, Lag]) -> str:
    ends = {str(source): lag.end for source, lag in lags.items()}
    return hashlib.sha256(json.dumps(ends, sort_keys=True).encode()).hexdigest()[:32]


def _cause(waiting: dict[TopicPartition, Lag]) -> str:
    most = sorted(waiting.items(), key=lambda item: -item[1].records)
    named = ", ".join(f"{source} {lag.records}" for source, lag in most[:4])
    more = f" and {len(most) - 4} more" if len(most) > 4 else ""
    return f"{sum(lag.records for lag in waiting.values())} changes not landed: {named}{more}"
