"""How good a model is on a hold-out, beside baselines, on slices, against the champion; and the gate that decides.

Pure functions over arrays and tables. Nothing here fits a model or knows a registry.

Metrics follow scikit-learn's definitions (roc_auc, average_precision, log_loss, brier, mae, rmse); spearman is the
correlation of average ranks, 0 for a constant. A metric that is undefined on some rows (one class only) is absent.

Errors: SliceError   a slice's condition cannot be evaluated over the features
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.problems import Finding
from catalog.spec import METRICS, Model
from ml.encoding import Matrix

__all__ = [
    "LOWER_IS_BETTER",
    "ChampionScore",
    "Evaluation",
    "GateResult",
    "HoldOut",
    "SliceError",
    "SliceResult",
    "Verdict",
    "evaluate",
    "evaluate_metrics",
    "gate",
    "slice_findings",
]

LOWER_IS_BETTER = frozenset({"log_loss", "brier", "mae", "rmse"})
# Relative. Equal models must count as equal: a champion is scored from its package, and ONNX computes in single
# precision, which moved the error of an identical model by 2e-7 of its value.
EQUAL_WITHIN = 1e-6

Metrics = Mapping[str, float]


class SliceError(ValueError):
    """A slice's condition cannot be evaluated over the features."""


@dataclass(frozen=True)
class HoldOut:
    """Hold-out rows (label, baseline columns, features) and a model's scores [n] for them."""

    table: pa.Table
    scores: Matrix

    @property
    def labels(self) -> Matrix:
        labels: Matrix = pc.cast(self.table["label"], pa.float64()).to_numpy()
        return labels


@dataclass(frozen=True)
class SliceResult:
    """The metrics on the rows of one slice, beside the baselines' there."""

    name: str
    where: str
    rows: int
    metrics: Metrics
    baselines: Mapping[str, Metrics]


@dataclass(frozen=True)
class Evaluation:
    """Everything measured on the hold-out."""

    holdout: HoldOut
    metrics: Metrics
    baselines: Mapping[str, Metrics]
    slices: tuple[SliceResult, ...]
    training_rows: int

    @property
    def rows(self) -> int:
        return len(self.holdout.scores)


@dataclass(frozen=True)
class ChampionScore:
    """The champion on the candidate's hold-out; `metrics` is None when it cannot be scored there, `reason` says why."""

    version: str
    metrics: Metrics | None
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """One rule of the gate. `passed` None: not judged, the text says why."""

    rule: str
    passed: bool | None
    text: str


@dataclass(frozen=True)
class GateResult:
    """Whether the candidate passes; `verdicts` has every rule, `reasons` the sentences of those that failed.

    `needs_approver` is true when a rule could not be judged that automatic promotion must not skip.
    """

    passed: bool
    verdicts: tuple[Verdict, ...]
    needs_approver: bool = False

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(v.text for v in self.verdicts if v.passed is False)

    def describe(self) -> str:
        """Every rule in a line: passed, failed or not judged."""
        words = {True: "passed", False: "FAILED", None: "not judged"}
        return "\n".join(f"{words[v.passed]}: {v.text}" for v in self.verdicts)


def evaluate(model: Model, training: pa.Table, holdout: HoldOut) -> Evaluation:
    """Metrics of the scores, of every declared baseline and of every slice. Raises SliceError."""
    labels = holdout.labels
    rules = {name: _baseline(name, training, holdout.table) for name in model.baselines}
    slices = []
    for declared in model.gate.slices:
        rows = _rows_where(holdout.table, declared.name, declared.where)
        slices.append(
            SliceResult(
                declared.name,
                declared.where,
                int(rows.sum()),
                evaluate_metrics(model.task, labels[rows], holdout.scores[rows]),
                {n: evaluate_metrics(model.task, labels[rows], p[rows], r[rows]) for n, (p, r) in rules.items()},
            )
        )
    return Evaluation(
        holdout=holdout,
        metrics=evaluate_metrics(model.task, labels, holdout.scores),
        baselines={n: evaluate_metrics(model.task, labels, p, r) for n, (p, r) in rules.items()},
        slices=tuple(slices),
        training_rows=training.num_rows,
    )


