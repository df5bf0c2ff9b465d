"""What every command starts from: the settings of this process's environment and the catalog they point at."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from catalog.load import Catalog
    from catalog.settings import Settings
    from catalog.spec import Model

__all__ = ["current_settings", "declared_model", "read_catalog"]


def current_settings() -> Settings:
    """The settings, from `HEADWATER_*`. Raises SettingsError."""
    from catalog.settings import load_settings

    return load_settings(os.environ)


def read_catalog(settings: Settings) -> Catalog:
    """The declarations. Raises CatalogError."""
    from catalog.load import load_catalog

    return load_catalog(settings.catalog)


def declared_model(catalog: Catalog, name: str) -> Model:
    """The model of that name; another name is wrong usage."""
    if name not in catalog.model_by_name:
        raise click.BadParameter(
            f"found {name!r}, allowed is one of: {', '.join(sorted(catalog.model_by_name))}", param_hint="MODEL"
        )
    return catalog.model_by_name[name]
