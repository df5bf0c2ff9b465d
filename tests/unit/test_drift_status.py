"""Episodes from judgements: one cause for each, versions rewrite nothing, upstream never retrains."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from catalog import keys
from catalog.load import load_catalog
from catalog.settings import CATALOG_DIR
from catalog.spec import Drift
from lake import Lake
from ml.drift import ROWS, DriftStatus, Reference, Window, judge, read_status, record, status_of

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


HORIZON = timedelta(days=28)


def aging(weeks: int, calm: str = ".") -> DriftStatus:
    """Calm, then `weeks` weeks of breach, for a model whose labels take four weeks to mature."""
    return status_of(rows(calm + "B" * weeks), POLICY, "churn", HORIZON)


def test_a_breach_that_lasts_asks_again_each_time_a_horizon_of_its_labels_is_mature():
    """The drift begins at week 1, is sustained at week 4; its first label is mature at week 5, its last at week 9."""
    first, second, third = day(4), f"{day(4)}:matured:20240108", f"{day(4)}:matured:20240205"
    causes = [aging(weeks).cause_id for weeks in range(12)]
    assert causes == [None] * 3 + [first] + [second] * 4 + [third] * 4
    assert all(aging(weeks).wants_retraining for weeks in range(3, 12))


def test_a_hold_out_that_a_matured_cause_asks_for_lies_in_the_drift():
    """As ml/training.py cuts: the day of now - horizon. Whoever asks then is later than the status's latest window."""
    for weeks in range(3, 16):
        status = aging(weeks)
        assert status.drifted_from == T0 + WEEK
        holdout = status.window_end - HORIZON
        assert (status.matured is not None) == (holdout >= status.drifted_from)
        if status.matured:
            assert status.drifted_from <= status.matured <= holdout < status.matured + HORIZON
        assert status.matures_next > status.window_end


def test_a_matured_cause_ends_with_its_episode_and_waits_while_the_feed_is_broken():
    broken = status_of(rows(".BBBBBU"), POLICY, "churn", HORIZON)
    assert broken.cause_id == f"{day(4)}:matured:20240108"
    assert not broken.wants_retraining
    over = status_of(rows(".BBBBB.."), POLICY, "churn", HORIZON)
    assert (over.cause_id, over.drifted_from, over.matured, over.matures_next) == (None, None, None, None)
    assert status_of(rows(".BBBBB..BBB"), POLICY, "churn", HORIZON).cause_id == day(11)


def test_what_matured_is_in_the_cause_and_what_comes_next_in_the_lines():
    assert aging(3).lines()[1] == (
        "  drifted since 2024-01-08; cause churn-20240129T000000; if it lasts, again at 2024-02-05"
    )
    later = aging(5)
    assert later.cause.startswith("labels of the drifted period are mature up to cut-off 2024-01-08; x PSI 0.90 over")
    assert later.to_json()["matures_next"] == "2024-03-04T00:00:00"
    assert [line for line in aging(1).lines() if "drifted since" in line] == []


def test_the_drift_begins_with_its_first_breach_not_with_the_window_that_made_it_sustained():
    mixed = pa.concat_tables([rows("B..BB.B", feature="x"), rows("B......", feature="other")])
    status = status_of(mixed, POLICY, "churn", HORIZON)
    assert (status.episode, status.drifted_from) == (T0 + 7 * WEEK, T0 + 3 * WEEK)


def test_the_models_own_horizon_counts(tmp_path):
    lake, model = Lake(tmp_path), load_catalog(CATALOG_DIR).model("churn")
    record(lake, "churn", rows("." + "B" * 12))
    waiting = read_status(lake, model)
    assert (waiting.cause_id, waiting.matures_next) == (day(4), T0 + WEEK + timedelta(days=90))
    record(lake, "churn", rows("B", first=14))
    assert read_status(lake, model).cause_id == f"{day(4)}:matured:20240108"


def test_status_is_json_and_has_a_line_for_each_feature():
    status = status_of(pa.concat_tables([rows("BBBB"), rows("....", feature="calm")]), POLICY, "churn")
    assert json.loads(json.dumps(status.to_json()))["wants_retraining"]
    headline, following, worst, calm = status.lines()
    assert following == "  drifted since 2024-01-01; cause churn-20240122T000000"
    assert headline == "churn: x PSI 0.90 over 0.20; in 3 or more of 4 windows up to 2024-01-29"
    assert worst.startswith("  DRIFT  x ")
    assert worst.endswith("breached 4 of the last 4 windows")
    assert calm.startswith("  ok     calm ")


def test_an_empty_windows_infinite_threshold_is_valid_json():
    table = rows("U").set_column(ROWS.get_field_index("threshold"), "threshold", pa.array([float("inf")]))
    plain = status_of(table, POLICY, "churn").to_json()
    assert json.loads(json.dumps(plain, allow_nan=False))["details"][0]["threshold"] is None


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
