"""`headwater check`: each problem in a declaration is one line with its file and line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from catalog.settings import CATALOG_DIR
from headwater.cli import cli

# Feast's own import warns about protobuf, numpy and pydantic internals that are not ours to change.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    """A copy of the project's own catalog, to be broken."""
    for folder in ("sources", "gates", "models"):
        shutil.copytree(CATALOG_DIR / folder, tmp_path / "catalog" / folder)
    return tmp_path / "catalog"


def check(directory: Path, **environment: str) -> tuple[int, list[str]]:
    inherited = {name: None for name in os.environ if name.startswith("HEADWATER_")}
    done = CliRunner().invoke(cli, ["check"], env={**inherited, "HEADWATER_CATALOG": str(directory), **environment})
    return done.exit_code, done.stdout.splitlines()


def breaking(file: Path, found: str, replacement: str) -> int:
    """Replace once; returns the line where it stands."""
    text = file.read_text()
    assert text.count(found) >= 1, f"{found!r} is not in {file.name}"
    file.write_text(text.replace(found, replacement, 1))
    return text[: text.index(found)].count("\n") + 1


def test_the_projects_own_catalog_has_no_problem(declared: Path) -> None:
    assert check(declared) == (0, [])


@pytest.mark.parametrize(
    ("file", "found", "replacement", "said"),
    [
        ("models/churn.yaml", "task: binary", "task: ternary", "task: found 'ternary', allowed is 'binary' or"),
        ("models/churn.yaml", "owner:", "ownr:", "found unknown field 'ownr' (did you mean owner?), allowed is one of"),
        (
            "models/churn.yaml",
            "activity:txn_count_90d",
            "activity:txn_count_91d",
            "found unknown feature 'activity:txn_count_91d' (did you mean activity:txn_count_90d?), allowed is one of",
        ),
        ("models/churn.yaml", "profile:country", "profile:registered_at", "unknown feature 'profile:registered_at'"),
        (
            "models/churn.yaml",
            "algorithm: lightgbm",
            "algorithm: lightgbn",
            "found 'lightgbn' (did you mean lightgbm?)",
        ),
        ("models/churn.yaml", "n_estimators", "n_estimatorz", "did you mean n_estimators?), allowed is one of"),
        ("models/churn.yaml", "country = 'United Kingdom'", "county = 'UK'", "county"),
        (
            "models/churn.yaml",
            "table: marts/sales/purchase_lines",
            "table: marts/sales/purchases",
            "found unknown table 'marts/sales/purchases' (did you mean marts/sales/purchase_lines?)",
        ),
        (
            "models/clv.yaml",
            "column: amount_gbp",
            "column: amount_usd",
            "column of marts/sales/purchase_lines 'amount_",
        ),
        (
            "gates/marts_sales_orders.yaml",
            "table: marts/sales/orders",
            "table: marts/sales/order",
            "found unknown table 'marts/sales/order' (did you mean marts/sales/orders?), allowed is one of",
        ),
        ("gates/marts_sales_orders.yaml", "event_time: ordered_at", "event_time: ordered_on", "'ordered_on' (did you"),
        (
            "gates/marts_sales_orders.yaml",
            "key: [invoice_no]",
            "key: [invoice]",
            "unknown column of marts/sales/orders",
        ),
        ("sources/orders.yaml", "column: kind,", "column: kin,", "found column 'kin' in the gate, allowed are"),
        (
            "sources/orders.yaml",
            "expect_column_values_to_be_in_set",
            "expect_column_values_to_be_in_sets",
            "'expect_column_values_to_be_in_sets' (did you mean expect_column_values_to_be_in_set?)",
        ),
        ("sources/orders.yaml", "type: string", "type: text", "found 'text', allowed is 'string', 'int64', 'float64'"),
        ("sources/orders.yaml", "gate:", "gate: [", "found text that is not YAML"),
    ],
)
def test_each_problem_names_file_and_line(declared: Path, file: str, found: str, replacement: str, said: str) -> None:
    line = breaking(declared / file, found, replacement)
    code, problems = check(declared)
    assert code == 1
    matching = [p for p in problems if said in p]
    assert matching, problems
    # What is wrong with a section as a whole, or with YAML as text, is reported where that begins or ends.
    named = int(matching[0].removeprefix(f"{declared / file}:").partition(":")[0])
    assert named == line or "in the gate" in said or "not YAML" in said


def test_every_problem_of_every_file_and_setting_is_listed_at_once(declared: Path) -> None:
    breaking(declared / "models/churn.yaml", "task: binary", "task: ternary")
    breaking(declared / "models/clv.yaml", "activity:txn_count_90d", "activity:nope")
    breaking(declared / "gates/marts_sales_refunds.yaml", "table: marts/sales/refunds", "table: marts/sales/refund")
    code, problems = check(declared, HEADWATER_API_PORT="high", HEADWATER_RETAIL_DATA="/nowhere.csv")
    assert code == 1
    starts = [p.replace(str(declared), "").partition(":")[0] for p in problems]
    assert starts == [
        "environment",
        "environment",
        "/models/churn.yaml",
        "/gates/marts_sales_refunds.yaml",
        "/models/clv.yaml",
    ]


def test_a_catalog_directory_that_is_missing_is_a_problem_of_the_setting(tmp_path: Path) -> None:
    code, problems = check(tmp_path / "nowhere")
    assert (code, len(problems)) == (1, 1)
    assert problems[0].startswith("environment:HEADWATER_CATALOG: found")
