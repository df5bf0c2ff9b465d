"""What a run did: `summary.json` for machines and a page of text for people, both from the same numbers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from catalog import keys
from catalog.keys import Key
from catalog.load import Catalog
from catalog.settings import Settings
from catalog.spec import Model
from lake import Lake
from lake.ledger import Ledger

__all__ = ["show", "summarise", "write"]


def summarise(settings: Settings, catalog: Catalog, result: Any, used: Mapping[str, float]) -> dict[str, Any]:
    """The summary of a finished in-process run (`result`): tables, checks, models, assets, and what it `used`."""
    lake, ledger = Lake(settings.lake_dir), Ledger(settings.ledger_path)
    return {
        "success": result.success,
        "tables": {key.dotted: {"rows": lake.rows(key)} for key in lake.keys()},  # noqa: SIM118  # a lake, not a dict
        "checks": _checks(result.get_asset_check_evaluations()),
        "models": {m.name: _model(ledger, m) for m in catalog.models},
        "monitoring": {m.name: _monitor(ledger, m) for m in catalog.models},
        "assets": [_asset(event) for event in result.get_asset_materialization_events()],
        **used,
    }


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


def _asset(event: Any) -> dict[str, Any]:
    materialization = event.step_materialization_data.materialization
    metadata = {name: value.value for name, value in materialization.metadata.items()}
    return {
        "key": materialization.asset_key.to_user_string(),
        "wall_s": metadata.get("wall_s", 0.0),
        "cpu_s": metadata.get("cpu_s", 0.0),
        "rebuilt": bool(metadata.get("rebuilt", True)),
    }


def write(settings: Settings, summary: Mapping[str, Any]) -> Path:
    """Put the summary into HEADWATER_HOME, whole or not at all."""
    path = settings.home / "summary.json"
    draft = path.with_name(f".summary.{os.getpid()}")
    draft.write_text(json.dumps(summary, indent=2, default=str) + "\n")
    draft.replace(path)
    return path


def show(settings: Settings, catalog: Catalog, summary: Mapping[str, Any], failures: Sequence[str]) -> None:
    """Print the summary for a person."""
    lines = [
        *_tables_text(summary),
        *_models_text(catalog, summary),
        *_monitors_text(summary),
        "",
        *_totals_text(summary),
    ]
    if failures:
        lines += ["", "What failed", *(f"  {reason}" for reason in dict.fromkeys(failures))]
    lines += ["", *_next_text(settings, summary, failed=bool(failures))]
    print("\n".join(lines), file=sys.stdout, flush=True)


def _tables_text(summary: Mapping[str, Any]) -> list[str]:
    tables = summary["tables"]
    width = max((len(name) for name in tables), default=0)
    return ["", "Tables", *(f"  {name:<{width}} {entry['rows']:>12,}" for name, entry in tables.items())]


def _models_text(catalog: Catalog, summary: Mapping[str, Any]) -> list[str]:
    lines = ["", "Models"]
    for name, model in summary["models"].items():
        if model["not_trained"]:
            lines.append(f"  {name}: not trained: {model['not_trained']}")
            continue
        if model["version"] is None:
            lines.append(f"  {name}: not reached")
            continue
        verdict = "promoted" if model["promoted"] else f"not promoted, champion is {model['champion'] or 'none'}"
        lines.append(f"  {name} version {model['version']}: {verdict}; hold-out {model['holdout_rows']:,} rows")
        metric = catalog.model(name).gate.metric
        rows = {"model": model["metrics"], **model["baselines"]}
        shown = [metric, *(m for m in model["metrics"] if m != metric)]
        lines.append(f"    {'':<20}" + "".join(f"{m:>18}" for m in shown))
        lines += [f"    {who:<20}" + "".join(_number(values.get(m)) for m in shown) for who, values in rows.items()]
        lines += [f"    gate: {reason}" for reason in model["gate"]]
    return lines


def _monitors_text(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, monitor in summary["monitoring"].items():
        if monitor["sustained"] is not None:
            verdict = "sustained drift" if monitor["sustained"] else "no sustained drift"
            lines.append(f"  {name}: {verdict}; {monitor['cause']}")
    return ["", "Monitors", *lines] if lines else []


def _number(value: Any) -> str:
    return f"{'-':>18}" if value is None else f"{value:>18,.4f}"


def _totals_text(summary: Mapping[str, Any]) -> list[str]:
    checks, assets = summary["checks"], summary["assets"]
    rebuilt = sum(1 for a in assets if a["rebuilt"])
    return [
        f"Checks  {checks['passed']} passed, {checks['warned']} warned, {checks['failed']} failed",
        f"Assets  {len(assets)} up to date, {rebuilt} of them rebuilt",
        f"Used    {summary['wall_s']:.1f} s wall, {summary['cpu_s']:.1f} CPU-s, {summary['peak_rss_mb']:.0f} MB",
    ]


def _someone(settings: Settings) -> int | None:
    """A customer of this shop, for the example: the lowest number."""
    lake, key = Lake(settings.lake_dir), Key("marts", "sales", "customers")
    found = lake.connect([key]).sql("SELECT min(customer_id) FROM marts.sales.customers").fetchall()
    return None if found[0][0] is None else int(found[0][0])


def _next_text(settings: Settings, summary: Mapping[str, Any], *, failed: bool) -> list[str]:
    if failed:
        return [
            "Nothing downstream of a failure was touched. Mend it and run again: what is done is kept.",
            "A source file whose replayed lines were changed is another history: give it a HEADWATER_HOME of its own.",
        ]
    predictions = [
        f"  headwater predict {name} --customer {someone:<10}   one prediction, as the API would answer it"
        for name, model in list(summary["models"].items())[:1]
        if model["champion"] and (someone := _someone(settings)) is not None
    ]
    pages = [model["card"] for model in summary["models"].values() if model["card"]]
    pages += [monitor["report_path"] for monitor in summary["monitoring"].values() if monitor["report_path"]]
    return [
        "Next",
        "  make dev                                    Dagster UI, prediction API, MLflow UI",
        *predictions,
        '  headwater sql "SELECT * FROM marts.sales.purchase_lines LIMIT 5"',
        "  headwater lineage churn                     which data, code and run made the champion",
        f"  {settings.home / 'summary.json'}",
        *(f"  {page}" for page in pages),
    ]
