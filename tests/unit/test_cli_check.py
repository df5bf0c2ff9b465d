"""`headwater check`: each problem is one line with its file and line, and `headwater run` refuses what it refuses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from catalog.load import CatalogError, read_declarations
from catalog.settings import CATALOG_DIR, load_settings
from headwater.check import DBT_MODELS, require_sound
from headwater.cli import cli

BETWEEN = "expect_column_values_to_be_between"
IN_SET = "expect_column_values_to_be_in_set"
OF_PARAMETERS = "n_estimators: 100, learning_rate: 0.05, num_leaves: 4"


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    """A copy of the project's own catalog, to be broken."""
    for folder in ("sources", "gates", "models"):
        shutil.copytree(CATALOG_DIR / folder, tmp_path / "catalog" / folder)
    return tmp_path / "catalog"


def headwater(command: str, directory: Path, **environment: str) -> tuple[int, str, str]:
    inherited = {name: None for name in os.environ if name.startswith("HEADWATER_")}
    ours = {"HEADWATER_CATALOG": str(directory), "HEADWATER_HOME": str(directory.parent / "home")}
    done = CliRunner().invoke(cli, [command], env={**inherited, **ours, **environment})
    return done.exit_code, done.stdout, done.stderr


def check(directory: Path, **environment: str) -> tuple[int, list[str]]:
    code, said, _ = headwater("check", directory, **environment)
    return code, said.splitlines()


def breaking(file: Path, found: str, replacement: str) -> int:
    """Replace once; returns the line where it stands."""
    text = file.read_text()
    assert text.count(found) >= 1, f"{found!r} is not in {file.name}"
    file.write_text(text.replace(found, replacement, 1))
    return text[: text.index(found)].count("\n") + 1


def test_the_projects_own_catalog_has_no_problem(declared: Path) -> None:
    assert check(declared) == (0, [])


CHURN, CLV = "models/churn.yaml", "models/clv.yaml"
ORDERS, LINES = "sources/orders.yaml", "sources/order_lines.yaml"
GATE, ACTIVITY = "gates/marts_sales_orders.yaml", "gates/features_customer_activity.yaml"

FIELDS = [
    (CHURN, "task: binary", "task: ternary", "found task 'ternary', allowed is 'binary' or 'regression'"),
    (CHURN, "owner:", "ownr:", "found unknown field 'ownr' (did you mean owner?), allowed is one of name, description"),
    (CHURN, "owner: team:data-science", "owner: Data", "found owner 'Data', allowed is team:name (in lower case) or a"),
    (CHURN, "seed: 7", "seed: -7", "found seed -7, allowed is a whole number of 0 or more"),
    (CHURN, "seed: 7", "seed: seven", "found seed 'seven', allowed is a whole number of 0 or more"),
    (CHURN, "seed: 7", "seed: 7.5", "found seed 7.5, allowed is a whole number of 0 or more"),
    (CHURN, "minimum: 0.6", "minimum: .nan", "found gate.minimum nan, allowed is a number"),
    (CHURN, "max_count: 12", "max_count: 1", "found cutoffs.max_count 1, allowed is a whole number from 2 to 120"),
    (CHURN, "policy: auto", "policy: 2011-12-31", "found promotion.policy 2011-12-31, allowed is 'auto' or 'approve'"),
    (CHURN, "approver_must_differ: true", "approver_must_differ: yes", "found promotion.approver_must_differ 'yes', "
     "allowed is true or false"),
    (CHURN, "horizon_days: 90", "horizon: 90", "found no 'label.horizon_days', which is required, allowed is a whole "
     "number from 1 to 730"),
    (CHURN, "label: {kind: no_event, table: marts/sales/purchase_lines, horizon_days: 90}", "label: churned",
     "found label 'churned', allowed is a mapping of kind, table, column, horizon_days"),
    (CHURN, "baselines: [majority, recency_rule]", "baselines: majority", "found baselines 'majority', allowed is a "
     "list of 1 or more, each 'majority', 'recency_rule', 'mean' or 'last_90_days_spend'"),
    (CHURN, "baselines: [majority, recency_rule]", "baselines: []", "found baselines [], allowed is a list of 1 or"),
    (CHURN, "parameters: {", "parameters: [{", "found text that is not YAML: a list that is not closed, allowed is"),
    (CHURN, "limits:", "limits: {a: 1}\nlimit:", "found limits {a: 1}, allowed is a list of 1 or more, each text"),
    (CHURN, "  - activity:txn_count_7d", "  - {activity: 1}", "found features {activity: 1}, allowed is view:feature"),
    (CHURN, "name: churn", "name: lapse", "found name 'lapse', allowed is the file's own name: 'churn'"),
    (ORDERS, "type: string", "type: text", "found columns.type 'text', allowed is 'string', 'int64', 'float64', 'bool"),
    (ORDERS, "system: shop", "system: The Shop", "found system 'The Shop', allowed is a name of lower-case letters, "
     "digits and _, a letter first"),
    (ORDERS, "freshness_days: 7", "freshness_days: 0", "found gate.freshness_days 0, allowed is a number above 0"),
    (GATE, "mostly: 0.6", "mostly: 6", "found expectations.mostly 6, allowed is a number above 0 and at most 1"),
    (GATE, "table: marts/sales/orders", "table: orders", "found table 'orders', allowed is an asset key such as marts"),
]  # fmt: skip

