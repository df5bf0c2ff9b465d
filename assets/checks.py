"""The gates: blocking asset checks on every raw, mart and feature table, from the declarations in the catalog.

A failed blocking check stops everything downstream of its table. Outcomes are kept in the ledger by table version, gate
and instant, so an unchanged table is not validated again (and a broken one stays broken until it changes).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import dagster as dg

from assets.build import code_version
from catalog import keys
from catalog.keys import Key
from catalog.load import Catalog
from catalog.spec import Gate, Source
from lake.ledger import fingerprint
from resources.platform import Platform

__all__ = ["CHECKS", "gate_checks", "unpacked_check"]

# What every gate looks at, in this order; `lake/gates.py` says how.
CHECKS = {
    "schema": "Every declared column exists with its type.",
    "volume": "There are rows, and few enough of them broke the contract.",
    "contract": "The Great Expectations suite holds.",
    "keys": "Keys are unique and never null.",
    "freshness": "The latest event is recent enough by the platform's clock.",
}


def gate_checks(catalog: Catalog) -> list[dg.AssetChecksDefinition]:
    """A step for each raw table's gates, so that none stops what is made of others; one for each other layer's."""
    sources = {keys.raw(s.system, s.table): s for s in catalog.sources}
    declared = {Key.parse(g.table): g for g in catalog.gates if g.table}
    layers = dict.fromkeys(key.layer for key in declared)
    return [
        *(_gate_step(f"{'__'.join(key.path)}__gates", {key: s.gate}, {key: s}) for key, s in sources.items()),
        *(
            _gate_step(f"{layer}_gates", {k: g for k, g in declared.items() if k.layer == layer}, {})
            for layer in layers
        ),
    ]


def _gate_step(name: str, gates: Mapping[Key, Gate], sources: Mapping[Key, Source]) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(check, asset=dg.AssetKey(key.path), description=text, blocking=True)
        for key in gates
        for check, text in CHECKS.items()
    ]

    @dg.multi_asset_check(name=name, specs=specs, can_subset=True)
    def step(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        wanted = {(Key(*k.asset_key.path), k.name) for k in context.selected_asset_check_keys}
        for key, gate in gates.items():
            if any(k == key for k, _ in wanted):
                for report in _outcomes(platform, key, gate, sources.get(key)):
                    if (key, report["check"]) in wanted:
                        yield unpacked_check(report)

    return step


def _outcomes(platform: Platform, key: Key, gate: Gate, source: Source | None) -> Sequence[Mapping[str, Any]]:
    from lake.gates import evaluate_gate

    now = platform.clock.now()
    name = f"gate:{key.slashed}"
    quarantined = platform.lake.version(keys.quarantine(key.subject, key.name)) if source else None
    wanted = fingerprint(
        {
            "version": platform.lake.version(key),
            "quarantined": quarantined,
            "gate": gate.model_dump(),
            "columns": [c.model_dump() for c in source.columns] if source else None,
            "now": now,
            "code": code_version("lake/gates.py", "lake/expectations.py", "lake/schema.py", "dbt_project"),
        }
    )
    if last := platform.ledger.unchanged(name, wanted):
        return list(last.outcome["reports"])
    outcomes = evaluate_gate(platform.lake, key, gate, now, source)
    reports = [{"check": o.name, "table": key.slashed, **_fields(asdict(o))} for o in outcomes]
    platform.ledger.record(name, wanted, {"version": wanted[:16], "reports": reports})
    return reports


def _fields(outcome: Mapping[str, Any]) -> dict[str, Any]:
    return {name: outcome[name] for name in ("passed", "severity", "message", "metadata")}


def unpacked_check(report: Mapping[str, Any]) -> dg.AssetCheckResult:
    """The ledger's form as Dagster's."""
    return dg.AssetCheckResult(
        asset_key=dg.AssetKey(Key.parse(report["table"]).path),
        check_name=report["check"],
        passed=bool(report["passed"]),
        severity=dg.AssetCheckSeverity.ERROR if report["severity"] == "block" else dg.AssetCheckSeverity.WARN,
        description=report["message"],
        metadata=dict(report["metadata"]),
    )
