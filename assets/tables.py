"""The tables that dbt makes: staging and marts in one step, feature tables in another (the marts' gates lie between).

dbt works in a DuckDB file of its own; what it made is then published to the lake, where everybody else reads it.
dagster-dbt runs it, and is imported only when it runs.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from assets.build import Stopwatch, code_version, forced
from assets.checks import unpacked_check
from assets.column_metadata import column_metadata
from assets.dbt_manifest import DBT_PROJECT, PARTIAL_PARSE, DbtTable, DbtTest, Manifest, dbt_executable
from catalog.keys import Key
from lake.ledger import fingerprint
from resources.platform import Platform
from streaming.locks import exclusive

__all__ = ["dbt_tables"]

_BUSY_S, _BUSY_STEP_S = 120.0, 0.5


@dataclass(frozen=True)
class _DbtRun:
    """What one `dbt build` did: the results by node, and the log's last lines for a failure's message."""

    results: Mapping[str, Mapping[str, Any]]

    def succeeded(self, node: str) -> bool:
        return node in self.results and self.results[node]["status"] in ("success", "pass")

    def failures(self) -> list[str]:
        """Each table that failed or was left out, with dbt's message."""
        return [
            f"{name.split('.')[2]}: {r['message'] or r['status']}"
            for name, r in self.results.items()
            if r["status"] in ("error", "fail", "skipped", "runtime error") and name.startswith("model.")
        ]


def dbt_tables(manifest: Manifest) -> list[dg.AssetsDefinition]:
    """The two dbt steps."""
    return [
        _step("tables", manifest.of_layers("staging", "marts")),
        _step("feature_tables", manifest.of_layers("features")),
    ]


def _step(name: str, part: Manifest) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name=name,
        specs=[_asset_spec(t) for t in part.tables],
        check_specs=[_check_spec(t) for t in part.tests],
        can_subset=True,
    )
    def step(context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]) -> Iterator[Any]:
        selected = {Key(*key.path) for key in context.selected_asset_keys}
        tables = [t for t in part.tables if t.key in selected]
        checks = {(Key(*k.asset_key.path), k.name) for k in context.selected_asset_check_keys}
        tests = [t for t in part.tests if (t.table, t.name) in checks]
        yield from _build(context, platform, tables, tests)

    return step


def _asset_spec(table: DbtTable) -> dg.AssetSpec:
    return dg.AssetSpec(
        table.key.path,
        deps=[k.path for k in table.inputs],
        group_name=table.key.group,
        description=table.description,
        owners=list(table.owners),
        kinds={"dbt", "duckdb"},
        code_version=table.checksum,
        skippable=True,
    )


def _check_spec(test: DbtTest) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(test.name, asset=test.table.path, description=test.description, blocking=test.blocking)


def _build(
    context: dg.AssetExecutionContext, platform: Platform, tables: Sequence[DbtTable], tests: Sequence[DbtTest]
) -> Iterator[Any]:
    """Report the last build when nothing upstream changed, else run dbt, publish to the lake and report that."""
    watch = Stopwatch()
    made = {t.key for t in tables}
    upstream = sorted({k for t in tables for k in t.inputs} - made)
    # A run of some of the tables is a build of its own: it says nothing about the others.
    name = f"{context.op.name}:{fingerprint({'tables': sorted(t.key.slashed for t in tables)})[:12]}"
    wanted = fingerprint(
        {
            "code": code_version("dbt_project", "lake", "assets"),
            **{k.slashed: platform.lake.version(k) for k in upstream},
        }
    )
    run = None
    # One run at a time works in the warehouse; what the other one has made meanwhile is not made again.
    with exclusive(platform.settings.locks_dir / "warehouse.lock"):
        # The warehouse is scratch and may have been deleted: then the tables are made again.
        kept = platform.settings.warehouse_path.exists() and not forced(context)
        if kept and (last := platform.ledger.unchanged(name, wanted)):
            reports = list(last.outcome["reports"])
        else:
            run = _run_dbt(context, platform, tables, tests, [k for k in upstream if k.layer == "raw"])
            reports = _reports(platform, tables, tests, run)
            if not run.failures():
                platform.ledger.record(name, wanted, {"version": wanted[:16], "reports": reports})
    used = {k: round(v / max(1, len(tables)), 3) for k, v in watch.metadata().items()}
    for report in reports:
        yield _event(report, {"rebuilt": run is not None, **used})
    if run and (failed := run.failures()):
        raise dg.Failure("dbt: " + "; ".join(failed), allow_retries=False)


