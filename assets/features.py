"""The online feature store as an asset: what serving reads, packed from the feature tables."""

from typing import Any

import dagster as dg

from assets.build import Built, build, code_version
from catalog.keys import Key
from catalog.load import Catalog
from resources.platform import Platform

__all__ = ["FEATURE_TABLES", "ONLINE", "online_features"]

FEATURE_TABLES = (Key("features", "customer", "activity"), Key("features", "customer", "profile"))
_CODE = ("ml/online_store.py", "ml/online_writer.py", "ml/packed.py", "ml/point_in_time.py", "feature_repo")
ONLINE = Key("features", "customer", "online")


def online_features(catalog: Catalog) -> dg.AssetsDefinition:
    """One asset: the online store of every feature view."""

    @dg.asset(
        key=ONLINE.path,
        group_name=ONLINE.group,
        deps=[key.path for key in FEATURE_TABLES],
        description="Each customer's change points of every feature, so that a read at any later instant is exact.",
        owners=["team:data-science"],
        kinds={"feast", "sqlite"},
        tags={"domain": "customers"},
        code_version=code_version(*_CODE),
    )
    def online(context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]) -> dg.MaterializeResult[Any]:
        from ml.features import materialize_online, online_views

        now = platform.clock.now()
        tables = {key.slashed: platform.lake.version(key) for key in FEATURE_TABLES}

        def made() -> Built:
            views = online_views(platform.feature_store)
            written = materialize_online(platform.lake, platform.settings.online_path, views, now)
            return Built("+".join(f"{k.split('/')[-1]}-{v}" for k, v in tables.items()), {"rows": written})

        depends = {"code": code_version(*_CODE), "now": now, **tables}
        return build(context, platform, ONLINE, depends, made)

    return online
