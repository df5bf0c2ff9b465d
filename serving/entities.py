"""The body of a prediction request: `{"entities": [{"customer_id": 17850}, ...]}` as bytes in, customer ids out.

Parsed by hand, because this is the hot path and because a coercing parser would take `"17850"`, `17850.0` or `true` for
a customer. Nothing here knows HTTP or models.
"""

from __future__ import annotations

from typing import Any

import orjson

from serving.problems import FieldError, InvalidEntities, MalformedBody

__all__ = ["MAX_ENTITIES", "parse_entities"]

MAX_ENTITIES = 1_000
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_INTEGER = "a 64-bit integer"
_MAX_SHOWN = 80


def parse_entities(body: bytes) -> list[int]:
    """The customer ids in the order asked for, duplicates kept. Raises MalformedBody or InvalidEntities."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedBody(
            f"found {len(body)} bytes that are not JSON ({error}), allowed is a JSON object such as "
            '{"entities": [{"customer_id": 17850}]}; NaN and Infinity are not JSON'
        ) from None
    entities = _entities(request)
    ids: list[Any] = [e.get("customer_id") if type(e) is dict and len(e) == 1 else None for e in entities]
    if all(type(i) is int and _INT64_MIN <= i <= _INT64_MAX for i in ids):
        return ids
    raise InvalidEntities([error for n, entity in enumerate(entities) for error in _errors(n, entity)])


def _entities(request: Any) -> list[Any]:
    if type(request) is not dict:
        raise InvalidEntities([FieldError("$", describe(request), 'an object with the field "entities"')])
    extra = [
        FieldError(_short(key), "an unknown field", 'only the field "entities"') for key in request if key != "entities"
    ]
    if extra:
        raise InvalidEntities(extra)
    if "entities" not in request:
        raise InvalidEntities([FieldError("entities", "no such field", f"a list of 1 to {MAX_ENTITIES} entities")])
    entities = request["entities"]
    if type(entities) is not list or not 1 <= len(entities) <= MAX_ENTITIES:
        found = f"a list of {len(entities)}" if type(entities) is list else describe(entities)
        raise InvalidEntities([FieldError("entities", found, f"a list of 1 to {MAX_ENTITIES} entities")])
    return entities


def _errors(position: int, entity: Any) -> list[FieldError]:
    where = f"entities[{position}]"
    if type(entity) is not dict:
        return [FieldError(where, describe(entity), 'an object such as {"customer_id": 17850}')]
    errors = [
        FieldError(f"{where}.{_short(key)}", "an unknown field", 'only the field "customer_id"')
        for key in entity
        if key != "customer_id"
    ]
    if "customer_id" not in entity:
        return [*errors, FieldError(f"{where}.customer_id", "no such field", _INTEGER)]
    value = entity["customer_id"]
    if type(value) is not int or not _INT64_MIN <= value <= _INT64_MAX:
        errors.append(FieldError(f"{where}.customer_id", describe(value), _INTEGER))
    return errors


def describe(value: Any) -> str:
    """A JSON value with its type, short enough for a message: `the string "17850"`."""
    if value is None:
        return "null"
    if type(value) is list:  # not rendered: it may be nested deeper than orjson writes
        return f"a list of {len(value)}"
    if type(value) is dict:
        return f"an object with {len(value)} fields"
    kinds = {bool: "the boolean", str: "the string", float: "the number"}
    return f"{kinds.get(type(value), 'the integer')} {_short(orjson.dumps(value).decode())}"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
