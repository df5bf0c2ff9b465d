"""`headwater check`: everything that can be wrong in settings and declarations, found without running anything.

`catalog.load` says what is wrong within a file; here is what is wrong between files: a feature, algorithm, table,
column or expectation that is named and does not exist, an argument that it does not take, a folder or a file that is
not there. Each problem is `file:line: found ..., allowed is ...`. `headwater run` refuses the same catalogs
(`require_sound`), so nothing here imports Feast or Great Expectations, which take seconds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from catalog.load import CatalogError, Declared, Reading, read_declarations
from catalog.problems import Finding, Loc, Problem, nearest
from catalog.settings import CATALOG_DIR, Settings, SettingsError, load_settings
from catalog.spec import Expectation, Gate, Model, Source, Spec

__all__ = ["catalog_problems", "problems", "require_sound"]

PROJECT = CATALOG_DIR.parent
DBT_MODELS = PROJECT / "dbt_project" / "models"
# What the outcome of a check depends on, beside the declarations themselves.
_CODE = ("catalog", "dbt_project/models", "feature_repo/views.py", "headwater/check.py", "lake", "ml")
_PACKAGES = ("great-expectations", "lightgbm", "scikit-learn")
_FOLDERS = {"sources": "captured table", "gates": "gated table", "models": "model"}
_ARROW = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us"),
}

Tables = Mapping[str, Sequence[str] | None]
"""The columns of every table there is; None where its own declaration is broken."""

Rule = Callable[[], Iterator[Finding]]


def problems(environ: Mapping[str, str]) -> list[str]:
    """Every problem there is, one line each, settings first, then by file and line; empty when all is well."""
    found: list[str] = []
    try:
        directory = load_settings(environ).catalog
    except SettingsError as error:
        found += error.problems
        directory = Path(environ.get("HEADWATER_CATALOG") or CATALOG_DIR)
    if directory.is_dir():
        found += (str(problem) for problem in catalog_problems(directory))
    return found


def require_sound(settings: Settings) -> None:
    """Raise CatalogError when anything is wrong with the catalog.

    A catalog that was found sound is not looked at again before it, Headwater or a package changes: importing
    scikit-learn for what its estimators take costs as much as a third of a run without anything new.
    """
    digest, mark = _digest(settings.catalog), settings.home / "catalog.checked"
    if mark.is_file() and mark.read_text() == digest:
        return
    if found := catalog_problems(settings.catalog):
        raise CatalogError(found)
    settings.home.mkdir(parents=True, exist_ok=True)
    mark.write_text(digest)


def catalog_problems(directory: Path) -> list[Problem]:
    """Every problem of the declarations below `directory`, by file and line."""
    reading = read_declarations(directory)
    return sorted({*_folder_problems(directory), *reading.problems, *_reference_problems(directory, reading)})


def _digest(directory: Path) -> str:
    digest = hashlib.sha256(" ".join(version(package) for package in _PACKAGES).encode())
    for root in (*(directory / folder for folder in _FOLDERS), *(PROJECT / part for part in _CODE)):
        for file in [root] if root.is_file() else sorted(root.rglob("*")):
            if file.suffix in (".yaml", ".yml", ".py", ".sql") and file.is_file():
                digest.update(str(file).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _folder_problems(directory: Path) -> Iterator[Problem]:
    for folder, what in _FOLDERS.items():
        path = directory / folder
        if not _files(path):
            found = "no *.yaml file in it" if path.is_dir() else "no such directory"
            yield Problem(str(path), 1, f"found {found}, allowed is one with a YAML file for each {what}")


def _files(folder: Path) -> list[Path]:
    return [*folder.glob("*.yaml"), *folder.glob("*.yml")]


def _reference_problems(directory: Path, reading: Reading) -> Iterator[Problem]:
    """What the declarations refer to, and what refers to them."""
    tables = {**_raw_tables(reading.sources), **_dbt_tables()}
    for source in reading.sources:
        rules = _expectation_rules(("gate",), getattr(source.spec, "gate", None))
        yield from _judged(source, *rules)
    for gate in reading.gates:
        yield from _judged(gate, partial(_gate_findings, gate.spec, tables), *_expectation_rules((), gate.spec))
    for model in reading.models:
        yield from _judged(model, *_model_rules(model.spec, tables))
    if reading.sources:
        yield from _missing_sources(directory / "sources", reading.sources)


def _judged(declared: Declared[Spec], *rules: Rule) -> Iterator[Problem]:
    """What the rules find; in a broken declaration, as far as they get without what is broken."""
    findings: list[Finding] = []
    for rule in rules:
        try:
            for finding in rule():
                findings.append(finding)
        except AttributeError:
            if not declared.findings:
                raise
    yield from declared.problems(findings)


def _raw_tables(sources: Iterable[Declared[Source]]) -> dict[str, Sequence[str] | None]:
    return {
        f"raw/{declared.name('system')}/{declared.name('table')}": None
        if declared.findings
        else [column.name for column in declared.spec.columns]
        for declared in sources
    }


@cache
def _dbt_tables() -> dict[str, Sequence[str] | None]:
    """dbt's tables with their columns, from the files that describe them."""
    from ruamel.yaml import YAML

    tables: dict[str, Sequence[str] | None] = {}
    for file in sorted(DBT_MODELS.glob("*/*/*.yml")):
        layer, subject = file.parent.parent.name, file.parent.name
        for table in YAML(typ="safe").load(file).get("models", []):
            name = table["name"].removeprefix(f"{layer}_{subject}__")
            tables[f"{layer}/{subject}/{name}"] = [c["name"] for c in table.get("columns", [])]
    return tables


