"""Arguments of expectations, held against Great Expectations' own classes: what passes here, they take too."""

from __future__ import annotations

import os
from datetime import date
from typing import Any

import pytest

from catalog.spec import Expectation
from lake.expectation_arguments import expectation_findings, known_expectations

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

# Of great_expectations and what it imports: none of it is ours to change.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

VALUES: tuple[Any, ...] = (
    -1, 0, 0.5, 2, "x", "any", "2011-12-31", date(2011, 1, 1), True, None, (1, 2), ("a", "b"), ("a",), (), {}, {"a": 1},
    ((1, 2),), float("nan"),
)  # fmt: skip
NAMES = (
    "column_A", "column_B", "column_list", "column_set", "exact_match", "ignore_row_if", "json_schema", "match_on",
    "max_value", "method", "min_value", "multiplier", "or_equal", "regex", "regex_list", "strftime_format",
    "strict_min", "strictly", "threshold", "type_", "value", "value_pairs_set", "value_set",
)  # fmt: skip
# With two required arguments: one at a time never passes.
TWO = ("_pair_", "z_scores", "quantile", "sum_to_equal")


def declared(name: str, column: str | None, arguments: dict[str, Any]) -> Expectation:
    return Expectation(expect=name, column=column, arguments=arguments)


@pytest.mark.parametrize("name", sorted(known_expectations()))
def test_what_passes_great_expectations_takes_too(name: str) -> None:
    from great_expectations.expectations.registry import get_expectation_impl

    passed = 0
    for column in (None, "country"):
        for argument in (None, *NAMES):
            for value in VALUES if argument else (None,):
                arguments = {argument: value} if argument else {}
                expectation = declared(name, column, arguments)
                if not list(expectation_findings(expectation)):
                    given = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
                    get_expectation_impl(name)(**given, **({"column": column} if column else {}))
                    passed += 1
    assert passed or any(part in name for part in TWO), name


def test_every_expectation_of_rows_is_known_and_no_other() -> None:
    from great_expectations.expectations.registry import get_expectation_impl

    known = known_expectations()
    assert len(known) > 40
    assert all(get_expectation_impl(name) for name in known)
    assert not known & {"expect_column_values_to_match_like_pattern", "unexpected_rows_expectation"}


@pytest.mark.parametrize(
    ("name", "column", "arguments", "said"),
    [
        ("expect_column_values_to_be_between", "n", {"min_value": 1, "max_value": None}, None),
        ("expect_column_values_to_be_between", "n", {"min_value": date(2011, 1, 1)}, None),
        ("expect_column_values_to_be_in_set", "n", {"value_set": (True, False)}, None),
        (
            "expect_column_values_to_be_in_set",
            "n",
            {"value_set": ()},
            "found argument value_set [], allowed is a list of 1",
        ),
        (
            "expect_column_values_to_be_increasing",
            "n",
            {"strictly": "x"},
            "found argument strictly 'x', allowed is true or",
        ),
        (
            "expect_compound_columns_to_be_unique",
            None,
            {"column_list": ("n",)},
            "found argument column_list ['n'], allowed",
        ),
        ("expect_column_values_to_match_regex", "n", {"regex": 3}, "found argument regex 3, allowed is text"),
        (
            "expect_column_values_to_be_null",
            "n",
            {"meta": {}},
            "found unknown argument 'meta', allowed is one of row_cond",
        ),
        (
            "expect_column_values_to_be_null",
            "n",
            {"column": "m"},
            "found 'column' among the arguments, allowed is column",
        ),
        (
            "expect_table_row_count_to_be_between",
            None,
            {"min_value": "2011-12-31"},
            "found argument min_value '2011-12-31'",
        ),
        (
            "expect_table_row_count_to_be_between",
            None,
            {"min_value": 3, "max_value": 1},
            "found min_value 3, allowed is at",
        ),
    ],
)
def test_what_is_found_and_what_is_allowed(
    name: str, column: str | None, arguments: dict[str, Any], said: str | None
) -> None:
    found = [str(finding) for finding in expectation_findings(declared(name, column, arguments))]
    assert found == [] if said is None else [text for text in found if text.startswith(said)], found
