"""The tables that dbt makes: staging and marts in one step, feature tables in another (the marts' gates lie between).

dbt works in a DuckDB file of its own; what it made is then published to the lake, where everybody else reads it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, DbtCliResource, dbt_assets

from assets.build import Stopwatch, code_version, forced
from assets.checks import packed_check, unpacked_check
from assets.column_metadata import column_metadata
from assets.dbt_manifest import DBT_PROJECT, dbt_executable
from catalog.keys import Key
from lake.ledger import fingerprint
from resources.platform import Platform

if TYPE_CHECKING:
    from lake.warehouse import Published

__all__ = ["dbt_tables"]


class _Translator(DagsterDbtTranslator):
    """A table's asset key is its folder and alias: models/marts/sales/... -> marts/sales/orders."""

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        props = dbt_resource_props
        if props["resource_type"] == "source":
            return dg.AssetKey(Key("raw", props["source_name"].removeprefix("raw_"), props["name"]).path)
        layer, subject = props["fqn"][1:3]
        return dg.AssetKey(Key(layer, subject, props.get("alias") or props["name"]).path)

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        return Key(*self.get_asset_key(dbt_resource_props).path).group

    def get_description(self, dbt_resource_props: Mapping[str, Any]) -> str:
        return str(dbt_resource_props.get("description", "")).strip()


def dbt_tables(manifest: Path) -> list[dg.AssetsDefinition]:
    """The two dbt steps."""
    translator = _Translator(DagsterDbtTranslatorSettings(enable_code_references=False))

    @dbt_assets(
        manifest=manifest,
        name="tables",
        select="fqn:headwater.staging fqn:headwater.marts",
        dagster_dbt_translator=translator,
    )
    def tables(context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]) -> Iterator[Any]:
        yield from _build(context, platform, translator)

    @dbt_assets(
        manifest=manifest,
        name="feature_tables",
        select="fqn:headwater.features",
        dagster_dbt_translator=translator,
    )
    def feature_tables(context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]) -> Iterator[Any]:
        yield from _build(context, platform, translator)

    return [tables, feature_tables]


def _build(context: dg.AssetExecutionContext, platform: Platform, translator: _Translator) -> Iterator[Any]:
    """Report the last build when nothing upstream changed, else run dbt, publish to the lake and report that."""
    watch = Stopwatch()
    selected = sorted(Key(*key.path) for key in context.selected_asset_keys)
    upstream = sorted(Key(*k.path) for k in context.assets_def.dependency_keys if k not in context.selected_asset_keys)
    # A run of some of the tables is a build of its own: it says nothing about the others.
    name = f"{context.op.name}:{fingerprint({'tables': [k.slashed for k in selected]})[:12]}"
    wanted = fingerprint(
        {"code": code_version("dbt_project", "lake"), **{k.slashed: platform.lake.version(k) for k in upstream}}
    )
    # The warehouse is scratch and may have been deleted: then the tables are made again.
    kept = platform.settings.warehouse_path.exists() and not forced(context)
    last = platform.ledger.unchanged(name, wanted) if kept else None
    if last is None:
        reports = _run_dbt(context, platform, translator, upstream, selected)
        platform.ledger.record(name, wanted, {"version": wanted[:16], "reports": reports})
    else:
        reports = list(last.outcome["reports"])
    used = {k: round(v / max(1, len(selected)), 3) for k, v in watch.metadata().items()}
    for report in reports:
        yield _event(report, {"rebuilt": last is None, **used})


def _run_dbt(
    context: dg.AssetExecutionContext,
    platform: Platform,
    translator: _Translator,
    upstream: Sequence[Key],
    selected: Sequence[Key],
) -> list[dict[str, Any]]:
    """One `dbt build`; returns what each table and test reported, serialised as the ledger keeps it."""
    from lake.warehouse import publish, refresh_sources

    settings = platform.settings
    refresh_sources(settings.warehouse_path, platform.lake, [k for k in upstream if k.layer == "raw"])
    os.environ["DBT_WAREHOUSE_PATH"] = str(settings.warehouse_path)  # dbt's profile reads it, here and in the child
    dbt = DbtCliResource(project_dir=str(DBT_PROJECT), profiles_dir=str(DBT_PROJECT), dbt_executable=dbt_executable())
    # A target folder of its own beside the data: the second step and the next run reuse the first one's parse.
    target = settings.home / "dbt" / "target"
    invocation = dbt.cli(["build"], context=context, dagster_dbt_translator=translator, target_path=target)
    events = list(invocation.stream())
    published = publish(settings.warehouse_path, platform.lake, selected)
    compiled = invocation.get_artifact("manifest.json")
    columns = column_metadata(compiled, translator.get_asset_key, settings.warehouse_path, selected)
    reports = [_packed(context, event, published, columns) for event in events]
    if missing := {key.slashed for key in selected} - {r["table"] for r in reports if "version" in r}:
        raise dg.Failure(f"dbt reported nothing of {', '.join(sorted(missing))}")
    return reports


def _packed(
    context: dg.AssetExecutionContext,
    event: Any,
    published: Mapping[Key, "Published"],
    columns: Mapping[Key, Mapping[str, Any]],
) -> dict[str, Any]:
    if isinstance(event, dg.AssetCheckResult):
        return packed_check(event)
    key = Key(*context.asset_key_for_output(event.output_name).path)
    metadata: dict[str, Any] = {
        **event.metadata,
        **columns[key],
        "dagster/row_count": dg.MetadataValue.int(published[key].rows),
    }
    return {
        "table": key.slashed,
        "version": f"delta-{published[key].version}",
        "metadata": dg.serialize_value(metadata),
    }


def _event(report: Mapping[str, Any], extra: Mapping[str, Any]) -> Any:
    if "check" in report:
        return unpacked_check(report)
    return dg.MaterializeResult(
        asset_key=dg.AssetKey(Key.parse(report["table"]).path),
        metadata={**dg.deserialize_value(report["metadata"], dict), **extra},
        data_version=dg.DataVersion(report["version"]),
    )
