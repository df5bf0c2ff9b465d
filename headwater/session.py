"""What every command starts from: the settings of this process's environment, the catalog and the home they name.

Errors: HomeError   HEADWATER_HOME cannot be written to
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from catalog.load import Catalog
    from catalog.settings import Settings
    from catalog.spec import Model

__all__ = ["HomeError", "current_settings", "declared_model", "expect_writable", "make_home", "read_catalog"]


class HomeError(RuntimeError):
    """HEADWATER_HOME cannot be written to."""


def current_settings() -> Settings:
    """The settings, from `HEADWATER_*`. Raises SettingsError."""
    from catalog.settings import load_settings

    return load_settings(os.environ)


def read_catalog(settings: Settings) -> Catalog:
    """The declarations. Raises CatalogError."""
    from catalog.load import load_catalog

    return load_catalog(settings.catalog)


def make_home(settings: Settings) -> Settings:
    """The same settings, once their home is there and can be written to. Raises HomeError."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_home(settings, "make the directory", error) from None
    return expect_writable(settings)


def expect_writable(settings: Settings) -> Settings:
    """The same settings, when a file can be made in their home. Raises HomeError."""
    try:
        with tempfile.TemporaryFile(dir=settings.home):
            return settings
    except OSError as error:
        raise _no_home(settings, "write a file in", error) from None


def _no_home(settings: Settings, tried: str, error: OSError) -> HomeError:
    return HomeError(
        f"tried to {tried} {settings.home}, found: {error.strerror}; set HEADWATER_HOME to a directory that you may "
        "write to (it is made if missing)"
    )


def declared_model(catalog: Catalog, name: str) -> Model:
    """The model of that name; another name is wrong usage."""
    if name not in catalog.model_by_name:
        raise click.BadParameter(
            f"found {name!r}, allowed is one of: {', '.join(sorted(catalog.model_by_name))}", param_hint="MODEL"
        )
    return catalog.model_by_name[name]
