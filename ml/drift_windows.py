"""The rows that drift is computed on: the customers who bought in a window, as the model saw them at its end.

Not every known customer: after a week nine in ten of them have bought nothing, and their zeros dilute whatever has
changed (on the UCI retail year a doubled basket scored a PSI of 0.09 among all known customers and 0.8 among the
buyers). Everything is read as it was known at the window's end, so a window gives the same rows whenever it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from catalog.keys import Key
from catalog.spec import Drift, Model
from lake import Lake
from lake.tables import quoted

__all__ = ["LINES", "PREDICTION", "Features", "Predict", "Window", "build_windows", "columns_of", "reference_windows"]

LINES = Key("marts", "sales", "customer_lines")
PREDICTION = "prediction"
# A year holds every season once.
MAX_REFERENCE_DAYS = 364
# A Monday: weekly windows then end at midnight before one.
_GRID = datetime(1970, 1, 5)
_DAY_US = 86_400_000_000

# entities[customer_id, event_timestamp] -> the same rows in the same order with one more column for each feature
Features = Callable[[pa.Table], pa.Table]
# the table that Features returned -> one prediction for each row
Predict = Callable[[pa.Table], NDArray[np.float64]]


@dataclass(frozen=True)
class Window:
    """(start, end], its rows (one for each active customer: features and prediction) and the events behind them."""

    start: datetime
    end: datetime
    rows: pa.Table
    events: int
    last_event_at: datetime | None

    @property
    def quiet_days(self) -> float:
        """From the last event to the window's end; the whole window when it holds none."""
        return (self.end - (self.last_event_at or self.start)) / timedelta(days=1)


def columns_of(model: Model) -> list[str]:
    """The monitored columns: the model's features, then its prediction."""
    return [ref.partition(":")[2] for ref in model.features] + [PREDICTION]


def windows_for(policy: Drift, now: datetime) -> tuple[datetime, ...]:
    """The ends of the last `policy.windows` whole windows up to `now`, oldest first.

    Windows tile time from a fixed Monday: however often drift is computed, a window is one and the same.
    """
    return _ends_until(policy, now, policy.windows)


def build_windows(model: Model, lake: Lake, features: Features, predict: Predict, now: datetime) -> tuple[Window, ...]:
    """The windows under judgement at `now`, oldest first. Raises lake.MissingTableError."""
    return _build(model, lake, features, predict, windows_for(model.drift, now))


def reference_windows(
    model: Model, lake: Lake, features: Features, predict: Predict, fixed_at: datetime
) -> tuple[Window, ...]:
    """The windows of the year before `fixed_at`, without those that are themselves under judgement at that instant.

    Windows in the first `cutoffs.min_history_days` are left out: features there still fill up.
    """
    policy = model.drift
    first = _first_event(lake, fixed_at)
    if first is None:
        return ()
    wanted = MAX_REFERENCE_DAYS // policy.window_days + policy.windows
    ends = _ends_until(policy, fixed_at, wanted)[: -policy.windows]
    oldest = first + timedelta(days=model.cutoffs.min_history_days + policy.window_days)
    return _build(model, lake, features, predict, [end for end in ends if end >= oldest])


def _ends_until(policy: Drift, now: datetime, count: int) -> tuple[datetime, ...]:
    step = timedelta(days=policy.window_days)
    last = _GRID + (now - _GRID) // step * step
    return tuple(last - step * back for back in range(count - 1, -1, -1))


def _build(
    model: Model, lake: Lake, features: Features, predict: Predict, ends: Sequence[datetime]
) -> tuple[Window, ...]:
    if not ends:
        return ()
    entities, volume = _active(lake, model.drift.window_days, ends)
    rows = features(entities)
    rows = rows.append_column(PREDICTION, pa.array(np.asarray(predict(rows), np.float64)))
    rows = rows.select(["customer_id", "event_timestamp", *columns_of(model)])
    step = timedelta(days=model.drift.window_days)
    stamp = rows.column("event_timestamp")
    return tuple(
        Window(end - step, end, rows.filter(pc.equal(stamp, pa.scalar(end, stamp.type))), *volume.get(end, (0, None)))
        for end in ends
    )


def _active(
    lake: Lake, window_days: int, ends: Sequence[datetime]
) -> tuple[pa.Table, dict[datetime, tuple[int, datetime]]]:
    """Who bought in which window, and how many purchase lines each window held, as known at its end."""
    wide = window_days * _DAY_US
    origin = int((_GRID - datetime(1970, 1, 1)) / timedelta(microseconds=1))
    with lake.connect([LINES]) as db:
        db.register("ends", pa.table({"ends": pa.array(ends, pa.timestamp("us"))}))
        # A line belongs to the one window that (start, end] puts it in, so this is a hash join, not a range join.
        db.execute(
            f"""CREATE TEMP TABLE bought AS
            SELECT customer_id, window_end, count(*) AS events, max(invoiced_at) AS last_event_at
            FROM (
                SELECT customer_id, invoiced_at, known_from, known_to, make_timestamp(
                    (epoch_us(invoiced_at) - {origin} - 1) // {wide} * {wide} + {wide} + {origin}) AS window_end
                FROM {quoted(LINES)} WHERE is_purchase
            ) JOIN ends ON window_end = ends.ends
            WHERE known_from <= window_end AND (known_to IS NULL OR known_to > window_end)
            GROUP BY ALL"""
        )
        entities = db.sql(
            "SELECT customer_id::BIGINT AS customer_id, window_end AS event_timestamp FROM bought ORDER BY 2, 1"
        ).to_arrow_table()
        volume = db.sql("SELECT window_end, sum(events)::BIGINT, max(last_event_at) FROM bought GROUP BY 1").fetchall()
    return entities, {end: (events, last) for end, events, last in volume}


def _first_event(lake: Lake, known_at: datetime) -> datetime | None:
    with lake.connect([LINES]) as db:
        found = db.execute(
            f"SELECT min(invoiced_at) FROM {quoted(LINES)} WHERE is_purchase AND known_from <= ?", [known_at]
        ).fetchall()
    return found[0][0] if found else None
