"""Since when the log is behind the database, from looks at the server and from how far the stream is."""

from __future__ import annotations

from streaming.capture.pace import Pace
from streaming.capture.source import Retained


def test_what_there_was_at_a_look_is_awaited_whatever_has_come_since():
    pace = Pace()
    assert (pace.level_us, pace.behind) == (0, True)
    pace.look(server(10), 4, 1_000)
    assert (pace.level_us, pace.behind) == (0, True)
    pace.look(server(50), 9, 2_000)
    pace.reach(9)
    assert (pace.level_us, pace.behind) == (0, True)
    pace.reach(11)
    assert (pace.level_us, pace.behind) == (1_000, False)
    pace.look(server(60), 11, 3_000)
    assert (pace.level_us, pace.behind) == (1_000, True)
    pace.look(server(80), 70, 4_000)
    assert (pace.level_us, pace.behind) == (3_000, True)
    pace.look(server(90), 90, 5_000)
    assert (pace.level_us, pace.behind) == (5_000, False)


def server(end: int) -> Retained:
    return Retained(0, 0, None, end)
