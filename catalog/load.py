"""Reads the YAML declarations into specs; every problem is reported as `file:line: found ..., allowed is ...`.

What is wrong within a file and between files of one folder is found here; what a file names elsewhere (a feature, a
table, an algorithm) is `headwater.check`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from catalog.problems import Finding, Loc, Problem
from catalog.refusals import judge, within
from catalog.spec import Gate, Model, Source, Spec
from catalog.yaml_file import NotYaml, YamlFile, read_yaml

__all__ = ["Catalog", "CatalogError", "Declared", "Reading", "load_catalog", "read_declarations"]

S = TypeVar("S", bound=Spec, covariant=True)


class CatalogError(ValueError):
    """One or more declarations are wrong; `problems` has one line for each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = [str(problem) for problem in problems]
        super().__init__("\n".join([f"{len(problems)} problem(s) in the catalog:", *self.problems]))


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


@dataclass(frozen=True)
class Declared(Generic[S]):
    """One file as far as it can be understood: `spec` lacks what is broken (reading that raises AttributeError)."""

    file: YamlFile
    spec: S
    findings: tuple[Finding, ...]

    def name(self, field: str) -> str | None:
        """The text of a field that may be broken or left out."""
        value = getattr(self.spec, field, None)
        return value if isinstance(value, str) else None

    def problems(self, findings: Sequence[Finding]) -> Iterator[Problem]:
        """Further findings as problems of this file, except where something was found wrong already."""
        places: set[Loc] = {finding.loc for finding in self.findings}
        yield from (self.file.problem(f.loc, f.text) for f in findings if not within(f.loc, places))


@dataclass(frozen=True)
class Reading:
    """Everything that is declared, sound or not, and what is wrong with it so far."""

    sources: tuple[Declared[Source], ...]
    gates: tuple[Declared[Gate], ...]
    models: tuple[Declared[Model], ...]
    problems: tuple[Problem, ...]


def load_catalog(directory: Path) -> Catalog:
    """Read `sources/`, `gates/` and `models/` below `directory`. Raises CatalogError that lists every problem."""
    found = read_declarations(directory)
    if found.problems:
        raise CatalogError(found.problems)
    return Catalog(
        tuple(d.spec for d in found.sources), tuple(d.spec for d in found.gates), tuple(d.spec for d in found.models)
    )


def read_declarations(directory: Path) -> Reading:
    """Read the same folders, whatever is wrong in them."""
    problems: list[Problem] = []
    sources = tuple(_read_all(directory / "sources", Source, problems))
    gates = tuple(_read_all(directory / "gates", Gate, problems))
    models = tuple(_read_all(directory / "models", Model, problems))
    for source in sources:
        problems += source.problems([*_file_name(source, "table"), *_one_file(source, sources)])
    for gate in gates:
        problems += gate.problems(list(_gated_once(gate, gates)))
    for model in models:
        problems += model.problems([*_file_name(model, "name"), *_one_file(model, models)])
    return Reading(sources, gates, models, tuple(sorted(set(problems))))


def _read_all(directory: Path, spec: type[S], problems: list[Problem]) -> Iterator[Declared[S]]:
    for path in sorted([*directory.glob("*.yaml"), *directory.glob("*.yml")]):
        try:
            file = read_yaml(path)
        except NotYaml as error:
            problems.append(error.problem)
            continue
        understood, findings = judge(spec, file.values)
        problems += (file.problem(finding.loc, finding.text) for finding in findings)
        yield Declared(file, understood, findings)


def _file_name(declared: Declared[S], field: str) -> Iterator[Finding]:
    name, stem = declared.name(field), declared.file.path.stem
    if name is not None and name != stem:
        yield Finding((field,), f"found {field} {name!r}, allowed is the file's own name: {stem!r}")


def _one_file(declared: Declared[S], all_declared: Sequence[Declared[S]]) -> Iterator[Finding]:
    path = declared.file.path
    first = next(d.file.path for d in all_declared if d.file.path.stem == path.stem)
    if first != path:
        yield Finding((), f"found a second file for {path.stem}, allowed is one (the first is {first.name})")


def _gated_once(gate: Declared[Gate], gates: Sequence[Declared[Gate]]) -> Iterator[Finding]:
    table = gate.name("table")
    if table is None:
        yield Finding(("table",), "found no 'table', which is required, allowed is the asset key of the gated table")
        return
    first = next(g for g in gates if g.name("table") == table)
    if first is not gate:
        text = f"found a second gate for {table}, allowed is one (the first is in {first.file.path.name})"
        yield Finding(("table",), text)
