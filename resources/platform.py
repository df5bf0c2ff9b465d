"""The platform: one place that builds the plain objects from the settings; each works without Dagster."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from catalog.clock import Clock
from catalog.load import Catalog
from catalog.settings import Settings
from lake import Lake
from lake.ledger import Ledger

if TYPE_CHECKING:
    from streaming.sqlite_log import SqliteLog

__all__ = ["Platform"]


@dataclass(frozen=True)
class Platform:
    """What the assets are given: settings, catalog, and the stores that follow from them."""

    settings: Settings
    catalog: Catalog

    @cached_property
    def lake(self) -> Lake:
        return Lake(self.settings.lake_dir)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.ledger_path)

    @cached_property
    def log(self) -> SqliteLog:
        from streaming.sqlite_log import SqliteLog

        return SqliteLog(self.settings.log_path)

    @cached_property
    def clock(self) -> Clock:
        return self.settings.clock()

    @cached_property
    def feature_store(self) -> Any:
        """Feast's store with the definitions applied; typed Any because Feast ships no types."""
        from ml.features import open_feature_store

        return open_feature_store(self.settings, self.catalog)
