"""Algorithms by name: LightGBM, scikit-learn's, and any class with the scikit-learn estimator interface.

Each fits numbers (see `ml.encoding`) and can be written without pickle: LightGBM as its text, the rest as ONNX.
Nothing here knows customers, cut-offs or MLflow.

Errors: AlgorithmError
          ├─ UnknownAlgorithm   no such name, class or parameter; says what is allowed
          └─ NotExportable      the fitted estimator has no ONNX form, so it can never be served
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from catalog.problems import Finding, either, nearest
from catalog.spec import Model
from ml.encoding import Encoding, Matrix
from ml.parameters import (
    LIGHTGBM,
    estimator_parameters,
    lightgbm_misfits,
    parameter_findings,
    required_parameters,
)
from ml.preparation import Preparation, fit_preparation, offset_of

__all__ = [
    "ALGORITHMS",
    "AlgorithmError",
    "Fitted",
    "NotExportable",
    "UnknownAlgorithm",
    "algorithm_findings",
    "fit",
]

# A training set has some ten thousand rows: a second thread saves little there, and waiting OpenMP threads burned
# 7 CPU-s instead of 0.4 when the machine was busy.
THREADS = 1


class AlgorithmError(RuntimeError):
    """The algorithm cannot be used."""


class UnknownAlgorithm(AlgorithmError):
    """No such name, class or parameter."""


class NotExportable(AlgorithmError):
    """The fitted estimator cannot be written without pickle."""


class Fitted(Protocol):
    """A fitted model."""

    @property
    def kind(self) -> str:
        """`lightgbm` or `onnx`: how it is written."""

    @property
    def preparation(self) -> Preparation | None:
        """What happens to encoded rows before the file's model sees them; None: nothing."""

    def score(self, rows: Matrix) -> Matrix:
        """Probability or amount [n] for encoded rows [n, n_features], unbounded."""

    def save(self, file: Path) -> None:
        """Write the model file. Raises NotExportable."""

    def importance(self) -> Matrix | None:
        """Share of each feature [n_features], summing to 1; None when the algorithm has no such notion."""


# scikit-learn classes by name, for each task that they serve.
_SKLEARN: Mapping[str, Mapping[str, str]] = {
    "logistic_regression": {"binary": "sklearn.linear_model:LogisticRegression"},
    "ridge": {"regression": "sklearn.linear_model:Ridge"},
    "elastic_net": {"regression": "sklearn.linear_model:ElasticNet"},
    "huber": {"regression": "sklearn.linear_model:HuberRegressor"},
    "random_forest": {
        "binary": "sklearn.ensemble:RandomForestClassifier",
        "regression": "sklearn.ensemble:RandomForestRegressor",
    },
    "extra_trees": {
        "binary": "sklearn.ensemble:ExtraTreesClassifier",
        "regression": "sklearn.ensemble:ExtraTreesRegressor",
    },
    "gradient_boosting": {
        "binary": "sklearn.ensemble:GradientBoostingClassifier",
        "regression": "sklearn.ensemble:GradientBoostingRegressor",
    },
    "hist_gradient_boosting": {
        "binary": "sklearn.ensemble:HistGradientBoostingClassifier",
        "regression": "sklearn.ensemble:HistGradientBoostingRegressor",
    },
}
ALGORITHMS = ("lightgbm", *_SKLEARN)

_OBJECTIVES = {
    "binary": ("binary", "cross_entropy"),
    "regression": ("regression", "l1", "huber", "fair", "poisson", "quantile", "gamma", "tweedie"),
}


def algorithm_findings(model: Model) -> Iterator[Finding]:
    """What is wrong with the declared algorithm and its parameters.

    Imports the named class when it is not LightGBM; trains nothing.
    """
    if model.algorithm == "lightgbm":
        yield from parameter_findings(model.algorithm, model.parameters, LIGHTGBM)
        yield from lightgbm_misfits(model.parameters)
        yield from _lightgbm_findings(model)
        return
    try:
        estimator = _estimator_class(model)
    except UnknownAlgorithm as error:
        yield Finding(("algorithm",), str(error))
        return
    taken, required = estimator_parameters(estimator), required_parameters(estimator)
    yield from parameter_findings(model.algorithm, model.parameters, taken, required)


def _lightgbm_findings(model: Model) -> Iterator[Finding]:
    """Parameters that must fit the rest of the declaration."""
    signs = model.parameters.get("monotone_constraints")
    if isinstance(signs, list | tuple) and len(signs) != len(model.features):
        text = f"found {len(signs)} monotone_constraints, allowed is one for each of the {len(model.features)} features"
        yield Finding(("parameters", "monotone_constraints"), text)
    objective, allowed = model.parameters.get("objective"), _OBJECTIVES[model.task]
    if isinstance(objective, str) and objective not in allowed:
        hint = nearest(objective, allowed)
        text = f"found parameter objective {objective!r}{hint}, allowed is {either(allowed)} for task {model.task}"
        yield Finding(("parameters", "objective"), text)


def _estimator_class(model: Model) -> type[Any]:
    """The class that a name or a `package.module:Class` stands for. Raises UnknownAlgorithm."""
    path = model.algorithm
    if ":" not in path:
        path = _named(model)
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UnknownAlgorithm(
            f"found algorithm {path!r}, which cannot be imported ({error}), allowed is package.module:Class"
        ) from None
    scorer = "predict_proba" if model.task == "binary" else "predict"
    if not all(callable(getattr(found, method, None)) for method in ("fit", scorer, "get_params")):
        raise UnknownAlgorithm(
            f"found algorithm {path!r} without the estimator interface, allowed is a class with fit, {scorer} and "
            "get_params"
        )
    if not isinstance(found, type):
        raise UnknownAlgorithm(f"found algorithm {path!r}, which is not a class, allowed is package.module:Class")
    return found


