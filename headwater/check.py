"""`headwater check`: everything that can be wrong in settings and declarations, found without running anything.

`catalog.load` says what is wrong within a file; here is what is wrong between files: a feature, algorithm, table,
column or expectation that is named and does not exist. Each problem is `file:line: what was found, what is allowed`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from catalog.load import CatalogError, line_of, load_catalog, load_file
from catalog.settings import CATALOG_DIR, SettingsError, load_settings
from catalog.spec import Gate, Model, Source

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["problems"]

Spec = TypeVar("Spec", bound="BaseModel")
Loc = tuple[str | int, ...]
Tables = Mapping[str, Sequence[str]]
# Feast's names for the types that a model can take.
_ARROW = {"INT64": pa.int64(), "DOUBLE": pa.float64(), "STRING": pa.string(), "BOOL": pa.bool_()}
DBT_MODELS = CATALOG_DIR.parent / "dbt_project" / "models"


def problems(environ: Mapping[str, str]) -> list[str]:
    """Every problem there is, one line each; empty when all is well."""
    found: list[str] = []
    try:
        directory = load_settings(environ).catalog
    except SettingsError as error:
        found += error.problems
        directory = Path(environ.get("HEADWATER_CATALOG") or CATALOG_DIR)
    try:
        load_catalog(directory)
    except CatalogError as error:
        found += error.problems
    return [*found, *_references(directory)]


def _references(directory: Path) -> Iterator[str]:
    """What the files that are valid by themselves refer to."""
    sources = dict(_valid(directory / "sources", Source))
    tables = {**_raw_tables(sources.values()), **_dbt_tables()}
    expectations = _expectation_names()
    for file, source in sources.items():
        yield from _expectation_problems(file, ("gate",), source.gate, expectations)
    for file, gate in _valid(directory / "gates", Gate):
        yield from _gate_problems(file, gate, tables)
        yield from _expectation_problems(file, (), gate, expectations)
    for file, model in _valid(directory / "models", Model):
        yield from _model_problems(file, model, tables)


def _valid(directory: Path, spec: type[Spec]) -> Iterator[tuple[Path, Spec]]:
    for file in sorted([*directory.glob("*.yaml"), *directory.glob("*.yml")]):
        try:
            yield file, load_file(file, spec)
        except CatalogError:
            continue  # load_catalog has reported it


def _raw_tables(sources: Iterable[Source]) -> dict[str, Sequence[str]]:
    return {f"raw/{s.system}/{s.table}": [c.name for c in s.columns] for s in sources}


def _dbt_tables() -> dict[str, Sequence[str]]:
    """dbt's tables with their columns, from the files that describe them."""
    from ruamel.yaml import YAML

    tables: dict[str, Sequence[str]] = {}
    for file in sorted(DBT_MODELS.glob("*/*/*.yml")):
        layer, subject = file.parent.parent.name, file.parent.name
        for table in YAML(typ="safe").load(file).get("models", []):
            name = table["name"].removeprefix(f"{layer}_{subject}__")
            tables[f"{layer}/{subject}/{name}"] = [c["name"] for c in table.get("columns", [])]
    return tables


def _expectation_names() -> frozenset[str]:
    """Great Expectations' own, from the names of its modules: importing the package takes six seconds."""
    package = importlib.util.find_spec("great_expectations")
    folders = package.submodule_search_locations if package else None
    if not folders:
        raise ImportError("great_expectations is not installed: `make env` installs what Headwater needs")
    return frozenset(file.stem for file in (Path(folders[0]) / "expectations" / "core").glob("expect_*.py"))


def _expectation_problems(file: Path, at: Loc, gate: Gate, known: frozenset[str]) -> Iterator[str]:
    for position, expectation in enumerate(gate.expectations):
        if expectation.expect not in known:
            loc = (*at, "expectations", position, "expect")
            allowed = "one of Great Expectations' core expectations"
            yield _problem(file, loc, "expectation", expectation.expect, known, allowed)


def _gate_problems(file: Path, gate: Gate, tables: Tables) -> Iterator[str]:
    if gate.table is None:
        return  # load_catalog has reported it
    if gate.table not in tables:
        yield _problem(file, ("table",), "table", gate.table, tables)
        return
    named: list[tuple[Loc, str]] = [(("key", n), column) for n, column in enumerate(gate.key)]
    named.append((("event_time",), gate.event_time))
    named += [(("expectations", n, "column"), e.column) for n, e in enumerate(gate.expectations) if e.column]
    for loc, column in named:
        if column not in tables[gate.table]:
            yield _problem(file, loc, f"column of {gate.table}", column, tables[gate.table])


def _model_problems(file: Path, model: Model, tables: Tables) -> Iterator[str]:
    yield from _feature_problems(file, model)
    yield from _label_problems(file, model, tables)
    from ml.algorithms import algorithm_problems

    for problem in algorithm_problems(model):
        field = problem.partition(":")[0]
        yield f"{file}:{line_of(file, tuple(field.split('.')))}: {problem}"


def _feature_problems(file: Path, model: Model) -> Iterator[str]:
    known = _known_features()
    unknown = [n for n, reference in enumerate(model.features) if reference not in known]
    for position in unknown:
        yield _problem(file, ("features", position), "feature", model.features[position], known)
    if not unknown:
        yield from _slice_problems(file, model, known)


def _slice_problems(file: Path, model: Model, known: Mapping[str, pa.DataType]) -> Iterator[str]:
    from ml.evaluation import slice_problems

    schema = pa.schema([(reference.partition(":")[2], known[reference]) for reference in model.features])
    for position, declared in enumerate(model.gate.slices):
        alone = model.model_copy(update={"gate": model.gate.model_copy(update={"slices": (declared,)})})
        line = line_of(file, ("gate", "slices", position, "where"))
        yield from (f"{file}:{line}: {problem}" for problem in slice_problems(alone, schema))


@cache
def _known_features() -> dict[str, pa.DataType]:
    """Every feature that a model may name; timestamps are stored for what is computed from them, not as inputs."""
    views = importlib.import_module("feature_repo.definitions").build(Path("lake"), ()).views
    kinds = {(v.name, f.name): f.dtype.to_value_type().name for v in views for f in v.features}
    return {f"{view}:{name}": _ARROW[kind] for (view, name), kind in kinds.items() if kind in _ARROW}


def _label_problems(file: Path, model: Model, tables: Tables) -> Iterator[str]:
    table, column = model.label.table, model.label.column
    if table not in tables:
        yield _problem(file, ("label", "table"), "table", table, tables)
    elif column is not None and column not in tables[table]:
        yield _problem(file, ("label", "column"), f"column of {table}", column, tables[table])


def _problem(file: Path, loc: Loc, what: str, found: str, known: Iterable[str], allowed: str | None = None) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(found, names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{file}:{line_of(file, loc)}: found unknown {what} {found!r}{hint}, allowed is " + (
        allowed or f"one of {', '.join(names)}"
    )
