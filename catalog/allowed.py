"""What a value may be, as JSON Schema: whether a value fits, and what is allowed in words.

One reading of the schemas that pydantic writes for our specs, that Great Expectations ships for its expectations and
that `ml.parameters` writes down for algorithms. Only the keywords that these use are known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any

from catalog.problems import either, shown

__all__ = ["Schema", "fits", "resolved", "words"]

Schema = Mapping[str, Any]
"""A JSON Schema. Three keywords are our own: `words`, what to say instead of what the schema itself says; `fraction`, a
number that is written with a decimal point; `infinite`, a number that may be infinite too."""

_NOTHING: Schema = {}


def fits(value: Any, schema: Schema, definitions: Schema = _NOTHING) -> bool:
    """Whether a value read from YAML (lists as tuples) is one that the schema allows."""
    schema = resolved(schema, definitions)
    if options := _alternatives(schema):
        return any(fits(value, option, definitions) for option in options)
    if "enum" in schema:
        return any(type(value) is type(option) and value == option for option in schema["enum"])
    check = _CHECKS.get(schema.get("type", ""))
    return check is None or check(value, schema, definitions)


def words(schema: Schema, definitions: Schema = _NOTHING) -> str:
    """What the schema allows, to be read after "allowed is"."""
    schema = resolved(schema, definitions)
    if "words" in schema:
        return str(schema["words"])
    if options := _alternatives(schema):
        each = list(dict.fromkeys(words(option, definitions) for option in options))
        return ", or ".join(each) if any(" or " in option for option in each[:-1]) else either(each)
    if "enum" in schema:
        return either(shown(option) for option in schema["enum"])
    return _WORDS[schema["type"]](schema, definitions) if "type" in schema else "any value"


def resolved(schema: Schema, definitions: Schema) -> Schema:
    """The schema itself where it only refers to one of the definitions."""
    while True:
        if "$ref" in schema:
            schema = definitions[schema["$ref"].rpartition("/")[2]]
        elif len(schema.get("allOf", ())) == 1:
            schema = schema["allOf"][0]
        elif "const" in schema and "enum" not in schema:
            schema = {**schema, "enum": [schema["const"]]}
        else:
            return schema


def _alternatives(schema: Schema) -> list[Schema]:
    return list(schema.get("anyOf") or schema.get("oneOf") or ())


def _is_number(value: Any, schema: Schema, _: Schema) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not math.isfinite(value):
        return value == math.inf and "infinite" in schema
    if schema.get("fraction") and isinstance(value, int):
        return False
    above = schema.get("minimum", -math.inf) <= value and schema.get("exclusiveMinimum", -math.inf) < value
    return bool(above and schema.get("maximum", math.inf) >= value and schema.get("exclusiveMaximum", math.inf) > value)


def _is_integer(value: Any, schema: Schema, definitions: Schema) -> bool:
    return isinstance(value, int) and _is_number(value, schema, definitions)


def _is_text(value: Any, schema: Schema, _: Schema) -> bool:
    if schema.get("format") in ("date", "date-time"):
        return isinstance(value, date) or (isinstance(value, str) and _is_instant(value))
    length = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    return isinstance(value, str) and length[0] <= len(value) <= length[1]


def _is_instant(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_list(value: Any, schema: Schema, definitions: Schema) -> bool:
    if not isinstance(value, list | tuple) or not schema.get("minItems", 0) <= len(value):
        return False
    return len(value) <= schema.get("maxItems", math.inf) and all(
        fits(item, _of_items(schema), definitions) for item in value
    )


def _of_items(schema: Schema) -> Schema:
    """What each item of a list may be. A schema for each position (of a pair) says only how many there are."""
    items = schema.get("items", _NOTHING)
    return items if isinstance(items, Mapping) else _NOTHING


def _is_mapping(value: Any, schema: Schema, definitions: Schema) -> bool:
    return (
        isinstance(value, Mapping)
        and all(name in value for name in schema.get("required", ()))
        and all(fits(value[n], s, definitions) for n, s in schema.get("properties", _NOTHING).items() if n in value)
    )


_CHECKS: Mapping[str, Callable[[Any, Schema, Schema], bool]] = {
    "number": _is_number,
    "integer": _is_integer,
    "string": _is_text,
    "boolean": lambda value, *_: isinstance(value, bool),
    "array": _is_list,
    "object": _is_mapping,
    "null": lambda value, *_: value is None,
}


def _number_words(schema: Schema, _: Schema) -> str:
    what = "a whole number" if schema["type"] == "integer" else "a number"
    what += " with a decimal point" if schema.get("fraction") else ""
    if "minimum" in schema and "maximum" in schema:
        return f"{what} from {_bound(schema['minimum'])} to {_bound(schema['maximum'])}"
    low = {"minimum": "of {} or more", "exclusiveMinimum": "above {}"}
    high = {"maximum": "at most {}", "exclusiveMaximum": "below {}"}
    bounds = [text.format(_bound(schema[name])) for name, text in {**low, **high}.items() if name in schema]
    return " ".join((what, " and ".join(bounds))).strip()


def _bound(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def _text_words(schema: Schema, _: Schema) -> str:
    if schema.get("format") in ("date", "date-time"):
        return "a date such as 2011-12-31"
    if schema.get("maxLength") == 1:
        return "one character"
    least = schema.get("minLength", 0)
    return "text" if not least else "text that is not empty" if least == 1 else f"text of {least} characters or more"


def _list_words(schema: Schema, definitions: Schema) -> str:
    least, most, each = schema.get("minItems", 0), schema.get("maxItems"), words(_of_items(schema), definitions)
    count = "" if not least else f" of {least}" if least == most else f" of {least} or more"
    return f"a list{count}" + (f", each {each}" if each != "any value" else "")


def _mapping_words(schema: Schema, _: Schema) -> str:
    return f"a mapping of {', '.join(schema['properties'])}" if schema.get("properties") else "a mapping"


_WORDS: Mapping[str, Callable[[Schema, Schema], str]] = {
    "number": _number_words,
    "integer": _number_words,
    "string": _text_words,
    "boolean": lambda *_: "true or false",
    "array": _list_words,
    "object": _mapping_words,
    "null": lambda *_: "null",
}
