"""Runs the expectations of a gate with Great Expectations, on the columns that they need and no others.

Great Expectations is imported inside the functions: it takes seconds. It reads pandas only, so the columns that an
expectation names are copied and nothing else. Where rows come from and what follows from a failure is not decided here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from catalog.spec import Expectation
from lake.expectation_arguments import expectation_findings

if TYPE_CHECKING:
    from great_expectations.core import ExpectationValidationResult

__all__ = ["Verdict", "needed_columns", "validate"]


@dataclass(frozen=True)
class Verdict:
    """What one expectation found; `message` says it in words when it does not hold."""

    expectation: str
    passed: bool
    message: str
    unexpected_pct: float | None


def needed_columns(expectations: Sequence[Expectation]) -> list[str]:
    """Every column that some expectation names, once."""
    return list(dict.fromkeys(name for expectation in expectations for _, name in expectation.columns()))


def validate(rows: pa.Table, expectations: Sequence[Expectation]) -> tuple[Verdict, ...]:
    """Hold `rows` (at least the needed columns) against each expectation.

    An expectation that does not exist, or takes other arguments, is a verdict that failed: a gate that cannot be
    evaluated must not let anything through.
    """
    if not expectations:
        return ()
    # Great Expectations decides at import whether to report usage over the network.
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    built = [_built(e) for e in expectations]
    runnable = [b for b in built if not isinstance(b, str)]
    results = iter(_run(rows, runnable))
    return tuple(
        Verdict(_label(e), False, f"{_label(e)} cannot be evaluated: {b}", None)
        if isinstance(b, str)
        else _verdict(e, next(results))
        for e, b in zip(expectations, built, strict=True)
    )


def _built(expectation: Expectation) -> Any | str:
    """Great Expectations' own object, or what is wrong with the declaration."""
    if findings := [str(finding) for finding in expectation_findings(expectation)]:
        return "; ".join(findings)
    from great_expectations.expectations import registry

    arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in expectation.arguments.items()}
    if expectation.column:
        arguments["column"] = expectation.column
    if expectation.mostly < 1:
        arguments["mostly"] = expectation.mostly
    try:
        return registry.get_expectation_impl(expectation.expect)(**arguments)
    except (TypeError, ValueError) as error:
        return " ".join(str(error).split())


def _run(rows: pa.Table, built: Sequence[Any]) -> list[ExpectationValidationResult]:
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    if not built:
        return []
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("lake").add_dataframe_asset("rows")
    frame = rows.to_pandas(date_as_object=False, split_blocks=True, self_destruct=True)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    # One by one: a suite drops an expectation that equals another, and results must stay in order.
    return [batch.validate(b, result_format="BASIC") for b in built]


def _verdict(expectation: Expectation, result: ExpectationValidationResult) -> Verdict:
    label, found = _label(expectation), result.result or {}
    share = found.get("unexpected_percent")
    if result.success:
        return Verdict(label, True, "", share)
    if "unexpected_count" in found:
        examples = list(dict.fromkeys(str(v) for v in found.get("partial_unexpected_list", ())))[:3]
        text = (
            f"{label} is broken by {found['unexpected_count']:,} of {found['element_count']:,} rows ({share:.2f} %), "
            f"such as {', '.join(examples)}; allowed are {100 * (1 - expectation.mostly):.4g} %"
        )
        return Verdict(label, False, text, share)
    return Verdict(label, False, f"{label} {_other_failure(result)}", share)


def _other_failure(result: ExpectationValidationResult) -> str:
    if "observed_value" in (result.result or {}):
        return f"found {result.result['observed_value']}"
    info = result.exception_info or {}
    nested = [v for v in info.values() if isinstance(v, dict)]
    messages = [str(i.get("exception_message")) for i in (nested or [info])]
    return f"cannot be evaluated: {messages[0]}"


def _label(expectation: Expectation) -> str:
    arguments = ", ".join(f"{k} {v}" for k, v in expectation.arguments.items())
    column = f"({expectation.column})" if expectation.column else ""
    return f"{expectation.expect}{column}" + (f" with {arguments}" if arguments else "")