TOGETHER = [
    (CHURN, "  metric: roc_auc", "  metric: mae", "found metric 'mae', allowed is roc_auc, average_preci"),
    (CHURN, "minimum: 0.55}", "metric: mae, minimum: 0.55}", "found metric 'mae', allowed is roc_auc"),
    (CHURN, "kind: no_event", "kind: sum, column: amount_gbp", "found label.kind 'sum', allowed is 'no_event' for"),
    (CLV, "column: amount_gbp, ", "", "found label.kind 'sum' without a column, allowed is with one"),
    (CHURN, "kind: no_event,", "kind: no_event, column: amount_gbp,", "found label.column 'amount_gbp' with kind no_"),
    (CHURN, "baselines: [majority, recency_rule]", "baselines: [majority, mean]", "found baseline 'mean', allowed is "
     "majority or recency_rule for task binary"),
    (CLV, "offset: txn_amount_sum_90d", "offset: txn_amount_sum_9d", "found offset 'txn_amount_sum_9d' (did you mean "
     "txn_amount_sum_90d?), allowed is one of the model's features: txn_count_7d,"),
    (CHURN, "seed: 7", "offset: txn_count_7d", "found offset 'txn_count_7d', allowed is one only with task regression"),
    (CHURN, "activity:txn_count_30d", "activity:txn_count_7d", "found feature 'activity:txn_count_7d' a second time"),
    (CHURN, "promotion:", "drift: {windows: 2}\npromotion:", "found drift.breaches 3, allowed is at most the number of "
     "windows (2)"),
    (ORDERS, "{name: kind,", "{name: country,", "found column 'country' a second time, allowed is once"),
    (CHURN, "minimum: 0.6", "minimum: 0.6\n  maximum: 0.5", "found minimum 0.6, allowed is at most maximum (0.5)"),
    (CHURN, "name: abroad", "name: united_kingdom", "found slice 'united_kingdom' a second time, allowed is once"),
    (ORDERS, "  key: [invoice_no]", "  table: raw/shop/orders\n  key: [invoice_no]", "found gate.table "
     "'raw/shop/orders', allowed is none: the gate of a source is its raw table's"),
    (ORDERS, "column: kind,", "column: kin,", "found column 'kin' in the gate (did you mean kind?), allowed is "),
    (ORDERS, "event_time: ordered_at", "event_time: ordered", "found column 'ordered' in the gate (did you mean "),
]  # fmt: skip