def _missing_sources(folder: Path, sources: Sequence[Declared[Source]]) -> Iterator[Problem]:
    """dbt's references to captured tables that nobody declares; a broken file still counts as a declaration."""
    declared = {(d.name("system"), d.name("table")) for d in sources}
    there = {file.stem for file in _files(folder)} - {d.file.path.stem for d in sources if not d.findings}
    names = ", ".join(sorted(f"{system}.{table}" for system, table in declared if system and table))
    for file in sorted(DBT_MODELS.rglob("*.sql")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            for system, table in re.findall(r"source\(\s*'raw_(\w+)'\s*,\s*'(\w+)'\s*\)", line):
                if (system, table) not in declared and table not in there:
                    text = f"found captured table {system}.{table}, which no file declares (looked for {folder}/"
                    yield Problem(str(file), number, f"{text}{table}.yaml), allowed is one of {names}")


def _expectation_rules(at: Loc, gate: Gate | None) -> list[Rule]:
    declared = enumerate(getattr(gate, "expectations", ()))
    return [partial(_expectation_findings, (*at, "expectations", n), expectation) for n, expectation in declared]


def _expectation_findings(at: Loc, expectation: Expectation) -> Iterator[Finding]:
    from lake.expectation_arguments import expectation_findings

    for finding in expectation_findings(expectation):
        yield Finding((*at, *finding.loc), finding.text)


def _gate_findings(gate: Gate, tables: Tables) -> Iterator[Finding]:
    if gate.table is None:
        return  # already reported
    if gate.table not in tables:
        yield _unknown(("table",), "table", gate.table, tables)
        return
    if gate.table.startswith("raw/"):
        text = (
            f"found table {gate.table!r}, allowed is a table of dbt's: the gate of a raw table is in its source's file"
        )
        yield Finding(("table",), text)
    for loc, column in gate.columns():
        yield from _column_findings(loc, gate.table, column, tables)


def _model_rules(model: Model, tables: Tables) -> list[Rule]:
    from ml.algorithms import algorithm_findings

    return [
        partial(_feature_findings, model),
        partial(_slice_findings, model),
        partial(_label_findings, model, tables),
        partial(algorithm_findings, model),
    ]


def _feature_findings(model: Model) -> Iterator[Finding]:
    from feature_repo.views import model_inputs

    for position, reference in enumerate(model.features):
        if reference not in model_inputs():
            yield _unknown(("features", position), "feature", reference, model_inputs())


def _slice_findings(model: Model) -> Iterator[Finding]:
    from feature_repo.views import model_inputs
    from ml.evaluation import slice_findings

    types = model_inputs()
    # An unknown feature is reported where it is listed; a condition may be about the one that was meant.
    named = model.features if set(model.features) <= types.keys() else types
    yield from slice_findings(model, pa.schema([(ref.partition(":")[2], _ARROW[types[ref]]) for ref in named]))


def _label_findings(model: Model, tables: Tables) -> Iterator[Finding]:
    table, column = model.label.table, model.label.column
    if table not in tables:
        yield _unknown(("label", "table"), "table", table, tables)
    elif column is not None:
        yield from _column_findings(("label", "column"), table, column, tables)


def _column_findings(loc: Loc, table: str, column: str, tables: Tables) -> Iterator[Finding]:
    columns = tables[table]
    if columns is not None and column not in columns:
        yield _unknown(loc, f"column of {table}", column, columns)


def _unknown(loc: Loc, what: str, found: str, known: Iterable[str]) -> Finding:
    names = sorted(known)
    text = f"found unknown {what} {found!r}{nearest(found, names)}, allowed is one of {', '.join(names)}"
    return Finding(loc, text)
