"""What a run did, as `summary.json` in the data directory: whoever started the run, and also after a failure."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from catalog import keys
from catalog.load import Catalog
from catalog.settings import Settings
from catalog.spec import Model
from lake import Lake
from lake.ledger import Ledger

__all__ = ["summarise", "used", "write"]


def summarise(settings: Settings, catalog: Catalog, instance: dg.DagsterInstance, run_id: str) -> dict[str, Any]:
    """What the run has done so far: tables, checks, models, monitoring, assets (see the README for the shape)."""
    lake, ledger = Lake(settings.lake_dir), Ledger(settings.ledger_path)
    return {
        "success": not _events(instance, run_id, dg.DagsterEventType.STEP_FAILURE),
        "tables": {key.dotted: {"rows": lake.rows(key)} for key in lake.keys()},  # noqa: SIM118  # a lake, not a dict
        "checks": _checks(_events(instance, run_id, dg.DagsterEventType.ASSET_CHECK_EVALUATION)),
        "models": {m.name: _model(ledger, m) for m in catalog.models},
        "monitoring": {m.name: _monitor(ledger, m) for m in catalog.models},
        "assets": _assets(_events(instance, run_id, dg.DagsterEventType.ASSET_MATERIALIZATION)),
    }


def write(settings: Settings, summary: Mapping[str, Any]) -> Path:
    """Put the summary into HEADWATER_HOME, whole or not at all."""
    path = settings.home / "summary.json"
    draft = path.with_name(f".summary.{os.getpid()}")
    draft.write_text(json.dumps(summary, indent=2, default=str) + "\n")
    draft.replace(path)
    return path


def used(started: float) -> dict[str, float]:
    """Seconds of wall time since `started` (by time.perf_counter), CPU seconds and peak memory of this process.

    CPU time and memory include finished child processes (dbt runs as one).
    """
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "wall_s": round(time.perf_counter() - started, 2),
        "cpu_s": round(sum(u.ru_utime + u.ru_stime for u in usages), 2),
        "peak_rss_mb": round(max(u.ru_maxrss for u in usages) / 1024, 1),
    }


def _events(instance: dg.DagsterInstance, run_id: str, kind: dg.DagsterEventType) -> list[Any]:
    logged = instance.all_logs(run_id, of_type=kind)
    return [entry.dagster_event.event_specific_data for entry in logged if entry.dagster_event]


def _checks(evaluations: Sequence[Any]) -> dict[str, int]:
    failed = [e for e in evaluations if not e.passed]
    blocking = sum(1 for e in failed if e.severity.value == "ERROR")
    return {"passed": len(evaluations) - len(failed), "warned": len(failed) - blocking, "failed": blocking}


def _model(ledger: Ledger, model: Model) -> dict[str, Any]:
    candidate = ledger.last(keys.candidate(model.name).slashed)
    champion = ledger.last(keys.champion(model.name).slashed)
    found = dict(candidate.outcome["metadata"]) if candidate else {}
    version = found.get("model_version")
    serving = champion.outcome["metadata"].get("model_version") if champion else None
    return {
        "version": version,
        "champion": serving,
        "promoted": version is not None and version == serving,
        "holdout_rows": found.get("holdout_rows", 0),
        "metrics": found.get("metrics", {}),
        "baselines": found.get("baselines", {}),
        "gate": found.get("gate", []),
        "not_trained": found.get("not_trained"),
        "card": found.get("card_path"),
    }


def _monitor(ledger: Ledger, model: Model) -> dict[str, Any]:
    last = ledger.last(keys.drift(model.name).slashed)
    found = last.outcome["metadata"] if last else {}
    return {name: found.get(name) for name in ("sustained", "cause", "report_path")}


def _assets(materializations: Sequence[Any]) -> list[dict[str, Any]]:
    return [_asset(data.materialization) for data in materializations]


def _asset(materialization: dg.AssetMaterialization) -> dict[str, Any]:
    metadata = {name: value.value for name, value in materialization.metadata.items()}
    return {
        "key": materialization.asset_key.to_user_string(),
        "wall_s": metadata.get("wall_s", 0.0),
        "cpu_s": metadata.get("cpu_s", 0.0),
        "rebuilt": bool(metadata.get("rebuilt", True)),
    }