def _run_dbt(
    context: dg.AssetExecutionContext,
    platform: Platform,
    tables: Sequence[DbtTable],
    tests: Sequence[DbtTest],
    sources: Sequence[Key],
) -> _DbtRun:
    """One `dbt build` of these tables and tests over the raw tables as they are now."""
    from assets.dbt_command import DbtCommand
    from lake.warehouse import refresh_sources

    settings = platform.settings
    _when_free(lambda: refresh_sources(settings.warehouse_path, platform.lake, sources))
    os.environ["DBT_WAREHOUSE_PATH"] = str(settings.warehouse_path)  # dbt's profile reads it
    project = str(DBT_PROJECT)
    dbt = DbtCommand(
        project_dir=project, profiles_dir=project, dbt_executable=dbt_executable(), global_config_flags=["--quiet"]
    )
    chosen = " ".join(node.split(".")[2] for node in [*(t.node for t in tables), *(t.node for t in tests)])
    # A target folder of its own beside the data: the second step and the next run reuse the first one's parse.
    target = settings.home / "dbt" / "target"
    if not target.exists() and PARTIAL_PARSE.exists():
        target.mkdir(parents=True)
        shutil.copy(PARTIAL_PARSE, target)
    (target / "run_results.json").unlink(missing_ok=True)  # an earlier run's must not be taken for this one's
    arguments = ["build", "--select", chosen, "--indirect-selection", "empty"]
    invocation = dbt.cli(arguments, target_path=target, raise_on_error=False).wait()
    if not (target / "run_results.json").is_file() or invocation.process.returncode not in (0, 1):
        raise dg.Failure(f"dbt could not start: {invocation.get_error()}", allow_retries=False)
    results = {r["unique_id"]: r for r in invocation.get_artifact("run_results.json")["results"]}
    if missing := sorted({t.node for t in tables} - set(results)):
        raise dg.Failure(f"dbt reported nothing of {', '.join(missing)}: {invocation.get_error()}")
    return _DbtRun(results)


def _when_free(work: Callable[[], None]) -> None:
    """Do it once the warehouse is free: when a run is killed, its dbt goes on for some seconds and holds the file."""
    from lake.warehouse import WarehouseBusyError

    for _ in range(int(_BUSY_S / _BUSY_STEP_S)):
        try:
            return work()
        except WarehouseBusyError:
            time.sleep(_BUSY_STEP_S)
    work()


def _reports(
    platform: Platform, tables: Sequence[DbtTable], tests: Sequence[DbtTest], run: _DbtRun
) -> list[dict[str, Any]]:
    """Publish what was built; what each table and test reports, as the ledger keeps it."""
    from lake.warehouse import publish

    by_node = {t.node: t for t in tables}
    built = [by_node[node] for node in run.results if node in by_node and run.succeeded(node)]  # inputs come first
    path = platform.settings.warehouse_path
    published = publish(path, platform.lake, [t.key for t in built])
    columns = column_metadata(built, {t.node: run.results[t.node]["compiled_code"] for t in built}, path)
    reports: list[dict[str, Any]] = []
    for table in built:
        found = published[table.key]
        metadata: dict[str, Any] = {
            **columns[table.key],
            "dagster/row_count": dg.MetadataValue.int(found.rows),
            "dbt_s": dg.MetadataValue.float(round(run.results[table.node]["execution_time"], 3)),
        }
        shown = dg.serialize_value(metadata)
        reports.append({"table": table.key.slashed, "version": f"delta-{found.version}", "metadata": shown})
    return reports + [_tested(t, run) for t in tests if t.node in run.results]


def _tested(test: DbtTest, run: _DbtRun) -> dict[str, Any]:
    result = run.results[test.node]
    return {
        "check": test.name,
        "table": test.table.slashed,
        "passed": run.succeeded(test.node),
        "severity": "block" if test.blocking else "warn",
        "message": f"{test.table}: {result['message']}" if result["message"] else "",
        "metadata": {"failures": result["failures"] or 0, "dbt_status": result["status"]},
    }


def _event(report: Mapping[str, Any], extra: Mapping[str, Any]) -> Any:
    if "check" in report:
        return unpacked_check(report)
    return dg.MaterializeResult(
        asset_key=dg.AssetKey(Key.parse(report["table"]).path),
        metadata={**dg.deserialize_value(report["metadata"], dict), **extra},
        data_version=dg.DataVersion(report["version"]),
    )
