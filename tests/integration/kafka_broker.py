"""One Kafka broker for all tests that ask for it: `pytest_plugins = ["kafka_broker"]`, then the fixture `broker`.

A test may kill it, as long as it starts it again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from stack_servers import started

from headwater.stack.server import Server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # What Kafka does after minutes by default it does at once.
    settings = {
        "log.cleaner.backoff.ms": "200",
        "group.min.session.timeout.ms": "1000",
    }
    with started("kafka", tmp_path_factory.mktemp("kafka"), settings=settings) as server:
        yield server


@pytest.fixture
def fresh() -> Callable[[str], str]:
    """A topic's name that no other test has."""
    return lambda name: f"test.{next(_numbers)}.{name}"
