"""Frozen, strict schemas of what is declared in YAML: source tables, gates (both in source_spec.py) and models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

from pydantic import Field

from catalog.problems import Finding, Loc, either, nearest, shown
from catalog.source_spec import COLUMN_ARGUMENTS, HISTORY_NAMES, Column, ColumnType, Expectation, Gate, Source
from catalog.spec_base import MISFIT, FeatureReference, Name, Owner, Rule, Spec, TableKey, repeated

__all__ = [
    "BASELINES",
    "COLUMN_ARGUMENTS",
    "HISTORY_NAMES",
    "METRICS",
    "MISFIT",
    "Bar",
    "Baseline",
    "Column",
    "ColumnType",
    "Cutoffs",
    "Drift",
    "Expectation",
    "Gate",
    "Label",
    "Model",
    "ModelGate",
    "Promotion",
    "Rule",
    "Slice",
    "Source",
    "Spec",
]


Metric = Literal["roc_auc", "average_precision", "log_loss", "brier", "mae", "rmse", "spearman"]
Baseline = Literal["majority", "recency_rule", "mean", "last_90_days_spend"]
METRICS: dict[str, tuple[str, ...]] = {
    "binary": ("roc_auc", "average_precision", "log_loss", "brier"),
    "regression": ("mae", "rmse", "spearman"),
}
BASELINES: dict[str, tuple[str, ...]] = {
    "binary": ("majority", "recency_rule"),
    "regression": ("mean", "last_90_days_spend"),
}


class Label(Spec):
    """The outcome in [cut-off, cut-off + horizon): whether no purchase happens, or the sum of a column."""

    kind: Literal["no_event", "sum"]
    table: TableKey
    column: Name | None = None
    horizon_days: int = Field(ge=1, le=730)

    def rules(self) -> tuple[Rule, ...]:
        return (self._column_for_sum,)

    def _column_for_sum(self) -> Iterator[Finding]:
        if self.kind == "sum" and self.column is None:
            yield Finding(("kind",), "found label.kind 'sum' without a column, allowed is with one: the column to sum")
        if self.kind == "no_event" and self.column is not None:
            text = f"found label.column {self.column!r} with kind no_event, allowed is none: only a sum has a column"
            yield Finding(("column",), text)


class Cutoffs(Spec):
    """Monthly instants at which entity rows are taken; a cut-off counts only once its label is mature."""

    min_history_days: int = Field(default=30, ge=0)
    max_count: int = Field(default=12, ge=2, le=120)


class Slice(Spec):
    """Rows of the hold-out on which the model must hold by itself; `where` is an SQL condition over the features.

    `metric` is the gate's own when not given. A slice with fewer than `min_rows` rows is reported, not judged.
    """

    name: Name
    where: str
    metric: Metric | None = None
    minimum: float | None = None
    maximum: float | None = None
    min_rows: int = Field(default=100, ge=1)

    def rules(self) -> tuple[Rule, ...]:
        return (partial(_bounds_in_order, self),)


class Bar(Spec):
    """An absolute bound on one metric of the hold-out."""

    metric: Metric
    minimum: float | None = None
    maximum: float | None = None

    def rules(self) -> tuple[Rule, ...]:
        return (partial(_bounds_in_order, self),)


class ModelGate(Spec):
    """The bar a candidate must pass on the hold-out: an absolute one, every baseline, the champion, every slice.

    `bars` bound further metrics: a scale-free one suits a model whose own metric is in pounds. `min_improvement` is how
    much better than the champion a candidate must be, in the metric's own unit and whichever way is better: 0 lets an
    equal one replace it (it has seen later data), a negative number one that is at most so much worse.
    """

    metric: Metric
    minimum: float | None = None
    maximum: float | None = None
    bars: tuple[Bar, ...] = ()
    min_improvement: float = 0.0
    min_holdout_rows: int = Field(default=50, ge=10)
    slices: tuple[Slice, ...] = ()

    def rules(self) -> tuple[Rule, ...]:
        return (partial(_bounds_in_order, self), self._slices_once)

    def _slices_once(self) -> Iterator[Finding]:
        names = [part.name for part in self.slices]
        for position in repeated(names):
            yield Finding(
                ("slices", position, "name"), f"found slice {names[position]!r} a second time, allowed is once"
            )

    def metrics(self) -> Iterator[tuple[Loc, str]]:
        """Every metric that the gate names, with its place."""
        yield ("metric",), self.metric
        yield from ((("bars", position, "metric"), bar.metric) for position, bar in enumerate(self.bars))
        yield from ((("slices", n, "metric"), part.metric) for n, part in enumerate(self.slices) if part.metric)


def _bounds_in_order(bounds: Slice | Bar | ModelGate) -> Iterator[Finding]:
    if bounds.minimum is not None and bounds.maximum is not None and bounds.minimum > bounds.maximum:
        text = f"found minimum {shown(bounds.minimum)}, allowed is at most maximum ({shown(bounds.maximum)})"
        yield Finding(("minimum",), text)


class Promotion(Spec):
    """`auto`: what passes the gate is promoted; `approve`: it waits for `headwater approve`."""

    policy: Literal["auto", "approve"]
    approver_must_differ: bool = True


class Drift(Spec):
    """When a shift counts: PSI above the floor and above what sampling explains, in `breaches` of `windows` windows."""

    window_days: int = Field(default=7, ge=1)
    windows: int = Field(default=4, ge=1, le=52)
    breaches: int = Field(default=3, ge=1, le=52)
    psi_floor: float = Field(default=0.2, gt=0)
    false_alarm_rate: float = Field(default=0.001, gt=0, lt=0.5)
    bins: int = Field(default=10, ge=2, le=100)
    cooldown_days: float = Field(default=14, ge=0)

    def rules(self) -> tuple[Rule, ...]:
        return (self._k_of_m,)

    def _k_of_m(self) -> Iterator[Finding]:
        if self.breaches > self.windows:
            text = f"found drift.breaches {self.breaches}, allowed is at most the number of windows ({self.windows})"
            yield Finding(("breaches",), text)


class Model(Spec):
    """One machine-learning model: everything that is needed to train, gate, promote, serve and watch it."""

    name: Name
    description: str = Field(min_length=10)
    purpose: str = Field(min_length=10)
    limits: tuple[str, ...] = Field(min_length=1)
    owner: Owner
    domain: Name
    entity: Literal["customer"]
    task: Literal["binary", "regression"]
    features: tuple[FeatureReference, ...] = Field(min_length=1)
    label: Label
    cutoffs: Cutoffs = Cutoffs()
    algorithm: str = Field(min_length=1)
    parameters: dict[str, Any] = {}
    offset: Name | None = None
    """A feature that predictions start from: what is learned is the label's difference to it (null counts as 0)."""
    seed: int = Field(default=7, ge=0)
    baselines: tuple[Baseline, ...] = Field(min_length=1)
    gate: ModelGate
    promotion: Promotion
    drift: Drift = Drift()

    def rules(self) -> tuple[Rule, ...]:
        return (
            self._features_once,
            self._label_fits_task,
            self._offset_is_a_feature,
            self._baselines_fit_task,
            self._metrics_fit_task,
        )

    def _features_once(self) -> Iterator[Finding]:
        # By name, not by reference: the name is the column of the training set.
        names = [reference.partition(":")[2] for reference in self.features]
        for position in repeated(names):
            text = f"found feature {self.features[position]!r} a second time, allowed is once each"
            yield Finding(("features", position), text)

    def _label_fits_task(self) -> Iterator[Finding]:
        wanted = {"binary": "no_event", "regression": "sum"}[self.task]
        if self.label.kind != wanted:
            text = f"found label.kind {self.label.kind!r}, allowed is {wanted!r} for task {self.task}"
            yield Finding(("label", "kind"), text)

    def _offset_is_a_feature(self) -> Iterator[Finding]:
        names = [reference.partition(":")[2] for reference in self.features]
        if self.offset is not None and self.task != "regression":
            yield Finding(("offset",), f"found offset {self.offset!r}, allowed is one only with task regression")
        elif self.offset is not None and self.offset not in names:
            hint = nearest(self.offset, names)
            text = f"found offset {self.offset!r}{hint}, allowed is one of the model's features: {', '.join(names)}"
            yield Finding(("offset",), text)

    def _baselines_fit_task(self) -> Iterator[Finding]:
        for position, baseline in enumerate(self.baselines):
            if baseline not in BASELINES[self.task]:
                text = f"found baseline {baseline!r}, allowed is {either(BASELINES[self.task])} for task {self.task}"
                yield Finding(("baselines", position), text)

    def _metrics_fit_task(self) -> Iterator[Finding]:
        for loc, metric in self.gate.metrics():
            if metric not in METRICS[self.task]:
                text = f"found metric {metric!r}, allowed is {either(METRICS[self.task])} for task {self.task}"
                yield Finding(("gate", *loc), text)
