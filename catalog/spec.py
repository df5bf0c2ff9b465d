"""Frozen, strict schemas of what is declared in YAML: source tables, gates and models.

A field says for itself what it may be; what must fit together is in the `rules` of its spec, each of which names the
field to look at. How a refusal reads is decided in `catalog.refusals`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from catalog.problems import Finding, Loc, either, nearest, shown

__all__ = [
    "BASELINES",
    "COLUMN_ARGUMENTS",
    "METRICS",
    "MISFIT",
    "Bar",
    "Baseline",
    "Column",
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

COLUMN_ARGUMENTS = frozenset({"column_A", "column_B", "column_list", "column_set"})
"""Arguments of Great Expectations that name further columns."""

MISFIT = "misfit"
"""pydantic's `type` of an error that a rule found."""

Rule = Callable[[], Iterator[Finding]]


def _text(pattern: str, words: str) -> Any:
    """Text of a pattern, with the words that say which."""
    return Field(pattern=pattern, json_schema_extra={"words": words})


Name = Annotated[str, _text(r"^[a-z][a-z0-9_]*$", "a name of lower-case letters, digits and _, a letter first")]
Owner = Annotated[
    str, _text(r"^(team:[a-z][a-z0-9_-]*|[^@\s]+@[^@\s]+\.[^@\s]+)$", "team:name (in lower case) or an e-mail address")
]
TableKey = Annotated[str, _text(r"^[a-z]+/[a-z][a-z0-9_]*/[a-z][a-z0-9_]*$", "an asset key such as marts/sales/orders")]
FeatureReference = Annotated[
    str, _text(r"^[a-z][a-z0-9_]*:[a-z][a-z0-9_]*$", "view:feature such as activity:txn_count_7d")
]
ColumnType = Literal["string", "int64", "float64", "bool", "timestamp"]
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


class Spec(BaseModel):
    """A declaration or a part of one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def rules(self) -> tuple[Rule, ...]:
        """What must fit together here; each rule yields what does not, at its place below this spec."""
        return ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        found = [finding for rule in self.rules() for finding in rule()]
        if found:
            # Several errors, each with its own place: a plain ValueError would be one, without a place.
            raise ValidationError.from_exception_data(type(self).__name__, [_misfit(finding) for finding in found])
        return self


def _misfit(finding: Finding) -> InitErrorDetails:
    error = PydanticCustomError(MISFIT, "{text}", {"text": finding.text})
    return InitErrorDetails(type=error, loc=finding.loc, input=None)


class Column(Spec):
    """One column of a source table; `timestamp` has microseconds and is UTC."""

    name: Name
    type: ColumnType
    description: str = Field(min_length=3)
    nullable: bool = True
    pii: bool = False


class Expectation(Spec):
    """One Great Expectations expectation by its snake_case name, with its arguments.

    `mostly` is the share of rows that must satisfy it (1.0: every row).
    """

    expect: Name
    column: Name | None = None
    mostly: float = Field(default=1.0, gt=0, le=1)
    arguments: dict[str, Any] = {}

    def columns(self) -> Iterator[tuple[Loc, str]]:
        """Every column that the expectation names, with its place."""
        if self.column is not None:
            yield ("column",), self.column
        for argument in sorted(COLUMN_ARGUMENTS & self.arguments.keys()):
            value = self.arguments[argument]
            if isinstance(value, str):
                yield ("arguments", argument), value
            elif isinstance(value, tuple | list):
                yield from ((("arguments", argument, n), name) for n, name in enumerate(value) if isinstance(name, str))


class Gate(Spec):
    """What must hold before anything downstream of a table runs.

    `freshness_days` bounds the clock's now minus the latest `event_time`; `max_quarantined_pct` (raw tables) bounds the
    share of a batch's rows that may break the contract before the table itself counts as broken.
    """

    key: tuple[Name, ...] = Field(min_length=1)
    event_time: Name
    freshness_days: float = Field(gt=0)
    freshness: Literal["warn", "block"] = "warn"
    min_rows: int = Field(default=1, ge=0)
    max_quarantined_pct: float = Field(default=20.0, ge=0, lt=50)
    expectations: tuple[Expectation, ...] = ()
    table: TableKey | None = None

    def columns(self) -> Iterator[tuple[Loc, str]]:
        """Every column that the gate names, with its place."""
        yield from ((("key", position), name) for position, name in enumerate(self.key))
        yield ("event_time",), self.event_time
        for position, expectation in enumerate(self.expectations):
            yield from ((("expectations", position, *loc), name) for loc, name in expectation.columns())


class Source(Spec):
    """One captured table: from it come the raw asset, its checks and dbt's source.

    `relation` is its name in the database when that is not `table` in the default schema (`sales.Orders`).
    """

    system: Name
    table: Name
    relation: Annotated[str, Field(pattern=r"^[^.]+\.[^.]+$")] | None = None
    description: str = Field(min_length=10)
    owner: Owner
    domain: Name
    columns: tuple[Column, ...] = Field(min_length=1)
    gate: Gate

    def rules(self) -> tuple[Rule, ...]:
        return (self._columns_once, self._gate_is_its_own, self._gate_columns_exist)

    def _columns_once(self) -> Iterator[Finding]:
        names = [column.name for column in self.columns]
        for position in _repeated(names):
            yield Finding(
                ("columns", position, "name"), f"found column {names[position]!r} a second time, allowed is once"
            )

    def _gate_is_its_own(self) -> Iterator[Finding]:
        if self.gate.table is not None:
            text = f"found gate.table {self.gate.table!r}, allowed is none: the gate of a source is its raw table's"
            yield Finding(("gate", "table"), text)

    def _gate_columns_exist(self) -> Iterator[Finding]:
        names = [column.name for column in self.columns]
        for loc, used in self.gate.columns():
            if used not in names:
                text = f"found column {used!r} in the gate{nearest(used, names)}, allowed is {either(names)}"
                yield Finding(("gate", *loc), text)


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
        for position in _repeated(names):
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
        for position in _repeated(names):
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


def _repeated(names: Sequence[str]) -> list[int]:
    """The positions of names that were there before."""
    return [position for position, name in enumerate(names) if name in names[:position]]
