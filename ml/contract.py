"""The training-serving contract: a version is registered only when it learned from exactly what is served online.

Compares the compiled feature plan with the training set: which features, of which view, of which type, in which order.
Nothing here reads features or writes a registry.

Errors: ContractError   `problems` has one sentence for each feature that differs
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from catalog.spec import Model
from ml.encoding import DTYPES, dtype_of
from ml.feature_plan import FeaturePlan

__all__ = ["ContractError", "Signature", "check_contract", "contract_problems"]


class ContractError(ValueError):
    """Training and serving differ; `problems` has one sentence for each feature."""

    def __init__(self, model: str, problems: Sequence[str]) -> None:
        super().__init__(
            f"{model}: the version is not registered, training and serving differ: {'; '.join(problems)}. "
            "Rebuild features and training set from the same model YAML"
        )
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Signature:
    """What a version takes and gives: (name, type) of each input in order, name and type of the output."""

    inputs: tuple[tuple[str, str], ...]
    output: tuple[str, str] = ("prediction", "float64")

    def digest(self) -> str:
        """sha256 of names, types and order."""
        return hashlib.sha256(json.dumps([self.inputs, self.output]).encode()).hexdigest()


def check_contract(model: Model, plan: FeaturePlan, schema: pa.Schema, features: Sequence[str]) -> Signature:
    """The signature that training and serving share. `features` are the training columns in order.

    Raises ContractError.
    """
    if problems := contract_problems(model, plan, schema, features):
        raise ContractError(model.name, problems)
    return Signature(tuple((f.name, f.dtype) for f in plan.features))


def contract_problems(model: Model, plan: FeaturePlan, schema: pa.Schema, features: Sequence[str]) -> list[str]:
    """Each difference between what training saw and what the feature service serves online."""
    problems = _declared(model, plan)
    problems += [f"feature {n!r} was trained on but is not served online" for n in features if n not in plan.names]
    problems += [f"feature {n!r} is served online but was not trained on" for n in plan.names if n not in features]
    problems += _types(plan, schema, features)
    if not problems:
        problems += [
            f"feature {trained!r} is at position {i} in training, where {served!r} is served online"
            for i, (trained, served) in enumerate(zip(features, plan.names, strict=True), 1)
            if trained != served
        ]
    return problems


def _declared(model: Model, plan: FeaturePlan) -> list[str]:
    """The model's own list names a view for each feature: the same name from another view is another feature."""
    served = {f.name: f.view for f in plan.features}
    problems = []
    for ref in model.features:
        view, _, name = ref.partition(":")
        if name in served and served[name] != view:
            problems.append(f"feature {name!r} is declared of view {view!r}, served online from {served[name]!r}")
    return problems


def _types(plan: FeaturePlan, schema: pa.Schema, features: Sequence[str]) -> list[str]:
    problems = []
    for planned in plan.features:
        if planned.name not in features or planned.name not in schema.names:
            continue
        trained = dtype_of(schema.field(planned.name).type)
        if trained != planned.dtype:
            problems.append(f"feature {planned.name!r} is {trained} in training, {planned.dtype} online")
        elif trained not in DTYPES:
            problems.append(f"feature {planned.name!r} is {trained}, allowed is one of {', '.join(DTYPES)}")
    return problems
