"""What serves a model: the champion's package, verified and switched to."""

from typing import Any

import dagster as dg

from assets.build import Built, build, code_version, versions
from assets.features import ONLINE
from catalog import keys
from catalog.spec import Model
from resources.platform import Platform

__all__ = ["deployment_assets"]


def deployment_assets(model: Model) -> list[dg.AssetsDefinition]:
    """The endpoint of one model."""
    key, upstream = keys.endpoint(model.name), keys.champion(model.name)

    @dg.asset(
        key=key.path,
        group_name=key.group,
        deps=[upstream.path, ONLINE.path],
        owners=[model.owner],
        kinds={"fastapi"},
        tags={"domain": model.domain},
        description=f"The served package of {model.name}: verified on golden rows, then switched to atomically.",
        code_version=code_version("ml/deployment.py", "ml/predictor.py"),
    )
    def endpoint(context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]) -> dg.MaterializeResult[Any]:
        def made() -> Built:
            from ml.registry import Registry

            found = Registry.open(platform.settings).deploy_champion(model.name, platform.settings.endpoints_dir)
            metadata = {"model_version": found.version, "previous": found.previous, "golden_rows": found.golden_rows}
            return Built(f"{model.name}-{found.version}", {**metadata, "package_path": str(found.folder)})

        depends = {"code": code_version("ml/deployment.py", "ml/predictor.py"), **versions(platform, [upstream])}
        return build(context, platform, key, depends, made)

    return [endpoint]
