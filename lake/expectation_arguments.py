"""Which expectations there are and which arguments each takes, from Great Expectations' own schemas.

Nothing is evaluated here. Great Expectations is read as files where it can be: importing it takes six seconds, and a
check of declarations has none to spare.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from catalog.allowed import Schema, fits, words
from catalog.problems import Finding, nearest, shown
from catalog.spec import Expectation

__all__ = ["expectation_findings", "known_expectations"]

# What every expectation takes and a gate has no use for: how results are kept, named and shown.
_HOUSEKEEPING = frozenset(
    {
        "batch_id", "catch_exceptions", "description", "id", "library_metadata", "meta", "metadata", "notes",
        "rendered_content", "result_format", "severity", "windows",
    }
)  # fmt: skip
# Exported by Great Expectations, but no longer registered.
_RETIRED = "expect_multicolumn_values_to_be_unique"
# These stand beside `arguments`, not in them.
_FIELDS = ("column", "mostly")
# Great Expectations takes other values than its schemas say: of any type in a set, no empty list of patterns; a
# condition is also text for it, and nothing else can be written in YAML.
_GIVEN: Mapping[str, Schema] = {
    "value_set": {"type": "array", "minItems": 1},
    "regex_list": {"type": "array", "minItems": 1, "items": {"type": "string"}},
    "row_condition": {"type": "string"},
}
_COLUMNS: Schema = {
    "type": "array",
    "minItems": 2,
    "items": {"type": "string"},
    "words": "a list of two columns or more",
}


@cache
def known_expectations() -> frozenset[str]:
    """Every expectation that can be evaluated on rows in memory."""
    exported = re.findall(r"^from \.(\w+) import", (_core() / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(name for name in exported if name != _RETIRED and _evaluates_rows(name))


def expectation_findings(expectation: Expectation) -> Iterator[Finding]:
    """What is wrong with an expectation: its name, column, `mostly` and arguments, each at its place below it."""
    known = known_expectations()
    if expectation.expect not in known:
        hint = nearest(expectation.expect, known)
        text = f"found unknown expectation {expectation.expect!r}{hint}, allowed is one of Great Expectations' for rows"
        yield Finding(("expect",), text)
        return
    schema = _schema(expectation.expect)
    yield from _field_findings(expectation, schema)
    yield from _argument_findings(expectation, schema)
    yield from _bound_findings(expectation, schema)


def _field_findings(expectation: Expectation, schema: Schema) -> Iterator[Finding]:
    name, properties = expectation.expect, schema["properties"]
    if "column" in properties and expectation.column is None:
        yield Finding(("expect",), f"found no 'column', which {name} requires, allowed is the name of one")
    if "column" not in properties and expectation.column is not None:
        text = f"found column {expectation.column!r}, allowed is none: {name} is about no single column"
        yield Finding(("column",), text)
    if "mostly" not in properties and expectation.mostly < 1:
        text = f"found mostly {expectation.mostly}, allowed is none: {name} is not about a share of rows"
        yield Finding(("mostly",), text)


def _argument_findings(expectation: Expectation, schema: Schema) -> Iterator[Finding]:
    name, definitions = expectation.expect, schema.get("definitions", {})
    taken = {n: _given(n, s, schema) for n, s in schema["properties"].items() if n not in (*_HOUSEKEEPING, *_FIELDS)}
    required = schema.get("required", ())
    for argument, value in expectation.arguments.items():
        loc = ("arguments", argument)
        if argument in _FIELDS:
            yield Finding(loc, f"found {argument!r} among the arguments, allowed is {argument} beside them")
        elif argument not in taken:
            allowed = f"one of {', '.join(taken)}" if taken else f"none: {name} takes no arguments"
            yield Finding(loc, f"found unknown argument {argument!r}{nearest(argument, taken)}, allowed is {allowed}")
        elif value is None and argument not in required and "default" not in taken[argument]:
            continue  # the same as to leave it out
        elif not fits(value, taken[argument], definitions):
            text = f"found argument {argument} {shown(value)}, allowed is {words(taken[argument], definitions)}"
            yield Finding(loc, text)
        elif problem := _regex_problem(argument, value):
            yield Finding(loc, problem)
    for argument in required:
        if argument in taken and argument not in expectation.arguments:
            allowed = words(taken[argument], definitions)
            text = f"found no argument {argument!r}, which {name} requires, allowed is {allowed}"
            yield Finding(("arguments",), text)


def _bound_findings(expectation: Expectation, schema: Schema) -> Iterator[Finding]:
    """An expectation with two bounds needs one, and the lower first."""
    if not {"min_value", "max_value"} <= schema["properties"].keys() or "threshold" in schema["properties"]:
        return
    low, high = (expectation.arguments.get(name) for name in ("min_value", "max_value"))
    if low is None and high is None:
        text = "found neither min_value nor max_value, allowed is at least one of them"
        yield Finding(("arguments",), text)
    elif isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        text = f"found min_value {shown(low)}, allowed is at most max_value ({shown(high)})"
        yield Finding(("arguments", "min_value"), text)


def _regex_problem(argument: str, value: Any) -> str | None:
    patterns = {"regex": (value,), "regex_list": value}.get(argument, ())
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            return f"found argument {argument} {shown(pattern)}, allowed is a regular expression ({error})"
    return None


def _given(argument: str, schema: Schema, whole: Schema) -> Schema:
    """The schema of an argument as a gate can give it."""
    if argument == "column_list" and "ignore_row_if" in whole["properties"]:
        return _COLUMNS
    schema = _GIVEN.get(argument, schema)
    # A mapping as an alternative stands for Great Expectations' suite parameters: a gate has none. A number of rows is
    # no date.
    options = [option for option in schema.get("anyOf", ()) if option != {"type": "object"}]
    whole_number = [option for option in options if option.get("type") == "integer"]
    return {**schema, "anyOf": whole_number or options} if options else schema


def _evaluates_rows(name: str) -> bool:
    file = _schema_file(name)
    if file is None:
        return True  # a few ship no schema; each of them takes rows
    about = json.loads(file.read_text(encoding="utf-8"))["properties"]["metadata"]["properties"]
    return "Pandas" in about["supported_data_sources"]["const"]


@cache
def _schema(name: str) -> Schema:
    """The JSON Schema of an expectation: the file that is shipped with it, else (a few have none) from its class."""
    if file := _schema_file(name):
        found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    # Great Expectations decides at import whether to report usage over the network.
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    from great_expectations.expectations.registry import get_expectation_impl

    of_class: Mapping[str, Any] = get_expectation_impl(name).schema()
    return of_class


def _schema_file(name: str) -> Path | None:
    return _schema_files().get(name.replace("_", ""))


@cache
def _schema_files() -> Mapping[str, Path]:
    """By the name in lower case: `ExpectColumnKLDivergence...` is expect_column_kl_divergence_..."""
    return {file.stem.lower(): file for file in (_core() / "schemas").glob("*.json")}


@cache
def _core() -> Path:
    package = importlib.util.find_spec("great_expectations")
    folders = package.submodule_search_locations if package else None
    if not folders:
        raise ImportError("great_expectations is not installed: `make env` installs what Headwater needs")
    return Path(folders[0]) / "expectations" / "core"
