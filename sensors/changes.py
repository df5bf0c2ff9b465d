"""New changes ask for a run of everything that follows from data: raw tables to predictions and monitors.

New is what is in the change log and has not landed, and what a lander has landed since a run took the raw table. Models
and deployments are left alone: they are rebuilt on drift or on demand, not by every row. One run for each state of both
(`run_key`): a run that failed is not repeated until something new arrives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import closing

import dagster as dg

from catalog import keys
from catalog.load import Catalog
from catalog.settings import Settings
from lake import Lake
from lake.ledger import Ledger
from sensors.in_progress import CAUSE, TRIGGER, run_in_progress
from streaming.landing import GROUP, landed_version
from streaming.log import Lag, TopicPartition
from streaming.open_log import has_log, open_log

__all__ = ["build_change_sensor", "followed_topics"]


def build_change_sensor(catalog: Catalog, settings: Settings) -> dg.SensorDefinition:
    """The sensor over the change log's lag; runs by itself only with HEADWATER_AUTOMATION=on."""
    models = dg.AssetSelection.key_prefixes(["models"], ["deployments"])

    @dg.sensor(
        name="changes",
        description="Requests one run, from raw tables to monitors, when there are changes that no run has taken.",
        target=dg.AssetSelection.all() - models,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING if settings.automation else dg.DefaultSensorStatus.STOPPED,
    )
    def changes(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return _tick(context, catalog, settings)

    return changes


def followed_topics(catalog: Catalog) -> tuple[str, ...]:
    """The topics that landing reads: one for each captured table, one for each model's served predictions."""
    captured = (keys.cdc_topic(source.system, source.table) for source in catalog.sources)
    return (*captured, *(keys.served_topic(model.name) for model in catalog.models))


def _tick(context: dg.SensorEvaluationContext, catalog: Catalog, settings: Settings) -> dg.SensorResult:
    if not has_log(settings):
        return dg.SensorResult(skip_reason=f"there is no change log yet in {settings.home}")
    with closing(open_log(settings)) as log:
        lags = {source: lag for topic in followed_topics(catalog) for source, lag in log.lag(GROUP, topic).items()}
    waiting = {source: lag for source, lag in lags.items() if lag.records > 0}
    landed = _landed_since(catalog, settings)
    if not waiting and not landed:
        return dg.SensorResult(skip_reason=f"everything has landed: {len(lags)} partitions are at their end")
    ends = _digest(lags, landed)
    if context.cursor == ends:
        return dg.SensorResult(skip_reason="a run was already requested for the log as it is", cursor=ends)
    if busy := run_in_progress(context.instance):
        return dg.SensorResult(skip_reason=f"run {busy.run_id} is in progress", cursor=context.cursor)
    request = dg.RunRequest(run_key=f"changes:{ends}", tags={TRIGGER: "changes", CAUSE: _cause(waiting, landed)})
    return dg.SensorResult(run_requests=[request], cursor=ends)


def _landed_since(catalog: Catalog, settings: Settings) -> dict[str, str]:
    """The versions of the raw tables, by name, in which a lander has written since a run took them."""
    if not settings.ledger_path.exists():
        return {}
    lake, ledger = Lake(settings.lake_dir), Ledger(settings.ledger_path)
    found = {}
    for source in catalog.sources:
        key = keys.raw(source.system, source.table)
        version, taken = landed_version(source, lake), ledger.last(key.slashed)
        if version is not None and (taken is None or taken.outcome["version"] != version):
            found[key.dotted] = version
    return found


def _digest(lags: Mapping[TopicPartition, Lag], landed: Mapping[str, str]) -> str:
    ends = {**{str(source): lag.end for source, lag in lags.items()}, **landed}
    return hashlib.sha256(json.dumps(ends, sort_keys=True).encode()).hexdigest()[:32]


def _cause(waiting: Mapping[TopicPartition, Lag], landed: Mapping[str, str]) -> str:
    if not waiting:
        return f"landed since the last run: {', '.join(landed)}"
    most = sorted(waiting.items(), key=lambda item: -item[1].records)
    named = ", ".join(f"{source} {lag.records}" for source, lag in most[:4])
    more = f" and {len(most) - 4} more" if len(most) > 4 else ""
    return f"{sum(lag.records for lag in waiting.values())} changes not landed: {named}{more}"
