"""Reads the YAML declarations into specs; every problem is reported as `file:line: what was found, what is allowed`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from catalog.spec import Gate, Model, Source

__all__ = ["Catalog", "CatalogError", "line_of", "load_catalog", "load_file"]

Spec = TypeVar("Spec", bound=BaseModel)


class CatalogError(ValueError):
    """One or more declarations are wrong; `problems` has one line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Catalog:
    """What exists, by declaration."""

    sources: tuple[Source, ...]
    gates: tuple[Gate, ...]
    models: tuple[Model, ...]

    @cached_property
    def model_by_name(self) -> dict[str, Model]:
        return {m.name: m for m in self.models}

    def model(self, name: str) -> Model:
        """Raises KeyError that names the models there are."""
        if name not in self.model_by_name:
            raise KeyError(f"unknown model {name!r}; there are: {', '.join(sorted(self.model_by_name))}")
        return self.model_by_name[name]

    def source(self, table: str) -> Source:
        """Raises KeyError that names the tables there are."""
        for source in self.sources:
            if source.table == table:
                return source
        raise KeyError(f"unknown source table {table!r}; there are: {', '.join(s.table for s in self.sources)}")


def load_catalog(directory: Path) -> Catalog:
    """Read `sources/`, `gates/` and `models/` below `directory`. Raises CatalogError that lists every problem."""
    problems: list[str] = []
    sources = list(_load_all(directory / "sources", Source, problems))
    gates = list(_load_all(directory / "gates", Gate, problems))
    models = list(_load_all(directory / "models", Model, problems))
    for file, source in sources:
        _expect_file_name(file, source.table, problems)
    gated: dict[str | None, str] = {}
    for file, gate in gates:
        if gate.table is None:
            problems.append(f"{file}:1: found no `table`, allowed is the asset key of the gated table")
        if gate.table in gated:
            problems.append(f"{file}:1: found a second gate for {gate.table}, allowed is one ({gated[gate.table]})")
        gated[gate.table] = file.name
    for file, model in models:
        _expect_file_name(file, model.name, problems)
    if problems:
        raise CatalogError(problems)
    return Catalog(tuple(s for _, s in sources), tuple(g for _, g in gates), tuple(m for _, m in models))


def _expect_file_name(file: Path, name: str, problems: list[str]) -> None:
    if file.stem != name:
        problems.append(f"{file}:1: found name {name!r}, allowed is the file's own: {file.stem!r}")


def _load_all(directory: Path, spec: type[Spec], problems: list[str]) -> Iterator[tuple[Path, Spec]]:
    for file in sorted([*directory.glob("*.yaml"), *directory.glob("*.yml")]):
        try:
            yield file, load_file(file, spec)
        except CatalogError as error:
            problems.extend(error.problems)


def load_file(file: Path, spec: type[Spec]) -> Spec:
    """Read one YAML file strictly. Raises CatalogError."""
    try:
        tree = YAML(typ="rt").load(StringIO(file.read_text(encoding="utf-8")))
    except (YAMLError, UnicodeDecodeError) as error:
        line = error.problem_mark.line + 1 if isinstance(error, MarkedYAMLError) and error.problem_mark else 1
        what = error.problem if isinstance(error, MarkedYAMLError) else str(error)
        raise CatalogError([f"{file}:{line}: found text that is not YAML ({what}), allowed is a mapping"]) from None
    if not isinstance(tree, CommentedMap):
        raise CatalogError([f"{file}:1: found {type(tree).__name__}, allowed is a mapping of {_names(spec)}"])
    try:
        return spec.model_validate(_plain(tree))
    except ValidationError as error:
        raise CatalogError([_problem(file, tree, spec, e) for e in error.errors()]) from None


def line_of(file: Path, loc: tuple[str | int, ...]) -> int:
    """The 1-based line of the deepest part of `loc` (keys and list positions) that the YAML file has."""
    return _line(YAML(typ="rt").load(StringIO(file.read_text(encoding="utf-8"))), loc)


def _plain(node: Any) -> Any:
    """Lists become tuples: strict validation of a tuple refuses a list."""
    if isinstance(node, CommentedMap):
        return {str(k): _plain(v) for k, v in node.items()}
    if isinstance(node, CommentedSeq):
        return tuple(_plain(v) for v in node)
    for base in (bool, int, float, str):
        if isinstance(node, base):
            return base(node)
    return node


def _problem(file: Path, tree: CommentedMap, spec: type[BaseModel], error: Any) -> str:
    loc = tuple(error["loc"])
    where = ".".join(str(part) for part in loc) or "the file"
    line = _line(tree, loc)
    kind, found = error["type"], error["input"]
    if kind == "extra_forbidden":
        names = _fields(_owner_of(spec, loc[:-1]))
        near = difflib.get_close_matches(str(loc[-1]), names, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"{file}:{line}: found unknown field {where!r}{hint}, allowed is one of {', '.join(names)}"
    if kind == "missing":
        return f"{file}:{line}: found no {where!r}, which is required ({_describe(spec, loc)})"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{file}:{line}: {where}: {message}"
    allowed = message.removeprefix("Input should be ").removeprefix("String should ")
    return f"{file}:{line}: {where}: found {found!r}, allowed is {allowed}"


def _line(tree: Any, loc: tuple[Any, ...]) -> int:
    """The 1-based line of the deepest part of `loc` that the file has."""
    line = 1
    for part in loc:
        try:
            if isinstance(tree, CommentedMap) and part in tree:
                line = tree.lc.key(part)[0] + 1
            elif isinstance(tree, CommentedSeq) and isinstance(part, int) and part < len(tree):
                line = tree.lc.item(part)[0] + 1
            else:
                return line
        except (KeyError, AttributeError, TypeError):
            return line
        tree = tree[part]
    return line


def _fields(spec: type[BaseModel]) -> list[str]:
    return list(spec.model_fields)


def _names(spec: type[BaseModel]) -> str:
    return ", ".join(_fields(spec))


def _owner_of(spec: type[BaseModel], loc: tuple[Any, ...]) -> type[BaseModel]:
    """The spec class that `loc` points at, through nested fields and tuples of specs."""
    for part in loc:
        if isinstance(part, str) and part in spec.model_fields:
            nested = _spec_in(spec.model_fields[part].annotation)
            spec = nested or spec
    return spec


def _spec_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        if found := _spec_in(inner):
            return found
    return None


def _describe(spec: type[BaseModel], loc: tuple[Any, ...]) -> str:
    owner = _owner_of(spec, loc[:-1])
    annotation = owner.model_fields[str(loc[-1])].annotation if str(loc[-1]) in owner.model_fields else None
    options = [str(a) for a in get_args(annotation) if isinstance(a, str)]
    return f"one of {', '.join(options)}" if options else f"fields here are {_names(owner)}"
