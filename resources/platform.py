"""The platform: one place that builds the plain objects from the settings; each works without Dagster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import dagster as dg

from catalog.clock import Clock
from catalog.load import Catalog
from catalog.settings import Settings
from lake import Lake
from lake.ledger import Ledger
from resources.summary import summarise, used, write

if TYPE_CHECKING:
    from streaming.log import ChangeLog

__all__ = ["Platform", "platform_resource"]


@dataclass(frozen=True)
class Platform:
    """What the assets are given: settings, catalog, and the stores that follow from them."""

    settings: Settings
    catalog: Catalog

    @cached_property
    def lake(self) -> Lake:
        return Lake(self.settings.lake_dir, self.settings.lake_version_days)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.ledger_path)

    @cached_property
    def log(self) -> ChangeLog:
        from streaming.open_log import open_log

        return open_log(self.settings)

    @cached_property
    def clock(self) -> Clock:
        return self.settings.clock()

    @cached_property
    def feature_store(self) -> Any:
        """Feast's store with the definitions applied; typed Any because Feast ships no types."""
        from ml.features import open_feature_store

        return open_feature_store(self.settings, self.catalog)


def platform_resource(settings: Settings, catalog: Catalog) -> dg.ResourceDefinition:
    """The platform for the length of a run; when the run ends, however it ends, its summary is written."""

    @dg.resource(description="Settings, catalog, and the stores that follow from them.")
    def platform(context: dg.InitResourceContext) -> Iterator[Platform]:
        started = time.perf_counter()
        yield Platform(settings, catalog)
        if context.instance is not None and context.run is not None:
            found = summarise(settings, catalog, context.instance, context.run.run_id)
            write(settings, {**found, **used(started)})

    return platform
