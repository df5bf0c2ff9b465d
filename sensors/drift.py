"""Healing: a sustained breach asks once for the model's retraining, deployment and scoring; the gate decides as always.

Level in, edge out: the status says "drifted" at every tick while it lasts, and one `run_key` for each cause makes one
run of it. The cursor keeps, for each model, the cause that was last requested and when on the business clock, so that
a different cause within the cooldown waits for its end instead of being lost. A cursor belongs to one Dagster
instance; what a retraining has answered is in the ledger too, so that a new instance does not ask for it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta

import dagster as dg

from catalog import keys
from catalog.load import Catalog
from catalog.settings import Settings
from catalog.spec import Model
from lake import Lake
from lake.ledger import Ledger
from ml.drift_status import DriftStatus, read_status
from sensors.in_progress import CAUSE, CAUSE_ID, MODEL, TRIGGER, run_in_progress

__all__ = ["build_drift_sensor", "healed_keys"]

# model -> {"cause_id", "requested_at"}: kept in the sensor's cursor
Requested = dict[str, dict[str, str]]

# Run tags are listed in the UI: a sentence, not a report.
_CAUSE_LENGTH = 250


def build_drift_sensor(catalog: Catalog, settings: Settings) -> dg.SensorDefinition:
    """The sensor over every model's `monitoring/<model>/drift`; runs by itself only with HEADWATER_AUTOMATION=on."""

    @dg.sensor(
        name="drift",
        description="Requests one retraining for each sustained drift that no upstream cause explains.",
        target=dg.AssetSelection.assets(*(key for model in catalog.models for key in healed_keys(model.name))),
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING if settings.automation else dg.DefaultSensorStatus.STOPPED,
    )
    def drift(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return _tick(context, catalog, settings)

    return drift


def healed_keys(model: str) -> list[dg.AssetKey]:
    """The assets that a retraining rebuilds, from training set to monitor."""
    wanted = (keys.training_set, keys.candidate, keys.champion, keys.endpoint, keys.scores, keys.drift)
    return [dg.AssetKey(key(model).path) for key in wanted]


def _tick(context: dg.SensorEvaluationContext, catalog: Catalog, settings: Settings) -> dg.SensorResult:
    lake = Lake(settings.lake_dir)
    requested = _requested(context.cursor, catalog, settings)
    runs, reasons = [], []
    for model in catalog.models:
        status = read_status(lake, model)
        reason = _reason_to_skip(model, status, requested, settings)
        if reason is None and (busy := run_in_progress(context.instance)):
            reason = f"run {busy.run_id} is in progress"
        if reason is not None:
            reasons.append(f"{model.name}: {reason}")
            continue
        runs.append(_run_request(status))
        now = settings.clock().now()
        requested[model.name] = {"cause_id": status.cause_id or "", "requested_at": now.isoformat()}
    cursor = json.dumps(requested, sort_keys=True)
    return dg.SensorResult(
        run_requests=runs, skip_reason=None if runs else "; ".join(reasons) or "no models", cursor=cursor
    )


def _requested(cursor: str | None, catalog: Catalog, settings: Settings) -> Requested:
    """For each model the later of what this instance has requested and what any instance's retraining has answered."""
    requested: Requested = json.loads(cursor) if cursor else {}
    if not settings.ledger_path.exists():
        return requested
    ledger = Ledger(settings.ledger_path)
    for model in catalog.models:
        answered = ledger.last(keys.answered_cause(model.name))
        both = [r for r in (requested.get(model.name), answered and dict(answered.outcome)) if r]
        if both:
            requested[model.name] = max(both, key=lambda r: r["requested_at"])
    return requested


def _reason_to_skip(
    model: Model, status: DriftStatus, requested: Mapping[str, Mapping[str, str]], settings: Settings
) -> str | None:
    if not status.wants_retraining:
        return status.cause
    last = requested.get(model.name)
    if last is None:
        return None
    if last["cause_id"] == status.cause_id:
        return f"already requested at {last['requested_at']} for {status.cause_id}"
    free = datetime.fromisoformat(last["requested_at"]) + timedelta(days=model.drift.cooldown_days)
    if settings.clock().now() < free:
        return f"cooling down until {free.isoformat()} after {last['cause_id']}"
    return None


def _run_request(status: DriftStatus) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"drift:{status.cause_id}",
        asset_selection=healed_keys(status.model),
        tags={
            TRIGGER: "drift",
            MODEL: status.model,
            CAUSE: status.cause[:_CAUSE_LENGTH],
            CAUSE_ID: status.cause_id or "",
        },
    )
