"""What all tests run with."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--representative",
        action="store_true",
        help="of the fault tests only those marked so, as where no path is given: all take as long as the rest",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Said here once, since workers are started with paths even where none was given."""
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        config.option.representative = True
