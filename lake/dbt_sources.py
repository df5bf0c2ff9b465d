"""dbt's declaration of the raw tables, written from the catalog's sources so that a source is declared once.

`python -m lake.dbt_sources` rewrites `dbt_project/models/sources.yml`; with `--check` it only says whether the file is
up to date (exit 1 when not). Nothing here knows how a raw table is filled.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from catalog.column_types import parse_type
from catalog.load import load_catalog
from catalog.settings import CATALOG_DIR
from catalog.spec import Source
from lake.schema import DBT_PROJECT_DIR, HISTORY_COLUMNS, sql_type

__all__ = ["SOURCES_PATH", "main", "sources_yaml"]

SOURCES_PATH = DBT_PROJECT_DIR / "models" / "sources.yml"
_HEADER = "# Written by `python -m lake.dbt_sources` from catalog/sources: change it there.\n"


def sources_yaml(sources: Sequence[Source]) -> str:
    """The text of dbt's sources file: one dbt source for each system, one table for each source."""
    systems = sorted({s.system for s in sources})
    tree = {"version": 2, "sources": [_system(name, [s for s in sources if s.system == name]) for name in systems]}
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(tree, text)
    return _HEADER + text.getvalue()


def _system(name: str, sources: Sequence[Source]) -> dict[str, Any]:
    return {
        "name": f"raw_{name}",
        "schema": f"raw_{name}",
        "description": f"Append-only histories of the changes of {name}, views over the lake.",
        "tables": [_table(s) for s in sources],
    }


def _table(source: Source) -> dict[str, Any]:
    columns = (*source.columns, *HISTORY_COLUMNS)
    return {
        "name": source.table,
        "description": source.description,
        "config": {"meta": {"dagster": {"asset_key": ["raw", source.system, source.table]}}},
        "columns": [
            {"name": c.name, "data_type": sql_type(parse_type(c.type)).lower(), "description": c.description}
            for c in columns
        ],
    }


def main(arguments: Sequence[str], path: Path = SOURCES_PATH) -> int:
    """Write the file, or with `--check` compare it. Returns the exit status."""
    wanted = sources_yaml(load_catalog(CATALOG_DIR).sources)
    if "--check" not in arguments:
        path.write_text(wanted, encoding="utf-8")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{path.name} is not what catalog/sources says: run `python -m lake.dbt_sources`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
