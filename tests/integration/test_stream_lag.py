"""How far a live stream is behind, as `headwater status` says: in step, with nobody capturing, and in step again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from stack_servers import started

from catalog.load import load_catalog
from streaming.open_log import open_log
from streaming.stream_status import ConsumerState, SourceState, stream_status
from tests.faults.case import Case
from tests.faults.stand import SETTINGS, wait_until


@pytest.fixture(params=["postgresql", "mariadb"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    with started(request.param, tmp_path / "server", settings=SETTINGS[request.param]) as server:
        made = Case(server, tmp_path / "case")
        yield made
        made.forget_connection()


def status(case: Case) -> tuple[SourceState, ConsumerState]:
    """Of the one source and the one consumer."""
    settings, now = case.settings, datetime.now(UTC).replace(tzinfo=None)
    with closing(open_log(settings)) as log:
        found = stream_status(settings, load_catalog(case.catalog), log, case.lake, now)
    (source,), (consumer,) = found.sources, found.consumers
    return source, consumer


def recent(instant: datetime | None) -> bool:
    return instant is not None and datetime.now(UTC) - instant.replace(tzinfo=UTC) < timedelta(minutes=2)


def in_step(case: Case) -> SourceState:
    wait_until(lambda: status(case)[0].lag_s == 0, "the stream is in step")
    return status(case)[0]


def test_a_stream_says_how_far_it_is_behind(case: Case) -> None:
    case.make("t", 100)
    with case.running("capture", "shop"), case.running("land", "--every", "0.2"):
        case.wait_for_same()
        case.insert("t", 101, 1100)
        case.wait_for_same()
        source = in_step(case)
        assert (source.lag_rows, source.state, recent(source.last_event_at)) == (0, "streaming", True)
        consumer = status(case)[1]
        assert (consumer.lag_rows, consumer.rows, consumer.problem) == (0, 1100, None)
        assert 0 < consumer.rows_per_s <= 1100 / 60 + 0.1
        assert recent(consumer.last_event_at)
    case.insert("t", 2001, 2500)
    source = status(case)[0]
    assert source.lag_s
    assert 100 < (source.lag_rows or 0) < 2500, "500 of them, as far as that can be known unread"
    first = source.lag_s
    wait_until(lambda: (status(case)[0].lag_s or 0) > first + 0.5, "the lag grows")
    with case.running("capture", "shop"):
        source = in_step(case)
        assert (source.lag_rows, source.problem) == (0, None)
        metrics = case.home.headwater("status", "--prometheus").out
    assert re.search(r'^headwater_capture_lag_seconds\{system="shop"\} \d', metrics, re.MULTILINE)
    assert 'headwater_lag_rows{group="landing",topic="cdc.shop.t"} 500' in metrics


def test_a_request_to_read_a_table_again_outlives_the_connector_that_took_it(case: Case) -> None:
    case.make("t", 10)
    case.sync()
    taken = case.settings.capture_dir / "shop.requests.taken.json"
    taken.write_text(json.dumps(["t"]))  # as one leaves it that is killed before its next checkpoint
    with case.home.started("headwater", "capture", "shop") as connector:
        wait_until(lambda: not taken.exists(), "the checkpoint has it")
        connector.kill()
    case.sync()
    assert [op for op, _, _ in case.history("t")].count("r") >= 20
