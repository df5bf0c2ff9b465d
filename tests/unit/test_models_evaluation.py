"""Metrics against brute force; each rule of the gate can fail by itself."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catalog.load import load_catalog
from catalog.spec import Model
from ml.evaluation import ChampionScore, HoldOut, SliceError, evaluate, evaluate_metrics, gate, slice_findings

CATALOG = Path(__file__).resolve().parents[2] / "catalog"
RNG = np.random.default_rng(5)
LABELS = RNG.integers(0, 2, 200).astype(float)
SCORES = np.round(np.clip(0.3 * LABELS + RNG.random(200) * 0.7, 0.01, 0.99), 2)


def model(name: str, **gate_changes: object) -> Model:
    declared = load_catalog(CATALOG).model(name).model_dump()
    return Model.model_validate(declared | {"gate": declared["gate"] | {"slices": (), "bars": ()} | gate_changes})


def table(labels: np.ndarray, recency: np.ndarray, spend: np.ndarray, **columns: object) -> pa.Table:
    return pa.table({"label": labels, "baseline_recency_days": recency, "baseline_sum_90d": spend, **columns})


def test_binary_metrics_against_brute_force() -> None:
    found = evaluate_metrics("binary", LABELS, SCORES)
    pairs = [(p, n) for p, n in itertools.product(SCORES[LABELS == 1], SCORES[LABELS == 0])]
    assert found["roc_auc"] == pytest.approx(sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs))
    assert found["brier"] == pytest.approx(sum((s - y) ** 2 for s, y in zip(SCORES, LABELS, strict=True)) / 200)
    loss = -sum(math.log(s) if y else math.log(1 - s) for s, y in zip(SCORES, LABELS, strict=True)) / 200
    assert found["log_loss"] == pytest.approx(loss)
    thresholds = sorted(set(SCORES), reverse=True)
    recalls = [0.0] + [LABELS[t <= SCORES].sum() / LABELS.sum() for t in thresholds]
    precisions = [LABELS[t <= SCORES].mean() for t in thresholds]
    steps = zip(itertools.pairwise(recalls), precisions, strict=True)
    assert found["average_precision"] == pytest.approx(sum((b - a) * p for (a, b), p in steps))


def test_regression_metrics_against_brute_force() -> None:
    labels, scores = np.array([0.0, 0.0, 10.0, 40.0, 5.0]), np.array([1.0, 2.0, 2.0, 30.0, 9.0])
    found = evaluate_metrics("regression", labels, scores)
    assert found["mae"] == pytest.approx((1 + 2 + 8 + 10 + 4) / 5)
    assert found["rmse"] == pytest.approx(math.sqrt((1 + 4 + 64 + 100 + 16) / 5))
    assert found["spearman"] == pytest.approx(np.corrcoef([1.5, 1.5, 4, 5, 3], [1, 2.5, 2.5, 5, 4])[0, 1])
    assert evaluate_metrics("regression", labels, np.full(5, 3.0))["spearman"] == 0.0


def test_one_class_has_no_ranking_metric() -> None:
    assert set(evaluate_metrics("binary", np.zeros(5), np.full(5, 0.2))) == {"log_loss", "brier"}
    assert evaluate_metrics("binary", np.zeros(0), np.zeros(0)) == {}


def churn_evaluation(scores: np.ndarray, recency: np.ndarray, declared: Model):  # type: ignore[no-untyped-def]
    held = table(LABELS, recency, np.zeros(200), country=["UK", "FR"] * 100)
    return evaluate(declared, held, HoldOut(held, scores))


def test_baselines_of_a_binary_model() -> None:
    recency = np.where(LABELS == 1, 50.0, 40.0) + RNG.random(200) * 30
    found = churn_evaluation(SCORES, recency, model("churn")).baselines
    pairs = list(itertools.product(recency[LABELS == 1], recency[LABELS == 0]))
    assert found["recency_rule"]["roc_auc"] == pytest.approx(np.mean([p > n for p, n in pairs]))
    assert found["majority"]["roc_auc"] == 0.5
    assert found["recency_rule"]["log_loss"] < found["majority"]["log_loss"]


def test_baselines_of_a_regression() -> None:
    declared = model("clv")
    spend, labels = np.array([10.0, 0.0, 30.0]), np.array([20.0, 5.0, 15.0])
    training = table(np.array([1.0, 3.0]), np.ones(2), np.zeros(2))
    held = table(labels, np.ones(3), spend)
    found = evaluate(declared, training, HoldOut(held, labels)).baselines
    assert found["last_90_days_spend"]["mae"] == pytest.approx((10 + 5 + 15) / 3)
    assert found["mean"]["mae"] == pytest.approx((18 + 3 + 13) / 3)


NOISE = RNG.random(200) * 100


@pytest.mark.parametrize(
    ("changes", "scores", "recency", "champion", "reason"),
    [
        ({"minimum": 0.99}, SCORES, NOISE, None, "needed is at least 0.99"),
        ({"minimum": None}, 1 - SCORES, NOISE, None, "baseline majority"),
        ({}, SCORES, LABELS + NOISE / 1000, None, "baseline recency_rule"),
        ({}, SCORES, NOISE, ChampionScore("4", {"roc_auc": 0.999}), "champion 4 has 0.999"),
        ({"bars": ({"metric": "brier", "maximum": 0.01},)}, SCORES, NOISE, None, "brier on the hold-out"),
        ({"slices": ({"name": "fr", "where": "country = 'FR'", "minimum": 0.999},)}, SCORES, NOISE, None, "slice fr"),
    ],
)
def test_each_rule_fails_by_itself(
    changes: dict[str, object], scores: np.ndarray, recency: np.ndarray, champion: ChampionScore | None, reason: str
) -> None:
    declared = model("churn", **changes)
    result = gate(declared, churn_evaluation(scores, recency, declared), champion)
    assert not result.passed
    assert any(reason in text for text in result.reasons), result.describe()


@pytest.mark.parametrize(
    ("wanted", "lead", "passed"),
    [(0.0, 0.0, True), (0.0, -0.001, False), (0.01, 0.005, False), (0.01, 0.02, True), (-0.01, -0.005, True)],
)
@pytest.mark.parametrize("name", ["churn", "clv"])
def test_the_champion_gives_way_to_the_improvement_that_is_asked_for(
    name: str, wanted: float, lead: float, passed: bool
) -> None:
    """`lead`: how much better the candidate is, whichever way is better."""
    declared = model(name, min_improvement=wanted)
    held = table(LABELS, NOISE, np.zeros(200))
    found = evaluate(declared, held, HoldOut(held, SCORES))
    metric = declared.gate.metric
    theirs = found.metrics[metric] + (lead if metric == "mae" else -lead)
    judged = {v.rule: v for v in gate(declared, found, ChampionScore("3", {metric: theirs})).verdicts}["champion"]
    assert judged.passed is passed, judged.text
    assert (f"needed is at least {wanted:g}" in judged.text) == (wanted != 0)


def test_an_equal_champion_is_matched() -> None:
    declared = model("churn", slices=({"name": "tiny", "where": "country = 'IT'", "minimum": 0.9},))
    found = churn_evaluation(SCORES, NOISE, declared)
    result = gate(declared, found, ChampionScore("1", dict(found.metrics)))
    assert result.passed
    assert not result.needs_approver
    assert "not judged: slice tiny has 0 rows" in result.describe()


def test_a_champion_that_cannot_be_scored_calls_for_an_approver() -> None:
    declared = model("churn")
    result = gate(declared, churn_evaluation(SCORES, NOISE, declared), ChampionScore("1", None, "no feature 'x'"))
    assert result.passed
    assert result.needs_approver
    assert "champion 1 cannot be scored here: no feature 'x'" in result.describe()


def test_a_condition_over_unknown_columns_is_named() -> None:
    declared = model("churn", slices=({"name": "odd", "where": "contry = 'UK'"},))
    with pytest.raises(SliceError, match="found \"contry = 'UK'\" of slice 'odd'"):
        churn_evaluation(SCORES, NOISE, declared)
    (finding,) = slice_findings(declared, pa.schema([("country", pa.string())]))
    assert finding.loc == ("gate", "slices", 0, "where")
    assert finding.text.endswith("allowed is an SQL condition over country")
