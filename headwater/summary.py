"""What a run did, as a page of text for people, from the numbers of `summary.json` (see resources/summary.py)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from catalog.keys import Key
from catalog.load import Catalog
from catalog.settings import Settings
from lake import Lake

__all__ = ["show"]


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
