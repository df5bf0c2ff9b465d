"""Which parameters an algorithm takes and what each may be, and what is wrong with those that are declared.

LightGBM's are listed here, with the ranges of its own documentation: it would take others' names, and ignore what it
does not know. scikit-learn's classes say for themselves what they take. Values are JSON Schema (see `catalog.allowed`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from catalog.allowed import Schema, fits, words
from catalog.problems import Finding, nearest, shown

__all__ = ["LIGHTGBM", "estimator_parameters", "lightgbm_misfits", "parameter_findings", "required_parameters"]

_BOOL: Schema = {"type": "boolean"}
_SHARE: Schema = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
_PROBABILITY: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_POSITIVE: Schema = {"type": "number", "exclusiveMinimum": 0}
_NOT_NEGATIVE: Schema = {"type": "number", "minimum": 0}
_ANY: Schema = {}


def _whole(least: int, most: int | None = None) -> Schema:
    return {"type": "integer", "minimum": least, **({} if most is None else {"maximum": most})}


# What a declaration may set; threads, seed and determinism are ours. Listed so that a check needs no import.
LIGHTGBM: Mapping[str, Schema] = {
    "objective": {"type": "string"},
    "n_estimators": _whole(1),
    "learning_rate": _POSITIVE,
    "num_leaves": _whole(2, 131072),
    "max_depth": {"type": "integer", "words": "a whole number (0 or less: no limit)"},
    "min_child_samples": _whole(0),
    "min_child_weight": _NOT_NEGATIVE,
    "min_split_gain": _NOT_NEGATIVE,
    "subsample": _SHARE,
    "subsample_freq": _whole(0),
    "colsample_bytree": _SHARE,
    "colsample_bynode": _SHARE,
    "reg_alpha": _NOT_NEGATIVE,
    "reg_lambda": _NOT_NEGATIVE,
    "max_bin": _whole(2),
    "min_data_in_bin": _whole(1),
    "path_smooth": _NOT_NEGATIVE,
    "extra_trees": _BOOL,
    "linear_tree": _BOOL,
    "linear_lambda": _NOT_NEGATIVE,
    "alpha": _POSITIVE,
    "fair_c": _POSITIVE,
    "tweedie_variance_power": {"type": "number", "minimum": 1, "exclusiveMaximum": 2},
    "poisson_max_delta_step": _POSITIVE,
    "scale_pos_weight": _POSITIVE,
    "is_unbalance": _BOOL,
    "cat_smooth": _NOT_NEGATIVE,
    "cat_l2": _NOT_NEGATIVE,
    "max_cat_threshold": _whole(1),
    "max_cat_to_onehot": _whole(1),
    "min_data_per_group": _whole(1),
    "boosting": {"enum": ["gbdt", "dart", "rf"]},
    "drop_rate": _PROBABILITY,
    "max_drop": {"type": "integer", "words": "a whole number (0 or less: no limit)"},
    "skip_drop": _PROBABILITY,
    "monotone_constraints": {"type": "array", "items": {"enum": [-1, 0, 1]}},
}


def lightgbm_misfits(declared: Mapping[str, Any]) -> Iterator[Finding]:
    """Parameters that LightGBM takes, but not together."""
    alpha = declared.get("alpha", 0.5)
    if declared.get("objective") == "quantile" and isinstance(alpha, int | float) and alpha >= 1:
        text = f"found parameter alpha {shown(alpha)}, allowed is a number above 0 and below 1 for objective quantile"
        yield Finding(("parameters", "alpha"), text)
    if declared.get("boosting") == "rf" and not {"subsample", "subsample_freq"} <= declared.keys():
        text = "found parameter boosting 'rf', allowed is 'rf' only with subsample below 1 and subsample_freq above 0"
        yield Finding(("parameters", "boosting"), text)
    if declared.get("is_unbalance") is True and "scale_pos_weight" in declared:
        text = "found parameters is_unbalance and scale_pos_weight, allowed is one of the two"
        yield Finding(("parameters", "scale_pos_weight"), text)


def estimator_parameters(estimator: type[Any]) -> Mapping[str, Schema]:
    """What a class with the scikit-learn estimator interface takes.

    The names are those of its constructor; the values are what a scikit-learn class says of itself, else anything.
    """
    signature = inspect.signature(estimator).parameters
    names = [n for n, p in signature.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    constraints: Mapping[str, Any] = getattr(estimator, "_parameter_constraints", {})
    return {name: _constrained(constraints.get(name)) for name in names}


def required_parameters(estimator: type[Any]) -> list[str]:
    """The constructor's parameters without a default."""
    signature = inspect.signature(estimator).parameters
    return [n for n, p in signature.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def parameter_findings(
    algorithm: str, declared: Mapping[str, Any], taken: Mapping[str, Schema], required: Sequence[str] = ()
) -> Iterator[Finding]:
    """What is wrong with the declared parameters."""
    for name in required:
        if name not in declared:
            text = f"found no parameter {name!r}, which {algorithm} requires, allowed is {words(taken[name])}"
            yield Finding(("parameters",), text)
    for name, value in declared.items():
        loc = ("parameters", name)
        if name not in taken:
            allowed = f"one of {', '.join(sorted(taken))}" if taken else "none"
            hint = nearest(name, taken)
            yield Finding(loc, f"found unknown parameter {name!r} of {algorithm}{hint}, allowed is {allowed}")
        elif not fits(value, taken[name]):
            yield Finding(loc, f"found parameter {name} {shown(value)}, allowed is {words(taken[name])}")


def _constrained(constraints: Any) -> Schema:
    """A scikit-learn parameter's constraints, of which one must hold, without those that YAML cannot write."""
    if not isinstance(constraints, list):
        return _ANY
    options = [schema for constraint in constraints if (schema := _schema(constraint)) is not None]
    return {"anyOf": options} if options else _ANY


def _schema(constraint: Any) -> Schema | None:
    from numbers import Integral

    from sklearn.utils._param_validation import Interval, Options

    if isinstance(constraint, Interval):
        return _interval(constraint)
    if isinstance(constraint, Options):
        return {"enum": sorted(constraint.options - constraint.deprecated, key=str)}
    if constraint is Integral:
        return {"type": "integer"}
    known = constraint if constraint is None or isinstance(constraint, str | type) else ""
    return _NAMED.get(known)


# scikit-learn's names of kinds of values. Others are objects of Python, or lists that may not be tuples, which is how
# lists are read: none of them can be declared.
_NAMED: Mapping[Any, Schema] = {
    None: {"type": "null"},
    "boolean": _BOOL,
    "array-like": {"type": "array"},
    "random_state": {"anyOf": [_whole(0, 2**32 - 1), {"type": "null"}]},
    "verbose": {"anyOf": [_whole(0), _BOOL]},
    dict: {"type": "object"},
    tuple: {"type": "array"},
    str: {"type": "string"},
}


def _interval(constraint: Any) -> Schema:
    from numbers import Integral, Real

    schema: dict[str, Any] = {"type": "integer" if constraint.type is Integral else "number"}
    if constraint.type not in (Integral, Real):
        schema["fraction"] = True
    if constraint.right is None and constraint.closed in ("right", "both"):
        schema["infinite"] = True
    if constraint.left is not None:
        schema["minimum" if constraint.closed in ("left", "both") else "exclusiveMinimum"] = constraint.left
    if constraint.right is not None:
        schema["maximum" if constraint.closed in ("right", "both") else "exclusiveMaximum"] = constraint.right
    return schema
