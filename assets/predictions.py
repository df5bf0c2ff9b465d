"""What a model predicts: batch scores of every known customer, and the predictions that its endpoint served."""

from typing import Any

import dagster as dg

from assets.build import Built, build, code_version, versions
from assets.features import FEATURE_TABLES
from catalog import keys
from catalog.keys import Key
from catalog.spec import Model
from resources.platform import Platform

__all__ = ["prediction_assets"]

_CUSTOMERS = Key("marts", "sales", "customers")


def prediction_assets(model: Model) -> list[dg.AssetsDefinition]:
    """Scores and served predictions of one model."""
    return [_scores(model), _served(model)]


def _scores(model: Model) -> dg.AssetsDefinition:
    key, endpoint = keys.scores(model.name), keys.endpoint(model.name)

    @dg.asset(
        key=key.path,
        group_name=key.group,
        deps=[k.path for k in (endpoint, *FEATURE_TABLES, _CUSTOMERS)],
        owners=[model.owner],
        kinds={"deltalake"},
        tags={"domain": model.domain},
        description=f"Every known customer scored by the champion as of now. {model.description}",
        code_version=code_version("ml/scoring.py"),
    )
    def scores(context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]) -> dg.MaterializeResult[Any]:
        now = platform.clock.now()

        def made() -> Built:
            from ml.features import historical
            from ml.predictor import MissingPackage, current_folder, load_package
            from ml.scoring import batch_scores, known_customers

            try:
                predictor = load_package(current_folder(platform.settings.endpoints_dir, model.name))
            except MissingPackage as reason:  # new changes land also while no version was ever promoted
                return Built("none", {"not_deployed": str(reason)})
            customers, store = known_customers(platform.lake), platform.feature_store
            table = batch_scores(predictor, lambda name, rows: historical(store, name, rows), customers, now)
            version = platform.lake.overwrite(key, table)
            return Built(f"delta-{version}", {"rows": table.num_rows, "model_version": predictor.version})

        tables = {k.slashed: platform.lake.version(k) for k in (*FEATURE_TABLES, _CUSTOMERS)}
        code = code_version("ml/scoring.py", "ml/predictor.py", "ml/point_in_time.py")
        depends = {"code": code, "now": now, **tables, **versions(platform, [endpoint])}
        return build(context, platform, key, depends, made)

    return scores


def _served(model: Model) -> dg.AssetsDefinition:
    key = keys.served(model.name)

    @dg.asset(
        key=key.path,
        group_name=key.group,
        deps=[keys.endpoint(model.name).path],
        owners=[model.owner],
        kinds={"deltalake"},
        tags={"domain": model.domain},
        description=f"Every prediction that the endpoint of {model.name} served, with its version and features.",
        code_version=code_version("streaming/landing.py"),
    )
    def served(context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]) -> dg.MaterializeResult[Any]:
        from streaming.landing import land_served

        report = land_served(model.name, platform.log, platform.lake)

        def landed() -> Built:
            return Built(f"delta-{report.version}", {"rows": platform.lake.rows(key)})

        return build(context, platform, key, {"version": report.version}, landed)

    return served
