"""Our records beside Debezium's: one workload, one server, both connectors, compared field by field.

What is not the same must be declared in `bench.debezium.declared`, with its reason; what is declared must occur.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from postgres_capture import SETTINGS
from stack_servers import started

from bench.debezium.compare import differing
from bench.debezium.declared import undeclared, unseen
from bench.debezium.engine import compiled
from bench.debezium.peers import Peers, Record, run_both
from headwater.stack.errors import DownloadFailed, MissingPrograms
from headwater.stack.server import Server

pytest_plugins = ["kafka_broker"]

_SERVER_SETTINGS: Mapping[str, Mapping[str, str]] = {"postgresql": SETTINGS, "mariadb": {}}


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def peers(request: pytest.FixtureRequest, broker: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """What both captured, from one server of each kind."""
    kind: str = request.param
    try:
        compiled()
    except (MissingPrograms, DownloadFailed) as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"Debezium is not here to compare with: {error}")
    directory: Path = tmp_path_factory.mktemp(kind)
    with started(kind, directory / "server", settings=_SERVER_SETTINGS[kind]) as server:
        yield run_both(kind, server, broker, directory / "debezium")


def test_every_difference_from_debezium_is_declared_and_every_declared_one_occurs(peers: Peers) -> None:
    found = list(differing(peers))
    assert undeclared(found) == []
    assert unseen(found, peers.workload.database) == []


@pytest.mark.parametrize(
    ("field", "instead"),
    [
        (b'"op":"u"', b'"op":"c"'),
        (b'"total_order":1', b'"total_order":7'),
        (b'"snapshot":"false"', b'"snapshot":"true"'),
        (b'"transaction":{"id":"', b'"transaction":{"id":"x'),
        (b'"a":"ii"', b'"a":"i"'),
        (b'"snapshot":"incremental"', b'"snapshot":"last"'),
    ],
    ids=["op", "total_order", "source.snapshot", "transaction.id", "a value", "a declared field"],
)
def test_a_field_that_we_break_is_noticed(peers: Peers, field: bytes, instead: bytes) -> None:
    assert undeclared(differing(_altered(peers, lambda value: value.replace(field, instead)))) != []


def test_a_lost_record_and_a_difference_that_went_away_are_noticed(peers: Peers) -> None:
    lost = {**peers.ours.tables, "whole": peers.ours.tables["whole"][1:]}
    assert undeclared(differing(replace(peers, ours=replace(peers.ours, tables=lost)))) != []
    same_version = _altered(peers, lambda value: value.replace(b'"version":"0.1.0"', b'"version":"3.4.0.Final"'))
    assert [each.subjects for each in unseen(list(differing(same_version)), peers.workload.database)] == [
        ("source.version",)
    ]


def _altered(peers: Peers, alter: Callable[[bytes], bytes]) -> Peers:
    """As if we had written other values into one table."""

    def altered(records: Sequence[Record]) -> list[Record]:
        return [replace(each, value=None if each.value is None else alter(each.value)) for each in records]

    tables = {name: altered(records) for name, records in peers.ours.tables.items()}
    return replace(peers, ours=replace(peers.ours, tables=tables))
