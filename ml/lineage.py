"""Where a model version comes from: version, run, data, code, features, parameters, metrics, approver.

What it is, how it is read from a registered version and its run, and how it is shown. Nothing here talks to MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ml.promotions import Promotion, came_first, concerning

__all__ = ["Lineage", "trace"]

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Lineage:
    """One version, traced. Times are ISO instants of the business clock; what did not happen yet is None.

    `promoted_by`, `promoted_at`, `approved_by` and `note` are of the version's first promotion and approval; `history`
    has every entry in which it came or went, rollbacks too, oldest first. A retraining that a drift asked for has its
    `cause_id`, and which shares of the hold-out's and of the newest training cut-off's label window lie in the drift.
    """

    model: str
    version: str
    aliases: tuple[str, ...]
    run_id: str
    data_digest: str
    package_digest: str
    training_rows: int
    holdout_rows: int
    cutoffs: str
    holdout_cutoff: str
    git_commit: str
    git_dirty: bool
    features: tuple[str, ...]
    algorithm: str
    parameters: Mapping[str, str]
    metrics: Metrics
    baselines: Mapping[str, Metrics]
    slices: Mapping[str, Metrics]
    gate: str
    gate_report: str
    trained_by: str
    trained_at: str
    dagster_run_id: str
    cause_id: str | None
    drifted_from: str | None
    drift_in_holdout: float | None
    drift_in_training: float | None
    promoted_by: str | None
    promoted_at: str | None
    approved_by: str | None
    note: str | None
    history: tuple[Promotion, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def describe(self) -> str:
        """Plain text, one fact a line, in the order of the trace."""
        dirty = " (with uncommitted changes)" if self.git_dirty else ""
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        facts = [
            ("version", f"{self.model} {self.version}{aliases}"),
            ("run", self.run_id),
            ("data digest", f"sha256 {self.data_digest}"),
            ("data", f"{self.training_rows} training rows at {self.cutoffs}"),
            ("hold-out", f"{self.holdout_rows} rows at {self.holdout_cutoff}"),
            ("code commit", self.git_commit + dirty),
            ("features", ", ".join(self.features)),
            ("algorithm", self.algorithm),
            ("parameters", ", ".join(f"{k}={v}" for k, v in self.parameters.items()) or "defaults"),
            ("metrics", _line(self.metrics)),
            *((f"baseline {name}", _line(metrics)) for name, metrics in self.baselines.items()),
            *((f"slice {name}", _line(metrics)) for name, metrics in self.slices.items()),
            ("gate", self.gate),
            *(("", line) for line in self.gate_report.splitlines()),
            ("trained by", f"{self.trained_by} at {self.trained_at}"),
            ("dagster run", self.dagster_run_id),
            *self._retrained_for(),
            ("promoted by", f"{self.promoted_by} at {self.promoted_at}" if self.promoted_by else "not promoted"),
            ("approver", self.approved_by or "none"),
            ("note", self.note or "none"),
            *(("history" if n == 0 else "", entry.line()) for n, entry in enumerate(self.history)),
            ("package", f"sha256 {self.package_digest}"),
        ]
        width = max(len(name) for name, _ in facts)
        return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in facts)

    def _retrained_for(self) -> list[tuple[str, str]]:
        if self.cause_id is None:
            return []
        held, trained = f"{self.drift_in_holdout:.0%}", f"{self.drift_in_training:.0%}"
        return [
            ("retrained for", f"{self.cause_id}, the drift since {self.drifted_from}"),
            ("", f"label windows in the drift: {held} of the hold-out's, {trained} of the newest training cut-off's"),
        ]


def _line(metrics: Metrics) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())


def trace(version: Any, run: Any, aliases: tuple[str, ...], history: Sequence[Promotion]) -> Lineage:
    """Assemble the facts from MLflow's model version and run, as ml/registry.py and ml/tracking.py wrote them."""
    number = str(version.version)
    promoted, approved = came_first(history, number), came_first(history, number, "approve")
    tags, params, metrics = version.tags, run.data.params, run.data.metrics
    named = _nested(metrics)
    return Lineage(
        model=version.name,
        version=number,
        aliases=aliases,
        run_id=version.run_id,
        data_digest=tags["data_digest"],
        package_digest=tags["package_digest"],
        training_rows=int(metrics["rows/training"]),
        holdout_rows=int(metrics["rows/holdout"]),
        cutoffs=params["cutoffs"],
        holdout_cutoff=params["holdout_cutoff"],
        git_commit=tags["git_commit"],
        git_dirty=tags["git_dirty"] == "true",
        features=tuple(json.loads(tags["features"])),
        algorithm=tags["algorithm"],
        parameters={k.removeprefix("parameters."): v for k, v in params.items() if k.startswith("parameters.")},
        metrics={k.removeprefix("holdout/"): v for k, v in metrics.items() if k.startswith("holdout/")},
        baselines=named["baseline"],
        slices=named["slice"],
        gate=tags["gate"],
        gate_report=tags["gate_report"],
        trained_by=tags["trained_by"],
        trained_at=tags["trained_at"],
        dagster_run_id=tags["dagster_run_id"],
        cause_id=tags.get("cause_id"),
        drifted_from=tags.get("drifted_from"),
        drift_in_holdout=_number(tags.get("drift_in_holdout")),
        drift_in_training=_number(tags.get("drift_in_training")),
        promoted_by=promoted.by if promoted else None,
        promoted_at=promoted.at if promoted else None,
        approved_by=approved.by if approved else None,
        note=promoted.note if promoted else None,
        history=concerning(history, number),
    )


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def _nested(metrics: Mapping[str, float]) -> dict[str, dict[str, dict[str, float]]]:
    """`slice/abroad/roc_auc` as nested mappings; the slices' baselines (four parts) are in the card only."""
    nested: dict[str, dict[str, dict[str, float]]] = {"baseline": {}, "slice": {}}
    for key, value in metrics.items():
        parts = key.split("/")
        if len(parts) == 3 and parts[0] in nested:
            nested[parts[0]].setdefault(parts[1], {})[parts[2]] = value
    return nested
