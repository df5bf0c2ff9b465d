"""Whether what a model sees and predicts has moved away from what it was trained on."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import dagster as dg

from assets.build import Built, build, code_version, versions
from assets.features import FEATURE_TABLES
from catalog import keys
from catalog.keys import Key
from catalog.spec import Model
from resources.platform import Platform

__all__ = ["monitoring_assets"]

_LINES = Key("marts", "sales", "customer_lines")
_CODE = ("ml/drift.py", "ml/drift_reference.py", "ml/drift_windows.py", "ml/drift_status.py", "ml/drift_report.py")


def monitoring_assets(model: Model) -> list[dg.AssetsDefinition]:
    """The drift monitor of one model."""
    key, endpoint, scores = keys.drift(model.name), keys.endpoint(model.name), keys.scores(model.name)

    @dg.asset(
        key=key.path,
        group_name=key.group,
        deps=[k.path for k in (endpoint, scores, keys.served(model.name), *FEATURE_TABLES, _LINES)],
        owners=[model.owner],
        kinds={"evidently", "deltalake"},
        tags={"domain": model.domain},
        description=f"PSI and KL of every feature and of the prediction of {model.name}, window by window.",
        code_version=code_version(*_CODE),
        check_specs=[
            dg.AssetCheckSpec("no_sustained_drift", asset=key.path, description="No breach in k of the last m windows.")
        ],
    )
    def drift(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        tables = {k.slashed: platform.lake.version(k) for k in (*FEATURE_TABLES, _LINES)}
        depends = {
            "code": code_version(*_CODE),
            "policy": model.drift.model_dump(),
            "now": platform.clock.now(),
            **tables,
            **versions(platform, [endpoint]),
        }
        yield build(context, platform, key, depends, lambda: _monitor(platform, model))
        last = platform.ledger.last(key.slashed)
        found = last.outcome["metadata"] if last else {}
        yield dg.AssetCheckResult(
            check_name="no_sustained_drift",
            passed=not found.get("sustained", False),
            severity=dg.AssetCheckSeverity.WARN,
            description=str(found.get("cause", "")),
        )

    return [drift]


def _monitor(platform: Platform, model: Model) -> Built:
    import pyarrow.parquet as pq

    from ml.drift import NoReferenceError, monitor
    from ml.drift_report import write_report
    from ml.features import historical
    from ml.predictor import MissingPackage, current_folder, load_package

    settings, key, store = platform.settings, keys.drift(model.name), platform.feature_store
    try:
        predictor = load_package(current_folder(settings.endpoints_dir, model.name))
    except MissingPackage as reason:
        return Built("none", {"cause": str(reason), "sustained": False})
    directory = settings.home / "monitoring" / model.name / predictor.version
    try:
        report = monitor(
            model,
            predictor.version,
            platform.lake,
            lambda entities: historical(store, model.name, entities),
            predictor.score_table,
            now=platform.clock.now(),
            fixed_at=datetime.fromisoformat(predictor.manifest["provenance"]["trained_at"]),
            directory=directory,
        )
    except NoReferenceError as reason:
        return Built("none", {"cause": str(reason), "sustained": False})
    page = settings.reports_dir / f"{model.name}_drift.html"
    if report.appended or not page.exists():
        reference = pq.read_table(directory / "reference.parquet")
        write_report(report, reference, page, history=platform.lake.read(key))
    return Built(
        f"delta-{platform.lake.version(key)}",
        {
            "rows": platform.lake.rows(key),
            "sustained": report.status.sustained,
            "cause": report.status.cause,
            "summary_md": "\n".join(f"- {line}" for line in report.status.lines()),
            "report_path": str(page),
        },
    )
