"""Episodes from judgements: one cause for each, versions rewrite nothing, upstream never retrains."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from catalog import keys
from catalog.spec import Drift
from lake import Lake
from ml.drift import ROWS, Reference, Window, judge, record, status_of

T0 = datetime(2024, 1, 1)
WEEK = timedelta(days=7)
POLICY = Drift(windows=4, breaches=3)


def rows(verdicts: str, *, first: int = 1, version: str = "1", feature: str = "x", at: int = 0) -> pa.Table:
    """One row for each letter: B breached, . calm, U upstream; weekly from week `first`."""
    return pa.Table.from_pylist(
        [
            {
                "window_start": T0 + (week - 1) * WEEK,
                "window_end": T0 + week * WEEK,
                "feature": feature,
                "psi": 0.9 if verdict == "B" else 0.01,
                "kl": 0.4,
                "threshold": 0.2,
                "n_reference": 1000,
                "n_current": 100,
                "breached": verdict == "B",
                "upstream": "no events arrived" if verdict == "U" else None,
                "events": 100,
                "model": "churn",
                "version": version,
                "reference_digest": "d",
                "evaluated_at": T0 + (week + at) * WEEK,
            }
            for week, verdict in enumerate(verdicts, first)
        ],
        ROWS,
    )


def cause(table: pa.Table) -> str | None:
    return status_of(table, POLICY, "churn").cause_id


def day(week: int) -> str:
    return f"churn-{T0 + week * WEEK:%Y%m%dT%H%M%S}"


@pytest.mark.parametrize(
    ("verdicts", "started"),
    [
        ("....", None),
        ("BB..", None),
        ("..BB", None),
        (".BBB", 4),
        ("BBB.", 3),
        ("BBB..", None),
        (".BBBBBBB", 4),
        ("BB.BBBBB", 4),
        ("BBB..BBB", 8),
        ("BBBU", 3),
        ("BBUUB", None),
        ("BBUB", 4),
        ("BBBUUUU", 3),
        ("UUUU", None),
    ],
)
def test_an_episode_starts_where_the_breach_became_sustained(verdicts, started):
    assert cause(rows(verdicts)) == (day(started) if started else None)


def test_the_cause_does_not_change_while_the_episode_lasts():
    assert {cause(rows("." + "B" * length)) for length in range(3, 12)} == {day(4)}


def test_a_later_version_does_not_rewrite_what_was_judged_and_the_episode_goes_on():
    before = rows(".BBB")
    again = pa.concat_tables([before, rows("....", version="2", at=1)])
    assert cause(again) == day(4)
    assert cause(pa.concat_tables([again, rows("BB", first=5, version="2")])) == day(4)
    healed = status_of(pa.concat_tables([again, rows("..", first=5, version="2")]), POLICY, "churn")
    assert (healed.sustained, healed.version) == (False, "2")


def test_breaches_of_different_features_do_not_add_up():
    mixed = pa.concat_tables([rows("BB..", feature="x"), rows("..BB", feature="y")])
    assert cause(mixed) is None


def test_upstream_stops_retraining_and_is_named():
    status = status_of(rows("BBBU"), POLICY, "churn")
    assert status.sustained
    assert not status.wants_retraining
    assert status.cause == "upstream, not drift: no events arrived"


def test_status_is_json_and_has_a_line_for_each_feature():
    status = status_of(pa.concat_tables([rows("BBBB"), rows("....", feature="calm")]), POLICY, "churn")
    assert json.loads(json.dumps(status.to_json()))["wants_retraining"]
    headline, worst, calm = status.lines()
    assert headline == "churn: x PSI 0.90 over 0.20; in 3 or more of 4 windows up to 2024-01-29"
    assert worst.startswith("  DRIFT  x ")
    assert worst.endswith("breached 4 of the last 4 windows")
    assert calm.startswith("  ok     calm ")


def test_nothing_judged_is_said():
    assert status_of(ROWS.empty_table(), POLICY, "churn").lines() == ["churn: no window has been judged yet"]


def test_record_appends_each_judgement_once(tmp_path):
    lake = Lake(tmp_path)
    assert record(lake, "churn", rows("BBU")) == 3
    version = lake.version(keys.drift("churn"))
    assert record(lake, "churn", rows("BBU", at=5)) == 0
    assert lake.version(keys.drift("churn")) == version
    assert record(lake, "churn", rows("BBB", at=5)) == 1, "the data came: the upstream window is judged again"
    assert record(lake, "churn", rows("BBU", at=9)) == 0
    assert record(lake, "churn", rows("B", first=3, version="2", at=9)) == 1
    assert cause(lake.read(keys.drift("churn"))) == day(3)


@pytest.mark.parametrize(
    ("events", "size", "quiet_days", "upstream"),
    [
        (1_000, 500, 0, None),
        (0, 0, None, "no events arrived from 2024-01-01 00:00 to 2024-01-08 00:00"),
        (150, 80, 0, "150 events from 2024-01-01 00:00 to 2024-01-08 00:00, usual are 1000"),
        (600, 300, 5, "no event since 2024-01-03 00:00, 5.0 days before the end"),
    ],
)
def test_a_broken_feed_is_not_drift(events, size, quiet_days, upstream):
    values = np.random.default_rng(1).normal(size=2_000)
    past = [Window(T0 - WEEK * (w + 1), T0 - WEEK * w, pa.table({"x": values}), 1_000, T0 - WEEK * w) for w in range(3)]
    reference = Reference.fit(past, ["x"], bins=10, model="churn", version="1")
    end = T0 + WEEK
    last = None if quiet_days is None else end - timedelta(days=quiet_days)
    window = Window(T0, end, pa.table({"x": np.full(size, 9.0)}), events, last)
    judged = judge(reference, [window], POLICY, end)
    assert judged["upstream"].to_pylist() == [upstream]
    assert judged["breached"].to_pylist() == [upstream is None]
