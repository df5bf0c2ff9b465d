"""What a spec refuses in a declaration, in plain words, and what is left of a declaration that is refused.

One broken field must not hide what is wrong elsewhere in the file: the rest of the declaration is kept, so that whoever
knows more (rules between fields, names of tables and features) can go on judging it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from catalog.allowed import Schema, resolved, words
from catalog.problems import Finding, Loc, nearest, shown
from catalog.spec import MISFIT, Spec

__all__ = ["judge", "within"]

S = TypeVar("S", bound=Spec)


def judge(spec: type[S], values: Mapping[str, Any]) -> tuple[S, tuple[Finding, ...]]:
    """The declaration, and everything that is wrong with it.

    A refused declaration lacks its broken fields: reading one raises AttributeError.
    """
    try:
        return spec.model_validate(values), ()
    except ValidationError as error:
        refused = [e for e in error.errors(include_url=False) if e["type"] != MISFIT]
    broken = {tuple(error["loc"]) for error in refused}
    rest = _rest(spec, values, broken, ())
    misfits = (finding for finding in _misfits(rest, ()) if not within(finding.loc, broken))
    return rest, (*(_refusal(spec, error) for error in refused), *misfits)


def within(loc: Loc, places: set[Loc]) -> bool:
    """Whether `loc` is one of the places, or below one."""
    return any(loc[: len(place)] == place for place in places)


def _refusal(spec: type[Spec], error: Any) -> Finding:
    loc = tuple(error["loc"])
    where = ".".join(part for part in loc if isinstance(part, str))
    if error["type"] == "extra_forbidden":
        names = list(_schema(spec, loc[:-1])[0]["properties"])
        hint = nearest(str(loc[-1]), names)
        return Finding(loc, f"found unknown field {where!r}{hint}, allowed is one of {', '.join(names)}")
    allowed = words(*_schema(spec, loc))
    if error["type"] == "missing":
        return Finding(loc, f"found no {where!r}, which is required, allowed is {allowed}")
    return Finding(loc, f"found {where} {shown(error['input'])}, allowed is {allowed}")


def _schema(spec: type[Spec], loc: Loc) -> tuple[Schema, Schema]:
    """The JSON Schema of the field at `loc`, and the definitions that it refers to."""
    schema: Schema = spec.model_json_schema()
    definitions: Schema = schema.get("$defs", {})
    for part in loc:
        schema = resolved(schema, definitions)
        # What may be left out is anyOf(its schema, null).
        schema = schema["anyOf"][0] if "anyOf" in schema else schema
        schema = resolved(schema, definitions)
        schema = schema["properties"][part] if isinstance(part, str) else schema["items"]
    return resolved(schema, definitions), definitions


def _rest(spec: type[S], values: Any, broken: set[Loc], at: Loc) -> S:
    """The fields that are not broken. Nothing is converted: what was accepted strictly is what the rules look at."""
    kept: dict[str, Any] = {}
    given = values if isinstance(values, Mapping) else {}
    for name in spec.model_fields.keys() & given.keys():
        value, loc = given[name], (*at, name)
        nested = _spec_in(spec.model_fields[name].annotation)
        if loc in broken:
            # Present, so that no default stands for it, but not to be read.
            kept[name] = _ABSENT
        elif isinstance(value, tuple):
            kept[name] = tuple(_item(nested, item, broken, (*loc, n)) for n, item in enumerate(value))
        else:
            kept[name] = _rest(nested, value, broken, loc) if nested and isinstance(value, Mapping) else value
    rest = spec.model_construct(**kept)
    for name in spec.model_fields:
        if rest.__dict__.get(name) is _ABSENT:
            del rest.__dict__[name]
    return rest


_ABSENT = object()


def _item(nested: type[Spec] | None, item: Any, broken: set[Loc], loc: Loc) -> Any:
    """An item of a list keeps its position even when it is broken, as an empty one of its kind."""
    if nested:
        return _rest(nested, item, broken, loc)
    return "" if loc in broken and not isinstance(item, str) else item


def _misfits(spec: Spec, at: Loc) -> Iterator[Finding]:
    """What the rules find in a declaration and its parts."""
    for rule in spec.rules():
        try:
            yield from [Finding((*at, *finding.loc), finding.text) for finding in rule()]
        except AttributeError:
            continue  # the rule is about a field that is itself broken
    for name, value in spec.__dict__.items():
        if isinstance(value, Spec):
            yield from _misfits(value, (*at, name))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for position, item in enumerate(value):
                yield from _misfits(item, (*at, name, position)) if isinstance(item, Spec) else ()


def _spec_in(annotation: Any) -> type[Spec] | None:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _spec_in(inner))), None)
