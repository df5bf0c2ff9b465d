"""Column schema and column lineage of the tables that dbt makes, as Dagster shows them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from catalog.keys import Key
from lake.column_lineage import SourceColumn

__all__ = ["column_metadata"]


def column_metadata(
    manifest: Mapping[str, Any],
    asset_key: Callable[[Mapping[str, Any]], dg.AssetKey],
    warehouse_path: Path,
    tables: Sequence[Key],
) -> dict[Key, dict[str, Any]]:
    """Dagster metadata for each of `tables`: types from the warehouse, descriptions and SQL from dbt's manifest."""
    from lake.column_lineage import column_lineage
    from lake.warehouse import relation_types

    nodes = {name: n for name, n in manifest["nodes"].items() if n["resource_type"] == "model"} | manifest["sources"]
    keys = {name: Key(*asset_key(node).path) for name, node in nodes.items()}
    needed = {k for n, key in keys.items() if key in tables for k in (key, *(keys[i] for i in _inputs(nodes[n])))}
    types = relation_types(warehouse_path, sorted(needed))
    found = {}
    for name, key in keys.items():
        if key in tables:
            node, inputs = nodes[name], [keys[i] for i in _inputs(nodes[name])]
            lineage = column_lineage(node["compiled_code"], {(k.group, k.name): types[k] for k in inputs})
            found[key] = {
                "dagster/column_schema": _schema(node, types[key]),
                "dagster/column_lineage": _lineage(lineage, inputs),
            }
    return found


def _inputs(node: Mapping[str, Any]) -> Sequence[str]:
    return list(node["depends_on"]["nodes"])


def _schema(node: Mapping[str, Any], types: Mapping[str, str]) -> Any:
    columns = [
        dg.TableColumn(name, kind.lower(), description=node["columns"].get(name, {}).get("description"))
        for name, kind in types.items()
    ]
    return dg.MetadataValue.table_schema(dg.TableSchema(columns))


def _lineage(lineage: Mapping[str, Sequence[SourceColumn]], inputs: Sequence[Key]) -> Any:
    by_relation = {(k.group, k.name): dg.AssetKey(k.path) for k in inputs}
    deps = {
        name: [dg.TableColumnDep(by_relation[s.schema, s.table], s.column) for s in sources]
        for name, sources in lineage.items()
    }
    return dg.MetadataValue.column_lineage(dg.TableColumnLineage(deps))
