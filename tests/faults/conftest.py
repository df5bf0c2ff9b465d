"""Servers that fault tests share, the case of each test, and the page that says what was done and seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headwater.stack.server import Server
from tests.faults.case import Case
from tests.faults.cases import DATABASES
from tests.faults.page import Outcome, write_page
from tests.faults.stand import SETTINGS
from tests.integration.stack_servers import started

_outcomes: list[Outcome] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-page", metavar="FILE", help="write what the fault tests did and saw")
    parser.addoption("--real-outage", action="store_true", help="Kafka is away for ten minutes, not half a minute")
    parser.addoption("--rows", type=int, default=10_000_000, help="of the largest transaction")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those that were not asked for (tests/conftest.py)."""
    if config.option.representative:
        here = Path(__file__).parent
        left = [i for i in items if i.path.parent == here and not i.get_closest_marker("representative")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or (report.when == "setup" and not report.passed):
        seen = "; ".join(str(value) for name, value in report.user_properties if name == "seen")
        done = next((str(value) for name, value in report.user_properties if name == "done"), "")
        _outcomes.append(Outcome(report.nodeid, report.outcome, done, seen))


@pytest.fixture(autouse=True)
def _done(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    record_property("done", request.function.__doc__ or "")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A page with a case that is not covered is a failure, also where every test that ran has passed."""
    path = session.config.getoption("--write-page", None)
    if path and (bare := write_page(Path(path), _outcomes)):
        print(f"\nnot covered: {', '.join(bare)}")
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def seen(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Told what was seen, for the page."""
    return lambda text: record_property("seen", text)


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {**SETTINGS["postgresql"], "max_prepared_transactions": "5"}
    with started("postgresql", tmp_path_factory.mktemp("postgresql"), settings=settings) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started("mariadb", tmp_path_factory.mktemp("mariadb"), settings=SETTINGS["mariadb"]) as server:
        yield server


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Server]:
    """A test's own: the topics of the shop are there once only."""
    with started("kafka", tmp_path / "kafka") as server:
        yield server


@pytest.fixture(params=DATABASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """On the embedded log, on a server that tests share and may kill, as long as they start it again."""
    made = Case(request.getfixturevalue(request.param), tmp_path)
    yield made
    made.close()


@pytest.fixture(params=DATABASES)
def own_case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """On a server of its own, which need not be there at the end."""
    with started(request.param, tmp_path / "server", settings=SETTINGS[request.param]) as server:
        made = Case(server, tmp_path / "case")
        yield made
        made.forget_connection()
