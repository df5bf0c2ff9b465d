"""Column schema and column lineage of the tables that dbt makes, as Dagster shows them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from assets.dbt_manifest import DbtTable
from catalog.keys import Key
from lake.column_lineage import SourceColumn

__all__ = ["column_metadata"]


def column_metadata(
    tables: Iterable[DbtTable], compiled: Mapping[str, str], warehouse_path: Path
) -> dict[Key, dict[str, Any]]:
    """Dagster metadata for each table: types from the warehouse, descriptions from dbt, lineage from `compiled` SQL
    (by dbt's node name)."""
    from lake.column_lineage import column_lineage
    from lake.warehouse import relation_types

    tables = list(tables)
    types = relation_types(warehouse_path, sorted({key for t in tables for key in (t.key, *t.inputs)}))
    found = {}
    for table in tables:
        lineage = column_lineage(compiled[table.node], {(k.group, k.name): types[k] for k in table.inputs})
        found[table.key] = {
            "dagster/column_schema": _schema(table, types[table.key]),
            "dagster/column_lineage": _lineage(lineage, table.inputs),
        }
    return found


def _schema(table: DbtTable, types: Mapping[str, str]) -> Any:
    columns = [dg.TableColumn(n, kind.lower(), table.column_descriptions.get(n)) for n, kind in types.items()]
    return dg.MetadataValue.table_schema(dg.TableSchema(columns))


def _lineage(lineage: Mapping[str, Sequence[SourceColumn]], inputs: Sequence[Key]) -> Any:
    by_relation = {(k.group, k.name): dg.AssetKey(k.path) for k in inputs}
    deps = {
        name: [dg.TableColumnDep(by_relation[s.schema, s.table], s.column) for s in sources]
        for name, sources in lineage.items()
    }
    return dg.MetadataValue.column_lineage(dg.TableColumnLineage(deps))
