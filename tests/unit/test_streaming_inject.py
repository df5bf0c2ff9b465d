"""Injected drift: real changes after the replay's last event, of existing customers, more often and larger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from catalog.clock import ReplayClock
from catalog.load import load_catalog
from lake.tables import Lake, MissingTableError
from streaming.inject import InjectError, InjectReport, inject_drift
from streaming.landing import land
from streaming.replay import ReplayMismatchError, ReplayReport, replay
from streaming.simulator import simulate
from streaming.sqlite_log import SqliteLog

CATALOG = Path(__file__).resolve().parents[2] / "catalog"
LINES = simulate(seed=5, lines=6_000, drift=False).lines


@dataclass
class Shop:
    """A replayed shop with its lake."""

    log: SqliteLog
    lake: Lake
    state: Path

    def replay(self, **options: Any) -> ReplayReport:
        return replay(options.pop("lines", LINES), self.log, self.state, **options)

    def land(self) -> None:
        for source in load_catalog(CATALOG).sources:
            assert land(source, self.log, self.lake, 3_000).quarantined == 0

    def inject(self, **options: Any) -> InjectReport:
        return inject_drift(self.log, self.lake, self.state, **options)

    def one(self, sql: str) -> tuple[Any, ...]:
        with self.lake.connect() as connection:
            row: tuple[Any, ...] = connection.sql(sql).fetchall()[0]
        return row


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with SqliteLog(tmp_path / "log.db") as log:
        yield Shop(log, Lake(tmp_path / "lake"), tmp_path / "replay.json")


@pytest.fixture
def landed(shop: Shop) -> Shop:
    shop.replay()
    shop.land()
    return shop


def test_orders_come_more_often_and_larger_from_known_customers(landed: Shop) -> None:
    clock = ReplayClock(landed.state)
    since = clock.now()
    report = landed.inject(weeks=3, factor=4.0)
    landed.land()
    assert (report.since, report.last_event_at) == (since, clock.now()) == (since, since + timedelta(weeks=3))
    new, known = "invoice_no LIKE 'J%'", "customer_id IS NOT NULL AND quantity > 0 AND unit_price_gbp > 0"
    lines, orders, first, last = landed.one(
        f"""SELECT count(*), count(DISTINCT invoice_no), min(invoiced_at), max(invoiced_at)
        FROM raw.shop.order_lines WHERE {new}"""
    )
    assert (lines, orders) == (report.lines, report.orders)
    assert since < first <= last == report.last_event_at
    assert landed.one(f"SELECT count(*) FROM raw.shop.orders WHERE {new} AND change_op = 'c'") == (orders,)
    assert landed.one(
        f"""SELECT count(*) FROM raw.shop.order_lines WHERE {new}
        AND customer_id NOT IN (SELECT customer_id FROM raw.shop.customers)"""
    ) == (0,)
    quarter = f"invoiced_at > TIMESTAMP '{since}' - INTERVAL 13 WEEK AND {known}"
    before, size_before = landed.one(
        f"""SELECT count(DISTINCT invoice_no) / 13, avg(quantity) FROM raw.shop.order_lines
        WHERE {quarter} AND NOT {new} AND invoice_no NOT LIKE 'C%'"""
    )
    size_after = landed.one(f"SELECT avg(quantity) FROM raw.shop.order_lines WHERE {new}")[0]
    assert 1.8 < orders / 3 / before < 2.2
    assert 3.2 < size_after / size_before < 4.8


def test_places_in_the_stream_go_on(landed: Shop) -> None:
    last, last_tx = landed.one("SELECT max(source_position), max(tx_id) FROM raw.shop.order_lines")
    landed.inject(weeks=1)
    landed.land()
    first, first_tx, each = landed.one(
        """SELECT min(source_position), min(tx_id), count(*) - count(DISTINCT source_position)
        FROM raw.shop.order_lines WHERE invoice_no LIKE 'J%'"""
    )
    assert first > last
    assert first_tx > last_tx
    assert each == 0


def test_each_call_appends_a_further_stretch_of_the_same_size(landed: Shop) -> None:
    reports = []
    for _ in range(3):
        reports.append(landed.inject(weeks=2))
        landed.land()
    assert [r.since for r in reports[1:]] == [r.last_event_at for r in reports[:-1]]
    sizes = [
        landed.one(f"SELECT avg(quantity) FROM raw.shop.order_lines WHERE invoice_no LIKE 'J0{i}%'")[0]
        for i in (1, 2, 3)
    ]
    assert max(sizes) / min(sizes) < 1.5  # the factor is not applied to what was injected before


def test_a_replay_after_an_injection_changes_nothing(landed: Shop) -> None:
    report = landed.inject()
    again = landed.replay()
    assert again.changes == 0
    assert again.last_event_at == report.last_event_at
    with pytest.raises(ReplayMismatchError, match="do not begin with"):
        landed.replay(lines=simulate(seed=6, lines=6_000).lines)


def test_lines_held_back_cannot_follow_an_injection(shop: Shop) -> None:
    middle = LINES["invoiced_at"][3_000].as_py()
    shop.replay(until=middle)
    shop.land()
    report = shop.inject(weeks=1)
    assert shop.replay(until=middle).last_event_at == report.last_event_at
    with pytest.raises(ReplayMismatchError, match="changes were injected after the first"):
        shop.replay()


def test_dying_before_or_after_the_append_is_mended_by_the_next_replay(
    landed: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(Exception):
        """Stands for a dying process."""

    clock, before, append = ReplayClock(landed.state), ReplayClock(landed.state).now(), SqliteLog.append

    def dies_early(log: SqliteLog, batches: Any) -> None:
        raise Crash

    def dies_late(log: SqliteLog, batches: Any) -> None:
        append(log, batches)
        raise Crash

    for dying in (dies_early, dies_late):
        with monkeypatch.context() as patch:
            patch.setattr(SqliteLog, "append", dying)
            with pytest.raises(Crash):
                landed.inject(weeks=1)
        assert clock.now() == before
        assert landed.replay().changes == 0
    assert clock.now() == before + timedelta(weeks=1)


def test_needs_a_replay_and_something_landed(shop: Shop) -> None:
    with pytest.raises(InjectError, match="no completed replay"):
        shop.inject()
    shop.replay()
    with pytest.raises(MissingTableError):
        shop.inject()
    with pytest.raises(InjectError, match="found weeks 0"):
        shop.inject(weeks=0)
