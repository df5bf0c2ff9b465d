"""What all tests run with: which of the fault tests are selected, and how workers (`pytest -n 2`) share the files."""

from __future__ import annotations

from typing import Any

import pytest

_LONG_RUNS = "tests/runs/"


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long runs begin first, beside all else."""
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG_RUNS))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file is one worker's, which starts its servers once; so are all tests that share long runs."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _LONG_RUNS if nodeid.startswith(_LONG_RUNS) else str(super()._split_scope(nodeid))

    return ByFile(config, log)
