"""Faults 41 and 44: records that are none, and clocks that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from catalog.keys import cdc_topic
from streaming.sqlite_writer import SqliteWriter
from tests.faults.case import Case

Seen = Callable[[str], None]


def test_41_poison_message(case: Case, seen: Seen) -> None:
    """Records that are no JSON, no envelope, of a wrong type, and empty lie in the topic before good ones."""
    case.make("t", 3)
    case.sync()
    with closing(SqliteWriter(case.home.path / "log.db")) as writer:
        for value in (b"{", b"\xff\xfe", b"[]", b'{"op":"c","after":{"id":"x"}}', b"null", b'{"after":1}'):
            writer.send(cdc_topic("shop", "t"), b'{"id":1}', value, 1_700_000_000_000_000, 0)
        writer.flush()
    case.insert("t", 10, 20)
    for done in (case.capture(), case.land()):
        assert done.code == 0, done
    (found,) = case.verdicts()
    assert (found.lost, found.duplicates) == (0, 0)
    assert found.quarantined == 6
    seen("all six in quarantine, each with its reason and whole; what follows them lands, equals the source")


def test_44_clock_an_hour_off(case: Case, seen: Seen) -> None:
    """Transactions dated (headwater_clock) an hour ahead, an hour back, and out of order update the same rows."""
    case.make("t", 5)
    stamp = case.either("timestamp", "datetime(6)")
    clock = f"CREATE TABLE headwater_clock (id int PRIMARY KEY, event_at {stamp}, landed_at {stamp})"
    case.sql(clock, "INSERT INTO headwater_clock VALUES (1, '2024-01-01 00:00:00', '2024-01-01 00:00:00')")
    case.sync()
    for number, at in enumerate(("13:00:00", "11:00:00", "12:00:00", "10:59:59", "13:00:01")):
        dated = f"UPDATE headwater_clock SET event_at = '2024-01-02 {at}', landed_at = '2024-01-02 {at}'"
        case.sql("BEGIN", dated, f"UPDATE t SET v = 'number {number}' WHERE id <= 3", "COMMIT")
        case.sync()
    streamed = [v for op, key, v in case.history("t") if op == "u" and key == 1]
    assert streamed == [f"number {number}" for number in range(5)]
    seen("the order of commits decides, not the clock: the last commit is in force, equals the source")
