"""Values of a change as the lake's types, in SQL: what JSON a type may come as, and nothing else.

Integers and floats are numbers, decimals their digits, instants microseconds since 1970 or ISO 8601, days since 1970 or
ISO 8601, times microseconds, bytes base64, JSON its text, lists arrays. A value that is anything else, or that would
have to be rounded, is null here: the contract refuses it.
"""

from __future__ import annotations

from catalog.column_types import LakeType
from streaming.change import instant_sql

__all__ = ["MICROS_RANGE", "typed_sql"]

# Years 1 to 9999: what an instant can be before arithmetic on it overflows somewhere downstream.
MICROS_RANGE = "BETWEEN -62135596800000000 AND 253402300799999999"
_DAYS_RANGE = "BETWEEN -719162 AND 2932896"


def typed_sql(kind: LakeType, raw: str) -> str:
    """The SQL expression `raw` (of type JSON) as a value of the type, null where it has another."""
    if kind.element is not None:
        return _list_sql(kind.element, raw)
    if kind.kind == "decimal":
        return _decimal_sql(kind, raw)
    text, unquoted = f"{raw}::VARCHAR", _unquoted_sql(raw)
    if kind.kind in ("int64", "time"):
        return _integer_sql(text)
    if kind.kind == "float64":
        number = f"TRY_CAST({text} AS DOUBLE)"
        return (
            f"CASE WHEN isfinite({number}) THEN {number} "
            f"WHEN {text} IN ('\"NaN\"', '\"Infinity\"', '\"-Infinity\"') THEN TRY_CAST({unquoted} AS DOUBLE) END"
        )
    if kind.kind == "bool":
        return f"CASE {text} WHEN 'true' THEN true WHEN 'false' THEN false END"
    if kind.kind == "timestamp":
        micros, written = f"TRY_CAST({text} AS BIGINT)", f"CASE WHEN {_is_text(text)} THEN {instant_sql(unquoted)} END"
        return (
            f"CASE WHEN {micros} {MICROS_RANGE} THEN make_timestamp({micros}) "
            f"WHEN year({written}) BETWEEN 1 AND 9999 THEN {written} END"  # the year of infinity is null
        )
    if kind.kind == "date":
        days, written = _integer_sql(text), f"TRY_CAST({unquoted} AS DATE)"
        return (
            f"CASE WHEN {days} {_DAYS_RANGE} THEN DATE '1970-01-01' + ({days})::INTEGER "
            f"WHEN regexp_full_match({unquoted}, '[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}') "
            f"AND year({written}) BETWEEN 1 AND 9999 THEN {written} END"
        )
    if kind.kind == "binary":
        return f"TRY(from_base64({unquoted}))"
    if kind.kind == "json":
        return f"CASE WHEN NOT {_is_text(text)} THEN {text} WHEN json_valid({unquoted}) THEN {unquoted} END"
    return unquoted


def _is_text(text: str) -> str:
    return f"starts_with({text}, '\"')"


def _unquoted_sql(raw: str) -> str:
    """A JSON string's text; null for other JSON."""
    text = f"{raw}::VARCHAR"
    return (
        f"CASE WHEN NOT {_is_text(text)} THEN NULL WHEN contains({text}, '\\') THEN {raw} ->> '$' "
        f"ELSE substring({text}, 2, length({text}) - 2) END"
    )


def _integer_sql(text: str) -> str:
    # The round trip refuses 12.5, which a cast would round.
    return f"CASE WHEN TRY_CAST({text} AS BIGINT)::VARCHAR = {text} THEN TRY_CAST({text} AS BIGINT) END"


def _decimal_sql(kind: LakeType, raw: str) -> str:
    digits = f"trim({raw}::VARCHAR, '\"')"
    fraction = f"(\\.[0-9]{{0,{kind.scale}}}0*)?"  # a cast would round what is beyond the scale
    return (
        f"CASE WHEN regexp_full_match({digits}, '-?[0-9]+{fraction}') "
        f"THEN TRY_CAST({digits} AS DECIMAL({kind.precision},{kind.scale})) END"
    )


def _list_sql(element: LakeType, raw: str) -> str:
    """An array whose every element is null or of the type. Lists of lists have a variable for each depth."""
    each = f"e{raw.count('lambda')}{len(raw)}"
    elements = f"TRY(from_json(CASE WHEN json_type({raw}) = 'ARRAY' THEN {raw} END, '[\"JSON\"]'))"
    typed = f"list_transform({elements}, lambda {each}: {typed_sql(element, each)})"
    return f"CASE WHEN list_count({typed}) = list_count({elements}) THEN {typed} END"
