"""Algorithms: names and parameters are checked, everything named can be served, what cannot is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from catalog.allowed import fits
from catalog.load import load_catalog
from catalog.spec import Model
from ml.algorithms import ALGORITHMS, NotExportable, UnknownAlgorithm, _estimator_class, algorithm_findings, fit
from ml.encoding import EncodedFeature, Encoding
from ml.parameters import LIGHTGBM, estimator_parameters
from ml.predictor import MODEL_FILES, _open_model

CATALOG = load_catalog(Path(__file__).resolve().parents[2] / "catalog")
ENCODING = Encoding(
    (EncodedFeature("a", "float64"), EncodedFeature("b", "int64"), EncodedFeature("c", "string", ("x", "y")))
)
RNG = np.random.default_rng(11)
ROWS = np.column_stack([RNG.lognormal(2, 1, 600), RNG.integers(0, 9, 600), RNG.integers(0, 4, 600)]).astype(float)
ROWS[RNG.random(600) < 0.1, 0] = np.nan
AMOUNT = np.nan_to_num(ROWS[:, 0]) * 3 + ROWS[:, 1] + RNG.random(600)
FEW = {name: {"n_estimators": 20} for name in ("lightgbm", "random_forest", "extra_trees", "gradient_boosting")}
FEW["hist_gradient_boosting"] = {"max_iter": 20}


def model(task: str, algorithm: str, **parameters: object) -> Model:
    base = CATALOG.model("churn" if task == "binary" else "clv")
    return Model.model_validate(base.model_dump() | {"algorithm": algorithm, "parameters": parameters, "offset": None})


class LastColumn(ClassifierMixin, BaseEstimator):
    """A class of somebody's own, for which skl2onnx has no converter."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def fit(self, rows: np.ndarray, labels: np.ndarray) -> LastColumn:
        self.classes_ = np.unique(labels)
        return self

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        share = 1 / (1 + np.exp(-self.factor * rows[:, -1]))
        return np.column_stack([1 - share, share])


CASES = [
    (task, name)
    for name in ALGORITHMS
    for task in ("binary", "regression")
    if not list(algorithm_findings(model(task, name)))
]


def test_lightgbm_and_others_serve_both_tasks() -> None:
    for task in ("binary", "regression"):
        assert {name for t, name in CASES if t == task} > {"lightgbm", "random_forest", "hist_gradient_boosting"}


@pytest.mark.parametrize(("task", "name"), CASES)
def test_what_is_served_scores_as_in_training(task: str, name: str, tmp_path: Path) -> None:
    labels = (np.median(AMOUNT) < AMOUNT).astype(float) if task == "binary" else AMOUNT
    declared = model(task, name, **FEW.get(name, {}))
    fitted = fit(declared, ENCODING, ROWS, labels)
    file = tmp_path / MODEL_FILES[fitted.kind]
    fitted.save(file)
    prepared = fitted.preparation.to_json() if fitted.preparation else None
    served = _open_model(file, fitted.kind, {"features": ENCODING.to_json(), "preparation": prepared})
    expected = fitted.score(ROWS)
    np.testing.assert_allclose(served(ROWS), expected, atol=1e-5 * max(1.0, np.abs(expected).max()))
    shares = fitted.importance()
    assert shares is None or (shares.shape == (3,) and shares.sum() == pytest.approx(1))
    again = fit(declared, ENCODING, ROWS, labels)
    np.testing.assert_array_equal(again.score(ROWS), expected)


@pytest.mark.parametrize("name", ["lightgbm", "hist_gradient_boosting"])
def test_an_offset_is_where_predictions_start_from_in_training_and_in_serving(name: str, tmp_path: Path) -> None:
    base = model("regression", name, **FEW[name])
    declared = base.model_copy(update={"offset": "a"})
    fitted = fit(declared, ENCODING, ROWS, AMOUNT)
    file = tmp_path / MODEL_FILES[fitted.kind]
    fitted.save(file)
    prepared = fitted.preparation.to_json() if fitted.preparation else None
    served = _open_model(file, fitted.kind, {"features": ENCODING.to_json(), "preparation": prepared, "offset": 0})
    np.testing.assert_allclose(served(ROWS), fitted.score(ROWS), atol=1e-5 * AMOUNT.max())
    start = np.nan_to_num(ROWS[:, 0])
    difference = fit(base, ENCODING, ROWS, AMOUNT - start)
    np.testing.assert_array_equal(fitted.score(ROWS), start + difference.score(ROWS))


@pytest.mark.parametrize(("task", "offset"), [("churn", "txn_amount_sum_90d"), ("clv", "profit")])
def test_an_offset_must_be_a_feature_of_a_regression(task: str, offset: str) -> None:
    with pytest.raises(ValueError, match="found offset"):
        Model.model_validate(CATALOG.model(task).model_dump() | {"offset": offset})


def test_a_class_of_somebodys_own_fits_but_is_refused_without_onnx(tmp_path: Path) -> None:
    declared = model("binary", f"{__name__}:LastColumn", factor=2.0)
    fitted = fit(declared, ENCODING, ROWS, (AMOUNT > 20).astype(float))
    assert fitted.score(ROWS).shape == (600,)
    with pytest.raises(NotExportable, match="LastColumn has no ONNX form"):
        fitted.save(tmp_path / "model.onnx")