NAMES = [
    (CHURN, "activity:txn_count_90d", "activity:txn_count_91d", "found unknown feature 'activity:txn_count_91d' (did "
     "you mean activity:txn_count_90d?), allowed is one of activity:avg_txn_amount_30d,"),
    (CHURN, "profile:country", "profile:registered_at", "found unknown feature 'profile:registered_at'"),
    (CHURN, "country = 'United Kingdom'", "county = 'UK'", "found \"county = 'UK'\" of slice 'united_kingdom', which "
     "cannot be evaluated (Binder Error:"),
    (CHURN, "table: marts/sales/purchase_lines", "table: marts/sales/purchases", "found unknown table "
     "'marts/sales/purchases' (did you mean marts/sales/purchase_lines?), allowed is one of features/customer/activity"
     ""),
    (CLV, "column: amount_gbp", "column: amount_usd", "found unknown column of marts/sales/purchase_lines 'amount_usd"),
    (GATE, "table: marts/sales/orders", "table: marts/sales/order", "found unknown table 'marts/sales/order' (did you "
     "mean marts/sales/orders?), allowed is one of"),
    (GATE, "event_time: ordered_at", "event_time: ordered_on", "found unknown column of marts/sales/orders 'ordered_o"),
    (GATE, "key: [invoice_no]", "key: [invoice]", "found unknown column of marts/sales/orders 'invoice'"),
    ("gates/marts_sales_refunds.yaml", "table: marts/sales/refunds", "table: marts/sales/orders", "found a second gate "
     "for marts/sales/orders, allowed is one (the first is in marts_sales_orders.yaml)"),
    (GATE, "table: marts/sales/orders\n", "", "found no 'table', which is required, allowed is the asset key of the"),
    (GATE, "table: marts/sales/orders", "table: raw/shop/orders", "found table 'raw/shop/orders', allowed is a table "
     "of dbt's: the gate of a raw table is in its source's file"),
    (ORDERS, "name: country,", "name: tx_id,", "found column 'tx_id', allowed is any but the raw table's own: "
     "change_op, "),
    (ACTIVITY, "column_B: event_timestamp", "column_B: event_time", "found unknown column of "
     "features/customer/activity 'event_time' (did you mean event_timestamp?)"),
]  # fmt: skip

ALGORITHMS = [
    (CHURN, "algorithm: lightgbm", "algorithm: lightgbn", "found algorithm 'lightgbn' (did you mean lightgbm?), "
     "allowed is one of lightgbm, logistic_regression"),
    (CHURN, "algorithm: lightgbm", "algorithm: nowhere:Thing", "found algorithm 'nowhere:Thing', which cannot be impo"),
    (CHURN, "n_estimators", "n_estimatorz", "found unknown parameter 'n_estimatorz' of lightgbm (did you mean "
     "n_estimators?), allowed is one of alpha,"),
    (CHURN, "num_leaves: 4", "num_leaves: four", "found parameter num_leaves 'four', allowed is a whole number from 2 "
     "to 131072"),
    (CHURN, "num_leaves: 4", "num_leaves: -4", "found parameter num_leaves -4, allowed is a whole number from 2 to 13"),
    (CHURN, "num_leaves: 4", "num_leaves: true", "found parameter num_leaves true, allowed is a whole number from 2"),
    (CHURN, "learning_rate: 0.05", "learning_rate: 0", "found parameter learning_rate 0, allowed is a number above 0"),
    (CHURN, "learning_rate: 0.05", "learning_rate: 0.05, subsample: 1.5", "found parameter subsample 1.5, allowed is a "
     "number above 0 and at most 1"),
    (CHURN, OF_PARAMETERS, "objective: l1", "found parameter objective 'l1', allowed is binary or cross_"),
    (CHURN, OF_PARAMETERS, "boosting: rf", "found parameter boosting 'rf', allowed is 'rf' only with subsample below"),
    (CHURN, OF_PARAMETERS, "boosting: goss", "found parameter boosting 'goss', allowed is 'gbdt', 'dart' or 'rf'"),
    (CHURN, OF_PARAMETERS, "monotone_constraints: [1, 0]", "found 2 monotone_constraints, allowed is one for each of"),
    (CHURN, OF_PARAMETERS, "monotone_constraints: [up]", "found parameter monotone_constraints ['up'], allowed is a "
     "list, each -1, 0 or 1"),
    (CLV, "max_iter: 300", "max_iter: many", "found parameter max_iter 'many', allowed is a whole number of 1 or more"),
    (CLV, "max_iter: 300", "max_iters: 300", "found unknown parameter 'max_iters' of hist_gradient_boosting (did you "
     "mean max_iter?)"),
    (CLV, "learning_rate: 0.03", "learning_rate: 0", "found parameter learning_rate 0, allowed is a number above 0"),
    (CLV, "loss: absolute_error", "loss: absolute", "found parameter loss 'absolute', allowed is 'absolute_error', "
     "'gamma', 'poisson', 'quantile' or 'squared_error'"),
    (CLV, "max_leaf_nodes: 15", "max_leaf_nodes: 1", "found parameter max_leaf_nodes 1, allowed is a whole number of 2 "
     "or more, or null"),
]  # fmt: skip

