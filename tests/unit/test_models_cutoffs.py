"""Cut-offs are honest for any shop: mature labels, and no training label reaches the hold-out."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.load import load_catalog
from catalog.spec import Model
from ml.training import NotEnoughHistory, plan_cutoffs

BASE = load_catalog(Path(__file__).resolve().parents[2] / "catalog").model("churn")


def model(horizon: int, min_history: int, max_count: int) -> Model:
    label = BASE.label.model_dump() | {"horizon_days": horizon}
    cutoffs = {"min_history_days": min_history, "max_count": max_count}
    return Model.model_validate(BASE.model_dump() | {"label": label, "cutoffs": cutoffs})


def test_the_retail_year() -> None:
    found = plan_cutoffs(BASE, datetime(2010, 12, 1, 8, 26), datetime(2011, 12, 9, 12, 50))
    assert found.holdout == datetime(2011, 9, 10)
    assert found.training == tuple(datetime(2011, month, 10) for month in range(1, 7))


@given(
    now=st.datetimes(datetime(2005, 1, 1), datetime(2035, 1, 1)),
    history=st.integers(0, 2000),
    horizon=st.integers(1, 400),
    min_history=st.integers(0, 100),
    max_count=st.integers(2, 24),
)
def test_no_window_overlaps(now: datetime, history: int, horizon: int, min_history: int, max_count: int) -> None:
    first = now - timedelta(days=history)
    declared = model(horizon, min_history, max_count)
    window = timedelta(days=horizon)
    try:
        found = plan_cutoffs(declared, first, now)
    except NotEnoughHistory:
        assert history < min_history + 2 * horizon + 63
        return
    assert found.holdout + window <= now < found.holdout + window + timedelta(days=1)
    assert all(c + window <= found.holdout for c in found.training)
    assert all(c >= first + timedelta(days=min_history) for c in found.training)
    assert list(found.training) == sorted(set(found.training))
    assert len(found.training) <= max_count


def test_day_31_becomes_the_last_of_a_shorter_month() -> None:
    found = plan_cutoffs(model(1, 0, 4), datetime(2019, 1, 1), datetime(2020, 4, 1, 15))
    assert found.holdout == datetime(2020, 3, 31)
    assert [c.day for c in found.training] == [30, 31, 31, 29]


@pytest.mark.parametrize(("first", "message"), [(None, "has no rows before"), (datetime(2020, 1, 1), "found 60 days")])
def test_too_short_a_history_is_explained(first: datetime | None, message: str) -> None:
    with pytest.raises(NotEnoughHistory, match=message):
        plan_cutoffs(BASE, first, datetime(2020, 3, 1))
