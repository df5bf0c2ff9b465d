"""The training-serving contract names the feature that differs, and how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from catalog.load import load_catalog
from catalog.spec import Model
from ml.contract import ContractError, check_contract
from ml.feature_plan import FeaturePlan, PlannedFeature, PlannedView

BASE = load_catalog(Path(__file__).resolve().parents[2] / "catalog").model("churn")
MODEL = Model.model_validate(BASE.model_dump() | {"features": ("activity:a", "activity:b", "profile:country")})
PLAN = FeaturePlan(
    "churn",
    "customer_id",
    (PlannedView("activity", None), PlannedView("profile", None)),
    (
        PlannedFeature("a", "activity", "int64", "a"),
        PlannedFeature("b", "activity", "float64", "b"),
        PlannedFeature("country", "profile", "string", "country"),
    ),
)
A, B, COUNTRY = PLAN.features
SCHEMA = pa.schema([("a", pa.int64()), ("b", pa.float64()), ("country", pa.large_string())])
NAMES = ("a", "b", "country")


def test_what_matches_has_a_signature() -> None:
    signature = check_contract(MODEL, PLAN, SCHEMA, NAMES)
    assert signature.inputs == (("a", "int64"), ("b", "float64"), ("country", "string"))
    turned = replace(signature, inputs=signature.inputs[::-1])
    assert turned.digest() != signature.digest()


@pytest.mark.parametrize(
    ("plan_features", "schema", "names", "problem"),
    [
        ((A, replace(B, dtype="int64"), COUNTRY), SCHEMA, NAMES, "feature 'b' is float64 in training, int64 online"),
        ((A, B, COUNTRY), SCHEMA.set(0, pa.field("a", pa.string())), NAMES, "'a' is string in training, int64 online"),
        ((B, A, COUNTRY), SCHEMA, NAMES, "'a' is at position 1 in training, where 'b' is served online"),
        ((A, COUNTRY), SCHEMA, NAMES, "'b' was trained on but is not served online"),
        ((A, B, COUNTRY), SCHEMA, ("a", "country"), "'b' is served online but was not trained on"),
        (
            (A, replace(B, view="profile"), COUNTRY),
            SCHEMA,
            NAMES,
            "'b' is declared of view 'activity', served online from",
        ),
    ],
)
def test_what_differs_is_named(
    plan_features: tuple[PlannedFeature, ...], schema: pa.Schema, names: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(ContractError, match="the version is not registered") as caught:
        check_contract(MODEL, replace(PLAN, features=plan_features), schema, names)
    assert any(problem in found for found in caught.value.problems), caught.value.problems