def test_any_sklearn_class_plugs_in(tmp_path: Path) -> None:
    declared = model("regression", "sklearn.tree:DecisionTreeRegressor", max_depth=3)
    fit(declared, ENCODING, ROWS, AMOUNT).save(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size > 100


@pytest.mark.parametrize(
    ("task", "name", "parameters", "problem"),
    [
        ("binary", "lightgmb", {}, "found algorithm 'lightgmb' (did you mean lightgbm?), allowed is one of"),
        ("binary", "ridge", {}, "allowed is one of lightgbm, logistic_regression"),
        ("binary", "lightgbm", {"num_leafs": 3}, "found unknown parameter 'num_leafs' of lightgbm (did you mean "
         "num_leaves?), allowed is one of alpha, boosting"),
        ("binary", "lightgbm", {"objective": "l1"}, "found parameter objective 'l1', allowed is "
         "binary or cross_entropy"),
        ("regression", "ridge", {"alfa": 1}, "found unknown parameter 'alfa' of ridge (did you mean alpha?)"),
        ("binary", "nowhere.at.all:Thing", {}, "cannot be imported"),
        ("binary", "sklearn.linear_model:Ridge", {}, "without the estimator interface"),
    ],
)  # fmt: skip
def test_wrong_declarations_are_named(task: str, name: str, parameters: dict[str, object], problem: str) -> None:
    declared = model(task, name, **parameters)
    found = [str(finding) for finding in algorithm_findings(declared)]
    assert [text for text in found if problem in text], found
    with pytest.raises(UnknownAlgorithm):
        fit(declared, ENCODING, ROWS, AMOUNT)


BOUNDED = [(name, schema) for name, schema in LIGHTGBM.items() if {"minimum", "exclusiveMinimum"} & schema.keys()]


@pytest.mark.parametrize(("name", "schema"), BOUNDED, ids=[name for name, _ in BOUNDED])
def test_what_lightgbm_is_said_to_take_is_what_it_takes(name: str, schema: dict[str, Any]) -> None:
    import lightgbm

    def takes(value: float) -> bool:
        rounds = value if name == "n_estimators" else 1
        others = {} if name == "n_estimators" else {name: value}
        try:
            dataset = lightgbm.Dataset(ROWS, AMOUNT > 20, params={"verbosity": -1})
            lightgbm.train({"objective": "binary", "verbosity": -1, "num_threads": 1, **others}, dataset, rounds)
        except (lightgbm.basic.LightGBMError, ValueError, TypeError):
            return False
        return True

    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum", 10))
    tried = (
        [low - 1, low, low + 1, high, high + 1] if schema["type"] == "integer" else [low - 0.5, low, low + 0.5, high]
    )
    # A frequency below 0 is 0 to LightGBM.
    assert [fits(value, schema) for value in tried] == [
        takes(value) and not (name == "subsample_freq" and value < 0) for value in tried
    ], tried


@pytest.mark.parametrize(("task", "name"), [(t, n) for t, n in CASES if n != "lightgbm"])
def test_what_a_scikit_learn_class_is_said_to_take_is_what_it_takes(task: str, name: str) -> None:
    from sklearn.utils._param_validation import InvalidParameterError, validate_parameter_constraints

    def takes(parameter: str, value: object) -> bool:
        try:
            validate_parameter_constraints({parameter: constraints[parameter]}, {parameter: value}, name)
        except InvalidParameterError:
            return False
        return True

    estimator = _estimator_class(model(task, name))
    constraints = estimator._parameter_constraints
    values = (-1, 0, 1, 2, 3, 10**6, -0.5, 0.0, 0.3, 1.0, 1.5, 2.0, "x", "auto", "sqrt", None, (1, 2), (), np.inf)
    for parameter, schema in estimator_parameters(estimator).items():
        assert [v for v in values if fits(v, schema)] == [v for v in values if takes(parameter, v)], parameter


def test_a_class_of_somebodys_own_names_what_it_requires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LastColumn, "__init__", lambda self, factor: None)
    (missing,) = algorithm_findings(model("binary", f"{__name__}:LastColumn"))
    assert str(missing).startswith("found no parameter 'factor', which")


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"objective": "quantile", "alpha": 1.5}, "found parameter alpha 1.5, allowed is a number above 0 and below 1"),
        ({"boosting": "rf", "subsample": 0.5}, "found parameter boosting 'rf', allowed is 'rf' only with subsample"),
        (
            {"is_unbalance": True, "scale_pos_weight": 2},
            "found parameters is_unbalance and scale_pos_weight, allowed is",
        ),
    ],
)
def test_parameters_that_do_not_go_together_are_named(parameters: dict[str, Any], said: str) -> None:
    (finding,) = algorithm_findings(model("regression", "lightgbm", **parameters))
    assert str(finding).startswith(said)


def test_the_projects_own_models_are_sound() -> None:
    assert [p for declared in CATALOG.models for p in algorithm_findings(declared)] == []