def evaluate_metrics(task: str, labels: Matrix, scores: Matrix, ranking: Matrix | None = None) -> dict[str, float]:
    """Metrics of predictions [n] against labels [n]; `ranking` [n], if given, is what a rule orders rows by."""
    if not len(labels):
        return {}
    found = _binary(labels, scores, scores if ranking is None else ranking) if task == "binary" else None
    found = _regression(labels, scores) if found is None else found
    return {name: float(found[name]) for name in METRICS[task] if name in found}


def _binary(labels: Matrix, scores: Matrix, ranking: Matrix) -> dict[str, float]:
    from sklearn import metrics

    found = {
        "log_loss": metrics.log_loss(labels, scores, labels=[0.0, 1.0]),
        "brier": metrics.brier_score_loss(labels, scores, pos_label=1),
    }
    if 0 < labels.sum() < len(labels):
        found["roc_auc"] = metrics.roc_auc_score(labels, ranking)
        found["average_precision"] = metrics.average_precision_score(labels, ranking)
    return found


def _regression(labels: Matrix, scores: Matrix) -> dict[str, float]:
    errors = scores - labels
    return {
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt(np.square(errors).mean())),
        "spearman": _spearman(labels, scores),
    }


def _spearman(a: Matrix, b: Matrix) -> float:
    ranks = np.array([_average_ranks(a), _average_ranks(b)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.square(ranks).sum(axis=1).prod())
    return float((ranks[0] * ranks[1]).sum() / scale) if scale > 0 else 0.0


def _average_ranks(values: Matrix) -> Matrix:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: Matrix = (last - (counts - 1) / 2)[inverse]
    return ranks


def _baseline(name: str, training: pa.Table, holdout: pa.Table) -> tuple[Matrix, Matrix]:
    """Predictions [n] and ranking [n] of one rule. It learns from the training rows what a person could."""
    n = holdout.num_rows
    label = np.asarray(pc.cast(training["label"], pa.float64()))
    if name in ("majority", "mean"):
        constant = np.full(n, label.mean())
        return constant, constant
    if name == "recency_rule":
        recency = np.asarray(holdout["baseline_recency_days"])
        return _calibrated(np.asarray(training["baseline_recency_days"]), label, recency), recency
    spend = np.asarray(holdout["baseline_sum_90d"])
    return spend, spend


def _calibrated(recency: Matrix, label: Matrix, asked: Matrix) -> Matrix:
    """P(label = 1 | days since the last purchase): logistic in the logarithm of the days.

    A step function (isotonic) fits training better and is a softer baseline: its end steps at 0 and 1 cost it a log
    loss worse than the majority's on a later hold-out.
    """
    from sklearn.linear_model import LogisticRegression

    curve = LogisticRegression().fit(np.log1p(recency)[:, None], label)
    return np.asarray(curve.predict_proba(np.log1p(asked)[:, None])[:, 1], dtype=np.float64)


def _rows_where(table: pa.Table, name: str, where: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    with duckdb.connect() as db:
        db.register("rows", table)
        try:
            found = db.sql(f"SELECT coalesce(({where})::BOOLEAN, false) AS hit FROM rows").to_arrow_table()
        except duckdb.Error as error:
            # What follows DuckDB's first line is a drawing of where in our query it is.
            raise SliceError(
                f"found {where!r} of slice {name!r}, which cannot be evaluated ({str(error).splitlines()[0]}), "
                f"allowed is an SQL condition over {', '.join(table.column_names)}"
            ) from None
    return np.asarray(found["hit"].to_numpy(), dtype=np.bool_)


def slice_findings(model: Model, schema: pa.Schema) -> Iterator[Finding]:
    """What is wrong with the declared slices over a training set's schema; reads no row."""
    for position, declared in enumerate(model.gate.slices):
        try:
            _rows_where(schema.empty_table(), declared.name, declared.where)
        except SliceError as error:
            yield Finding(("gate", "slices", position, "where"), str(error))


def gate(model: Model, candidate: Evaluation, champion: ChampionScore | None) -> GateResult:
    """Judge a candidate: absolute bars, every baseline, the champion on the same hold-out, every slice."""
    verdicts = [
        *_judge_bars(model, candidate),
        *_judge_baselines(model, candidate),
        _judge_champion(model, candidate, champion),
        *_judge_slices(model, candidate),
    ]
    unscored = champion is not None and champion.metrics is None
    return GateResult(all(v.passed is not False for v in verdicts), tuple(verdicts), needs_approver=unscored)


def _judge_bars(model: Model, candidate: Evaluation) -> list[Verdict]:
    bars = [(model.gate.metric, model.gate.minimum, model.gate.maximum)]
    bars += [(b.metric, b.minimum, b.maximum) for b in model.gate.bars]
    found = [_judge_bar("bar", m, candidate.metrics.get(m), low, high, "on the hold-out") for m, low, high in bars]
    return [v for v in found if v is not None]


def _judge_bar(
    rule: str, metric: str, value: float | None, low: float | None, high: float | None, where: str
) -> Verdict | None:
    if low is None and high is None:
        return None
    bounds = " and ".join(
        text
        for text in (f"at least {low:g}" if low is not None else "", f"at most {high:g}" if high is not None else "")
        if text
    )
    if value is None:
        return Verdict(rule, False, f"{metric} {where} is undefined (one class only), needed is {bounds}")
    passed = (low is None or value >= low) and (high is None or value <= high)
    return Verdict(rule, passed, f"{metric} {where} is {value:.4g}, needed is {bounds}")


def _judge_baselines(model: Model, candidate: Evaluation) -> list[Verdict]:
    metric, ours = model.gate.metric, candidate.metrics.get(model.gate.metric)
    verdicts = []
    for name, metrics in candidate.baselines.items():
        theirs = metrics.get(metric)
        if ours is None or theirs is None:
            verdicts.append(
                Verdict("baseline", False, f"{metric} is undefined on the hold-out, so {name} is not beaten")
            )
            continue
        passed = _advantage(metric, ours, theirs) > EQUAL_WITHIN * abs(theirs)
        verdicts.append(Verdict("baseline", passed, f"{metric} is {ours:.4g}, baseline {name} has {theirs:.4g}"))
    return verdicts


def _judge_champion(model: Model, candidate: Evaluation, champion: ChampionScore | None) -> Verdict:
    metric = model.gate.metric
    if champion is None:
        return Verdict("champion", None, "there is no other champion to compare with")
    if champion.metrics is None:
        return Verdict("champion", None, f"champion {champion.version} cannot be scored here: {champion.reason}")
    ours, theirs = candidate.metrics.get(metric), champion.metrics.get(metric)
    if ours is None or theirs is None:
        return Verdict(
            "champion", False, f"{metric} is undefined on the hold-out, so champion {champion.version} stays"
        )
    gained, wanted = _advantage(metric, ours, theirs), model.gate.min_improvement
    passed = gained >= wanted - EQUAL_WITHIN * abs(theirs)
    text = f"{metric} is {ours:.6g}, champion {champion.version} has {theirs:.6g} on the same hold-out"
    if wanted:
        text += f", an improvement of {gained:.4g}; needed is at least {wanted:g}"
    return Verdict("champion", passed, text)


def _judge_slices(model: Model, candidate: Evaluation) -> list[Verdict]:
    verdicts = []
    for declared, result in zip(model.gate.slices, candidate.slices, strict=True):
        where = f"on slice {declared.name}"
        if result.rows < declared.min_rows:
            text = f"slice {declared.name} has {result.rows} rows, judged from {declared.min_rows} on"
            verdicts.append(Verdict("slice", None, text))
            continue
        metric = declared.metric or model.gate.metric
        found = _judge_bar("slice", metric, result.metrics.get(metric), declared.minimum, declared.maximum, where)
        verdicts.extend([found] if found else [])
    return verdicts


def _advantage(metric: str, ours: float, theirs: float) -> float:
    return theirs - ours if metric in LOWER_IS_BETTER else ours - theirs
