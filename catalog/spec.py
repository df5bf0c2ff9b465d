"""Frozen, strict schemas of what is declared in YAML: source tables, gates and models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "BASELINES",
    "METRICS",
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
    "Slice",
    "Source",
]

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Owner = Annotated[str, Field(pattern=r"^(team:[a-z][a-z0-9_-]*|[^@\s]+@[^@\s]+\.[^@\s]+)$")]
TableKey = Annotated[str, Field(pattern=r"^[a-z]+/[a-z][a-z0-9_]*/[a-z][a-z0-9_]*$")]
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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Column(_Strict):
    """One column of a source table; `timestamp` has microseconds and is UTC."""

    name: Name
    type: ColumnType
    description: str = Field(min_length=3)
    nullable: bool = True
    pii: bool = False


class Expectation(_Strict):
    """One Great Expectations expectation by its snake_case name, with its arguments.

    `mostly` is the share of rows that must satisfy it (1.0: every row).
    """

    expect: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    column: Name | None = None
    mostly: float = Field(default=1.0, gt=0, le=1)
    arguments: dict[str, Any] = {}


class Gate(_Strict):
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


class Source(_Strict):
    """One captured table: from it come the raw asset, its checks and dbt's source."""

    system: Name
    table: Name
    description: str = Field(min_length=10)
    owner: Owner
    domain: Name
    columns: tuple[Column, ...] = Field(min_length=1)
    gate: Gate

    @model_validator(mode="after")
    def _names_exist(self) -> Source:
        names = [c.name for c in self.columns]
        for used in (*self.gate.key, self.gate.event_time, *(e.column for e in self.gate.expectations if e.column)):
            if used not in names:
                raise ValueError(f"found column {used!r} in the gate, allowed are the table's own: {', '.join(names)}")
        if len(set(names)) != len(names):
            raise ValueError("found a column declared twice, allowed is once each")
        return self


class Label(_Strict):
    """The outcome in [cut-off, cut-off + horizon): whether no purchase happens, or the sum of a column."""

    kind: Literal["no_event", "sum"]
    table: TableKey
    column: Name | None = None
    horizon_days: int = Field(ge=1, le=730)

    @model_validator(mode="after")
    def _column_for_sum(self) -> Label:
        if (self.kind == "sum") != (self.column is not None):
            raise ValueError("found kind/column that do not fit, allowed is: sum with a column, no_event without")
        return self


class Cutoffs(_Strict):
    """Monthly instants at which entity rows are taken; a cut-off counts only once its label is mature."""

    min_history_days: int = Field(default=30, ge=0)
    max_count: int = Field(default=12, ge=2, le=120)


class Slice(_Strict):
    """Rows of the hold-out on which the model must hold by itself; `where` is an SQL condition over the features.

    `metric` is the gate's own when not given. A slice with fewer than `min_rows` rows is reported, not judged.
    """

    name: Name
    where: str
    metric: Metric | None = None
    minimum: float | None = None
    maximum: float | None = None
    min_rows: int = Field(default=100, ge=1)


class Bar(_Strict):
    """An absolute bound on one metric of the hold-out."""

    metric: Metric
    minimum: float | None = None
    maximum: float | None = None


class ModelGate(_Strict):
    """The bar a candidate must pass on the hold-out: an absolute one, every baseline, the champion, every slice.

    `bars` bound further metrics: a scale-free one suits a model whose own metric is in pounds.
    """

    metric: Metric
    minimum: float | None = None
    maximum: float | None = None
    bars: tuple[Bar, ...] = ()
    min_holdout_rows: int = Field(default=50, ge=10)
    slices: tuple[Slice, ...] = ()


class Promotion(_Strict):
    """`auto`: what passes the gate is promoted; `approve`: it waits for `headwater approve`."""

    policy: Literal["auto", "approve"]
    approver_must_differ: bool = True


class Drift(_Strict):
    """When a shift counts: PSI above the floor and above what sampling explains, in `breaches` of `windows` windows."""

    window_days: int = Field(default=7, ge=1)
    windows: int = Field(default=4, ge=1, le=52)
    breaches: int = Field(default=3, ge=1, le=52)
    psi_floor: float = Field(default=0.2, gt=0)
    false_alarm_rate: float = Field(default=0.001, gt=0, lt=0.5)
    bins: int = Field(default=10, ge=2, le=100)
    cooldown_days: float = Field(default=14, ge=0)

    @model_validator(mode="after")
    def _k_of_m(self) -> Drift:
        if self.breaches > self.windows:
            raise ValueError(f"found breaches {self.breaches}, allowed is at most windows ({self.windows})")
        return self


class Model(_Strict):
    """One machine-learning model: everything that is needed to train, gate, promote, serve and watch it."""

    name: Name
    description: str = Field(min_length=10)
    purpose: str = Field(min_length=10)
    limits: tuple[str, ...] = Field(min_length=1)
    owner: Owner
    domain: Name
    entity: Literal["customer"]
    task: Literal["binary", "regression"]
    features: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*:[a-z][a-z0-9_]*$")], ...] = Field(min_length=1)
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

    @model_validator(mode="after")
    def _fits_task(self) -> Model:
        if self.gate.metric not in METRICS[self.task]:
            raise ValueError(
                f"found gate metric {self.gate.metric!r}, allowed for task {self.task} is one of "
                + ", ".join(METRICS[self.task])
            )
        for used in (*(b.metric for b in self.gate.bars), *(s.metric for s in self.gate.slices if s.metric)):
            if used not in METRICS[self.task]:
                raise ValueError(
                    f"found metric {used!r} in the gate's bars or slices, allowed for task {self.task} is one of "
                    + ", ".join(METRICS[self.task])
                )
        for baseline in self.baselines:
            if baseline not in BASELINES[self.task]:
                raise ValueError(
                    f"found baseline {baseline!r}, allowed for task {self.task} is one of "
                    + ", ".join(BASELINES[self.task])
                )
        names = [ref.partition(":")[2] for ref in self.features]
        if self.offset is not None and (self.task != "regression" or self.offset not in names):
            raise ValueError(
                f"found offset {self.offset!r}, allowed with task regression is one of its features: {', '.join(names)}"
            )
        if len(set(self.features)) != len(self.features):
            raise ValueError("found a feature listed twice, allowed is once each")
        if (self.label.kind == "no_event") != (self.task == "binary"):
            raise ValueError(
                "found a label that does not fit the task, allowed is no_event with binary, sum with regression"
            )
        return self
