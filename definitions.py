"""Headwater's code location: composes, decides nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets.checks import gate_checks
from assets.dbt_manifest import read_manifest
from assets.deployments import deployment_assets
from assets.features import online_features
from assets.models import model_assets
from assets.monitoring import monitoring_assets
from assets.predictions import prediction_assets
from assets.raw import raw_assets, stream_assets
from assets.tables import dbt_tables
from catalog.load import Catalog, load_catalog
from catalog.settings import Settings, load_settings
from resources.platform import platform_resource
from resources.progress import progress_logger
from sensors.changes import build_change_sensor
from sensors.drift import build_drift_sensor
from sensors.lag import build_lag_sensor, lag_checks

__all__ = ["build_defs", "defs"]


def build_defs(
    settings: Settings, catalog: Catalog | None = None, *, resources: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """The whole asset graph for these settings; `resources` replaces what the assets are given (tests)."""
    catalog = catalog or load_catalog(settings.catalog)
    return dg.Definitions(
        assets=[
            stream_assets(catalog, settings),
            *raw_assets(catalog),
            *dbt_tables(read_manifest(settings.warehouse_path)),
            online_features(catalog),
            *(asset for model in catalog.models for asset in model_assets(model)),
            *(asset for model in catalog.models for asset in deployment_assets(model)),
            *(asset for model in catalog.models for asset in prediction_assets(model)),
            *(asset for model in catalog.models for asset in monitoring_assets(model)),
        ],
        asset_checks=[*gate_checks(catalog), lag_checks(catalog)],
        sensors=[build(catalog, settings) for build in (build_change_sensor, build_drift_sensor, build_lag_sensor)],
        resources=resources or {"platform": platform_resource(settings, catalog)},
        loggers={"console": dg.colored_console_logger, "progress": progress_logger},
        executor=dg.in_process_executor,
    )


defs = build_defs(load_settings(os.environ))