EXPECTATIONS = [
    (ORDERS, IN_SET, f"{IN_SET}s", f"found unknown expectation '{IN_SET}s' (did you mean {IN_SET}?), allowed is one o"),
    (ORDERS, "value_set:", "valueset:", "found unknown argument 'valueset' (did you mean value_set?), allowed is one "
     "of row_condition, condition_parser, value_set"),
    (ORDERS, ", arguments: {value_set: [sale, refund, adjustment]}", "", "found no argument 'value_set', which "
     f"{IN_SET} requires, allowed is a list of 1 or more"),
    (GATE, "value_set: [sale, refund, adjustment]", "value_set: sale", "found argument value_set 'sale', allowed is a "
     "list of 1 or more"),
    (LINES, "min_value: -100000", "min_value: low", "found argument min_value 'low', allowed is a number or a date "
     "such as 2011-12-31"),
    (LINES, "min_value: -100000,", "min_value: 200000,", "found min_value 200000, allowed is at most max_value (10000"),
    (LINES, "{min_value: -100000, max_value: 100000}", "{}", "found neither min_value nor max_value, allowed is at "
     "least one of them"),
    (LINES, "min_value: 1, max_value: 40", "min_value: 1.5", "found argument min_value 1.5, allowed is a whole number"),
    (LINES, "column: quantity, ", "", f"found no 'column', which {BETWEEN} requires, allowed is the name of one"),
    (LINES, "max_value: 100000}", "mostly: 0.5}", "found 'mostly' among the arguments, allowed is mostly beside them"),
    (ORDERS, IN_SET, "expect_column_values_to_match_like_pattern", "found unknown expectation 'expect_column_values_t"),
    (ORDERS, f"{IN_SET}, column: kind, arguments: {{value_set: [sale, refund, adjustment]}}",
     "expect_column_values_to_match_regex, column: kind, arguments: {regex: '('}", "found argument regex '(', allowed "
     "is a regular expression (missing ), unterminated subpattern at position 0)"),
    (ACTIVITY, "column_B: event_timestamp, ", "", "found no argument 'column_B', which expect_column_pair_values_a_to"),
    (ACTIVITY, "or_equal: true", "or_equal: yes", "found argument or_equal 'yes', allowed is true or false"),
    (ACTIVITY, "greater_than_b, ", "greater_than_b, column: customer_id, ", "found column 'customer_id', allowed is n"),
    (ACTIVITY, f"{BETWEEN}, column: txn_count_365d", "expect_table_row_count_to_be_between, mostly: 0.5", "found "
     "mostly 0.5, allowed is none: expect_table_row_count_to_be_between is not about a share of rows"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "found", "replacement", "said"), [*FIELDS, *TOGETHER, *NAMES, *ALGORITHMS, *EXPECTATIONS]
)
def test_each_problem_names_file_and_line(declared: Path, file: str, found: str, replacement: str, said: str) -> None:
    line = breaking(declared / file, found, replacement)
    code, problems = check(declared)
    assert code == 1
    # What is left out has no line of its own: the block, or the file's beginning, stands for it.
    line = 1 if said.startswith("found no 'table'") else line
    assert [p for p in problems if p.startswith(f"{declared / file}:{line}: {said}")], problems
    assert all(re.match(r"/\S+\.yaml:\d+: found .+, allowed is ", problem) for problem in problems), problems


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "found nothing in the file, allowed is a mapping of fields"),
        ("- name: churn\n", 1, "found a list in the file, allowed is a mapping of fields"),
        ("churn\n", 1, "found 'churn' in the file, allowed is a mapping of fields"),
        ("name: churn\nname: churn\n", 2, "found field 'name' a second time, allowed is once"),
        ("name: churn\n\ttask: binary\n", 2, "found text that is not YAML: a tab, allowed are spaces"),
        ("name: churn\npurpose: this: that\n", 2, "found text that is not YAML: ': ' where no field can begin"),
        (
            "name: churn\nlimits: [a,\n  b\n",
            2,
            "found text that is not YAML: a list that is not closed, allowed is [a, b]",
        ),
        ("name: churn\nowner: 'me\n", 2, "found text that is not YAML: a quote that is not closed"),
        ("name: churn\n---\nname: clv\n", 2, "found text that is not YAML: a second document (---), allowed is one"),
        ("name: churn\ntask: \x07\n", 2, "found text that is not YAML: a control character, allowed is printable text"),
        ("name: churn\ntask: *x\n", 2, "found text that is not YAML: a reference (*) to what has no anchor (&)"),
        (b"name: churn\npurpose: caf\xe9\n", 2, "found bytes that are not UTF-8, allowed is UTF-8 text"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_said_plainly(declared: Path, text: str | bytes, line: int, said: str) -> None:
    file = declared / CHURN
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    code, problems = check(declared)
    assert code == 1
    assert [p for p in problems if p.startswith(f"{file}:{line}: {said}")], problems


def test_no_message_has_a_librarys_words(declared: Path) -> None:
    """Every field of a model in turn as text, number, list, mapping and nothing."""
    file = declared / CHURN
    text = file.read_text()
    said = re.compile(
        r"pydantic|ruamel|Commented|Input should|valid (dict|list|tuple|str|int)|[Tt]uple|\bdict\b|\bstr\b"
    )
    seen = 0
    for field in re.findall(r"^(\w+):", text, flags=re.MULTILINE):
        for value in ("x", "-1", "[1, 2]", "{a: 1}", ""):
            file.write_text(re.sub(rf"^{field}:.*$(\n[ ].*$)*", f"{field}: {value}", text, flags=re.MULTILINE))
            problems = [str(problem) for problem in read_declarations(declared).problems]
            assert not [p for p in problems if said.search(p.partition(": ")[2])], problems
            seen += len(problems)
    assert seen > 60


def test_every_problem_of_every_file_and_setting_is_listed_at_once_by_file_and_line(declared: Path) -> None:
    lines = [
        breaking(declared / CHURN, "owner: team:data-science", "owner: nobody"),
        breaking(declared / CHURN, "task: binary", "task: ternary"),
        breaking(declared / CHURN, "activity:txn_count_90d", "activity:nope"),
        breaking(declared / CHURN, "marts/sales/purchase_lines", "marts/sales/nope"),
        breaking(declared / CHURN, "num_leaves: 4", "num_leaves: four"),
        breaking(declared / CHURN, "country = 'United Kingdom'", "county = 'UK'"),
    ]
    of_clv = breaking(declared / CLV, "activity:txn_count_90d", "activity:nope")
    breaking(declared / "gates/marts_sales_refunds.yaml", "table: marts/sales/refunds", "table: marts/sales/refund")
    of_orders = [
        breaking(declared / ORDERS, "domain: sales", "domain: 5"),
        breaking(declared / ORDERS, "event_time: ordered_at", "event_time: ordered"),
        breaking(declared / ORDERS, "value_set: [sale", "valueset: [sale"),
    ]
    code, problems = check(declared, HEADWATER_API_PORT="high", HEADWATER_RETAIL_DATA="/nowhere.csv")
    assert code == 1
    starts = [re.sub(r": found.*", "", p.replace(f"{declared}/", "")) for p in problems]
    orders = [f"{ORDERS}:{line}" for line in of_orders]
    assert starts == [
        "environment:HEADWATER_RETAIL_DATA",
        "environment:HEADWATER_API_PORT",
        "gates/marts_sales_refunds.yaml:1",
        *(f"{CHURN}:{line}" for line in lines),
        f"{CLV}:{of_clv}",
        *(orders[:2] + orders[2:] * 2),
    ]


def test_a_catalog_directory_that_is_missing_is_a_problem_of_the_setting(tmp_path: Path) -> None:
    code, problems = check(tmp_path / "nowhere")
    assert (code, len(problems)) == (1, 1)
    assert problems[0].startswith("environment:HEADWATER_CATALOG: found")


@pytest.mark.parametrize(
    ("folder", "what"), [("models", "model"), ("sources", "captured table"), ("gates", "gated table")]
)
def test_a_folder_that_is_missing_or_empty_is_named_with_what_was_looked_for(
    declared: Path, folder: str, what: str
) -> None:
    shutil.rmtree(declared / folder)
    missing = f"{declared / folder}:1: found no such directory, allowed is one with a YAML file for each {what}"
    assert check(declared) == (1, [missing])
    (declared / folder).mkdir()
    (declared / folder / "notes.txt").write_text("nothing\n")
    empty = f"{declared / folder}:1: found no *.yaml file in it, allowed is one with a YAML file for each {what}"
    assert check(declared) == (1, [empty])


def test_a_second_file_of_one_name_is_refused(declared: Path) -> None:
    shutil.copy(declared / CHURN, declared / "models/churn.yml")
    second = declared / "models/churn.yml"
    said = f"{second}:1: found a second file for churn, allowed is one (the first is churn.yaml)"
    assert check(declared) == (1, [said])


def test_a_missing_source_is_reported_where_it_is_referred_to(declared: Path) -> None:
    (declared / ORDERS).unlink()
    code, problems = check(declared)
    file = DBT_MODELS / "staging/shop/staging_shop__orders.sql"
    assert code == 1
    assert problems == [
        f"{file}:2: found captured table shop.orders, which no file declares (looked for {declared / ORDERS}), "
        "allowed is one of shop.customers, shop.order_lines, shop.products"
    ]


def test_a_broken_source_is_not_also_reported_as_missing(declared: Path) -> None:
    (declared / ORDERS).write_text("system: [\n")
    assert [p.partition(":")[0] for p in check(declared)[1]] == [str(declared / ORDERS)]


@pytest.mark.parametrize(
    ("file", "found", "replacement"),
    [(CHURN, "num_leaves: 4", "num_leaves: four"), (ORDERS, "value_set:", "valueset:"), (CLV, "task:", "tsk:")],
)
def test_run_refuses_what_check_refuses_before_anything_starts(
    declared: Path, file: str, found: str, replacement: str
) -> None:
    breaking(declared / file, found, replacement)
    _, problems = check(declared)
    code, said, words = headwater("run", declared)
    assert (code, said) == (1, "")
    assert words.splitlines() == [f"headwater: {len(problems)} problem(s) in the catalog:", *problems]
    assert not [path for path in (declared.parent / "home").rglob("*") if path.is_file()]


def test_a_catalog_found_sound_is_looked_at_again_when_it_changes(declared: Path, tmp_path: Path) -> None:
    settings = load_settings({"HEADWATER_CATALOG": str(declared), "HEADWATER_HOME": str(tmp_path / "home")})
    require_sound(settings)
    require_sound(settings)
    breaking(declared / CHURN, "num_leaves: 4", "num_leaves: four")
    for _ in range(2):
        with pytest.raises(CatalogError, match="found parameter num_leaves 'four'"):
            require_sound(settings)
    breaking(declared / CHURN, "num_leaves: four", "num_leaves: 4")
    require_sound(settings)


def test_a_run_looks_without_waiting_for_an_import(declared: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys; from catalog.settings import load_settings; from headwater.check import require_sound; "
        "require_sound(load_settings(os.environ)); "
        "print(sorted({'feast', 'great_expectations', 'sklearn', 'lightgbm'} & set(sys.modules)))"
    )
    environment = {**os.environ, "HEADWATER_CATALOG": str(declared), "HEADWATER_HOME": str(tmp_path / "home")}
    said = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    # The first time clv's estimator is imported for what it takes.
    assert said == ["['sklearn']\n", "[]\n"]