def _named(model: Model) -> str:
    fitting = ["lightgbm", *(name for name, tasks in _SKLEARN.items() if model.task in tasks)]
    if model.algorithm not in fitting:
        hint = nearest(model.algorithm, fitting)
        raise UnknownAlgorithm(
            f"found algorithm {model.algorithm!r}{hint}, allowed is one of {', '.join(fitting)} for task {model.task}, "
            "or package.module:Class"
        )
    return _SKLEARN[model.algorithm][model.task]


def fit(model: Model, encoding: Encoding, rows: Matrix, labels: Matrix) -> Fitted:
    """Fit the declared algorithm to encoded rows [n, n_features] and labels [n]; the same input gives the same model.

    Raises UnknownAlgorithm.
    """
    if problems := [str(finding) for finding in algorithm_findings(model)]:
        raise UnknownAlgorithm("; ".join(problems))
    learn = _fit_lightgbm if model.algorithm == "lightgbm" else _fit_sklearn
    if model.offset is None:
        return learn(model, encoding, rows, labels)
    position = encoding.names.index(model.offset)
    return _FromOffset(learn(model, encoding, rows, labels - offset_of(rows, position)), position)


@dataclass(frozen=True)
class _FromOffset:
    """A model of the difference to one feature. The package keeps the position beside the model's file."""

    difference: Fitted
    position: int

    @property
    def kind(self) -> str:
        return self.difference.kind

    @property
    def preparation(self) -> Preparation | None:
        return self.difference.preparation

    def score(self, rows: Matrix) -> Matrix:
        return offset_of(rows, self.position) + self.difference.score(rows)

    def save(self, file: Path) -> None:
        self.difference.save(file)

    def importance(self) -> Matrix | None:
        return self.difference.importance()


@dataclass(frozen=True)
class _LightGBM:
    booster: Any
    kind: str = "lightgbm"
    preparation: Preparation | None = None

    def score(self, rows: Matrix) -> Matrix:
        scores: Matrix = self.booster.predict(rows, num_threads=THREADS)
        return scores

    def save(self, file: Path) -> None:
        self.booster.save_model(str(file))

    def importance(self) -> Matrix | None:
        return _shares(self.booster.feature_importance("gain"))


def _fit_lightgbm(model: Model, encoding: Encoding, rows: Matrix, labels: Matrix) -> Fitted:
    import lightgbm

    parameters = {"objective": _OBJECTIVES[model.task][0], **model.parameters}
    rounds = int(parameters.pop("n_estimators", 100))
    fixed = {
        "seed": model.seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": THREADS,
        "verbosity": -1,
    }
    dataset = lightgbm.Dataset(
        rows,
        labels,
        feature_name=list(encoding.names),
        categorical_feature=list(encoding.text_columns),
        params={"verbosity": -1},
    )
    return _LightGBM(lightgbm.train({**parameters, **fixed}, dataset, num_boost_round=rounds))


@dataclass(frozen=True)
class _Sklearn:
    estimator: Any
    preparation: Preparation
    task: str
    kind: str = "onnx"

    def score(self, rows: Matrix) -> Matrix:
        from threadpoolctl import threadpool_limits

        prepared, estimator = self.preparation.apply(rows), self.estimator
        with threadpool_limits(THREADS):
            scores = estimator.predict_proba(prepared)[:, 1] if self.task == "binary" else estimator.predict(prepared)
        return np.asarray(scores, dtype=np.float64).reshape(-1)

    def save(self, file: Path) -> None:
        file.write_bytes(_to_onnx(self.estimator, self.preparation.width, self.task))

    def importance(self) -> Matrix | None:
        native = getattr(self.estimator, "feature_importances_", None)
        native = getattr(self.estimator, "coef_", None) if native is None else native
        return None if native is None else _shares(self.preparation.by_feature(np.abs(np.ravel(native))))


def _fit_sklearn(model: Model, encoding: Encoding, rows: Matrix, labels: Matrix) -> Fitted:
    from threadpoolctl import threadpool_limits

    cls = _estimator_class(model)
    estimator = cls(**model.parameters)
    if "random_state" in estimator.get_params() and "random_state" not in model.parameters:
        estimator.set_params(random_state=model.seed)
    preparation = fit_preparation(encoding, rows)
    with threadpool_limits(THREADS):
        estimator.fit(preparation.apply(rows), labels)
    return _Sklearn(estimator, preparation, model.task)


def _to_onnx(estimator: Any, width: int, task: str) -> bytes:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    options = {id(estimator): {"zipmap": False}} if task == "binary" else None
    name = f"{type(estimator).__module__}:{type(estimator).__name__}"
    try:
        with warnings.catch_warnings():
            # skl2onnx 1.20 hands truth values to integer fields of histogram trees; protobuf refuses them from 7.34 on.
            warnings.filterwarnings("ignore", "Field onnx.AttributeProto.ints", DeprecationWarning)
            graph = to_onnx(estimator, initial_types=[("rows", FloatTensorType([None, width]))], options=options)
    except (
        MissingConverter,
        MissingShapeCalculator,
        NameError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as error:
        # skl2onnx raises each of these for an estimator that it does not know.
        raise NotExportable(
            f"{name} has no ONNX form, so it cannot be served (models are never loaded from pickle): use one of "
            f"{', '.join(ALGORITHMS)}, or register a converter for it with skl2onnx.update_registered_converter"
            f" ({str(error).splitlines()[0]})"
        ) from error
    return bytes(graph.SerializeToString())


def _shares(weights: Any) -> Matrix:
    values = np.asarray(weights, dtype=np.float64)
    total = values.sum()
    shares: Matrix = values / total if total > 0 else values
    return shares
