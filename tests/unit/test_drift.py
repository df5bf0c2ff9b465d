"""Drift arithmetic against scipy and against invariants; the false-alarm rate; wild values, nulls, new words."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from catalog.spec import Drift
from ml.drift import NoReferenceError, Reference, Window, evaluate, judge, kl, psi
from ml.drift_reference import Bins, ColumnKindError, chi2_quantile

T0 = datetime(2024, 1, 1)
WEEK = timedelta(days=7)
POLICY = Drift()


def window(index: int, **columns: object) -> Window:
    """The window that ends `index` weeks after T0; a normal feed of 1,000 events."""
    end = T0 + index * WEEK
    return Window(end - WEEK, end, pa.table(columns), 1_000, end)


def fit(*windows: Window, bins: int = 10) -> Reference:
    return Reference.fit(windows, windows[0].rows.column_names, bins=bins, model="churn", version="1")


def counts_of(values: object, reference: object, bins: int = 10) -> dict[str, int]:
    fitted = Bins.fit("x", pa.chunked_array([pa.array(reference)]), bins)
    return dict(zip(fitted.labels, fitted.counts(pa.chunked_array([pa.array(values)])).tolist(), strict=True))


counts = st.integers(2, 12).flatmap(
    lambda size: st.tuples(*(st.lists(st.integers(0, 5_000), min_size=size, max_size=size),) * 2)
)


@given(counts)
def test_psi_and_kl_equal_scipy_on_smoothed_shares(pair):
    p, q = (np.array(c) for c in pair)
    occupied = (p + q) > 0
    if not occupied.any():
        return
    a, b = p[occupied] + 0.5, q[occupied] + 0.5
    assert kl(p, q) == pytest.approx(stats.entropy(b, a), abs=1e-12)
    assert psi(p, q) == pytest.approx(stats.entropy(b, a) + stats.entropy(a, b), abs=1e-12)


@given(counts)
def test_psi_is_never_negative_symmetric_and_zero_on_itself(pair):
    p, q = (np.array(c) for c in pair)
    assert psi(p, q) >= 0
    assert kl(p, q) >= 0
    assert psi(p, q) == pytest.approx(psi(q, p))
    assert psi(p, p) == 0


@given(st.lists(st.one_of(st.none(), st.floats(), st.sampled_from([0.0, -0.0, 1.0, 2.0]))), st.randoms())
def test_every_value_falls_into_one_bin_in_any_order(values, random):
    fitted = Bins.fit("x", pa.chunked_array([pa.array(values, pa.float64())]), 10)
    shuffled = random.sample(values, len(values))
    again = Bins.fit("x", pa.chunked_array([pa.array(shuffled, pa.float64())]), 10)
    found = fitted.counts(pa.chunked_array([pa.array(values, pa.float64())]))
    assert found.sum() == len(values)
    assert found[0] == sum(v is None or math.isnan(v) for v in values)
    assert again == fitted
    assert (again.counts(pa.chunked_array([pa.array(shuffled, pa.float64())])) == found).all()


def test_a_heavy_zero_takes_one_bin_and_the_rest_shares_the_others():
    values = [0.0] * 900 + [float(v) for v in range(1, 101)]
    found = counts_of(values, values)
    assert found.pop("0") == 900
    assert sorted(c for c in found.values() if c) == [11] * 8 + [12]


def test_counts_with_few_distinct_values_get_a_bin_each():
    values = [0] * 500 + [1] * 300 + [2] * 200
    assert sorted(c for c in counts_of(values, values).values() if c) == [200, 300, 500]


def test_null_nan_and_infinities_have_their_own_bins():
    found = counts_of([None, math.nan, math.inf, -math.inf, 1.0], [1.0, 2.0, 3.0])
    assert (found["null"], found["+inf"], found["-inf"]) == (2, 1, 1)


def test_strings_have_other_and_unseen():
    reference = ["UK"] * 50 + ["DE"] * 30 + ["FR"] * 20 + ["ES"]
    found = counts_of(["UK", "FR", "ES", "Atlantis", None], reference, bins=2)
    assert found == {"null": 1, "unseen": 1, "other": 2, "UK": 1, "DE": 0}


def test_truth_values_are_categories_and_times_are_refused():
    assert counts_of([True, False, None], [True, False])["true"] == 1
    with pytest.raises(ColumnKindError, match="'x' is timestamp"):
        counts_of([T0], [T0])


@pytest.mark.parametrize("freedom", [5, 10, 25])
@pytest.mark.parametrize("rate", [1e-2, 1e-3, 1e-5])
def test_the_quantile_is_close_and_not_too_low(freedom, rate):
    ratio = chi2_quantile(1 - rate, freedom) / stats.chi2.isf(rate, freedom)
    assert 1 <= ratio <= 1.035


def test_one_wild_value_does_not_hide_a_one_sigma_shift():
    rng = np.random.default_rng(1)
    reference = fit(window(0, x=rng.normal(size=5_000)))
    shifted = rng.normal(1.0, size=5_000)
    clean, wild = (
        judge(reference, [window(1, x=values)], POLICY, T0)["psi"][0].as_py()
        for values in (shifted, np.append(shifted, 1e6))
    )
    assert clean > 0.8
    assert wild == pytest.approx(clean, rel=0.01)
    # Equal-width bins over both samples, which is what Evidently's PSI uses, lose it.
    both = np.concatenate([rng.normal(size=5_000), shifted, [1e6]])
    edges = np.histogram_bin_edges(both, bins=30)
    equal_width = psi(np.histogram(both[:5_000], edges)[0], np.histogram(both[5_000:], edges)[0])
    assert equal_width < 0.01


@pytest.mark.parametrize("rate", [0.05, 0.01])
def test_false_alarms_are_as_rare_as_declared(rate):
    """5,000 against 200 rows, five features of different kinds, no floor and no history: sampling alone decides."""
    trials, alarms = 400, 0
    policy = Drift(psi_floor=1e-9, false_alarm_rate=rate)
    rng = np.random.default_rng(20_240)

    def draw(size: int) -> dict[str, np.ndarray]:
        return {
            "normal": rng.normal(size=size),
            "lognormal": rng.lognormal(size=size),
            "count": rng.poisson(0.3, size),
            "mostly_null": np.where(rng.random(size) < 0.7, np.nan, rng.exponential(size=size)),
            "word": rng.choice(["a", "b", "c", "d"], size, p=[0.7, 0.2, 0.07, 0.03]),
        }

    for _ in range(trials):
        rows = judge(fit(window(0, **draw(5_000))), [window(1, **draw(200))], policy, T0)
        alarms += any(rows["breached"].to_pylist())
    # One-sided 99.9% bound of the binomial at the declared rate.
    assert alarms <= stats.binom.isf(0.001, trials, rate)


def test_a_feature_that_grows_by_its_nature_does_not_alarm_and_one_that_never_moved_does():
    rng = np.random.default_rng(3)

    def rows(week: int, jump: float = 0.0) -> dict[str, np.ndarray]:
        return {"age_days": rng.uniform(0, 7 * (week + 8), 800), "amount": rng.lognormal(3 + jump, 0.8, 800)}

    reference = fit(*(window(w, **rows(w)) for w in range(30)))
    calm = judge(reference, [window(w, **rows(w)) for w in range(30, 34)], POLICY, T0)
    assert not any(calm["breached"].to_pylist())
    assert max(r["psi"] for r in calm.to_pylist() if r["feature"] == "age_days") > POLICY.psi_floor
    moved = judge(reference, [window(31, **rows(31, jump=0.7))], POLICY, T0)
    assert dict(zip(moved["feature"].to_pylist(), moved["breached"].to_pylist(), strict=True)) == {
        "age_days": False,
        "amount": True,
    }


def test_a_past_episode_within_the_reference_does_not_blind_it():
    rng = np.random.default_rng(8)
    drifted = {10, 11}
    past = [window(w, x=rng.normal(1.0 if w in drifted else 0.0, size=800)) for w in range(30)]
    found = judge(fit(*past), [window(30, x=rng.normal(1.0, size=800))], POLICY, T0)
    assert found["breached"].to_pylist() == [True]


@pytest.mark.parametrize(
    "current",
    [
        {"x": pa.array([None] * 300, pa.float64())},
        {"x": np.full(300, math.inf)},
        {"x": np.full(300, -7.0)},
    ],
)
def test_what_was_never_there_breaches(current):
    reference = fit(window(0, x=np.abs(np.random.default_rng(4).normal(size=2_000))))
    assert judge(reference, [window(1, **current)], POLICY, T0)["breached"].to_pylist() == [True]


def test_a_constant_column_and_an_all_null_column_do_not_alarm():
    rows = {"c": np.full(500, 3.0), "n": pa.array([None] * 500, pa.float64())}
    found = judge(fit(window(0, **rows)), [window(1, **rows)], POLICY, T0)
    assert found["psi"].to_pylist() == [0, 0]
    assert found["breached"].to_pylist() == [False, False]


def test_json_gives_back_an_equal_reference():
    rng = np.random.default_rng(5)
    reference = fit(*(window(w, x=rng.normal(size=100), s=rng.choice(["a", "b"], 100)) for w in range(3)))
    again = Reference.from_json(reference.to_json())
    assert again == reference
    assert again.digest == reference.digest


def test_too_little_history_is_said():
    with pytest.raises(NoReferenceError, match="hold 99 rows, drift needs 100"):
        fit(window(0, x=np.zeros(99)))


def test_evaluate_takes_tables_by_window_end():
    rng = np.random.default_rng(6)
    reference = fit(window(0, x=rng.normal(size=3_000)))
    tables = {T0 + w * WEEK: pa.table({"x": rng.normal(1.0, size=500)}) for w in (1, 2, 3)}
    report = evaluate(reference, tables, POLICY)
    assert report.status.sustained
    assert report.status.features == ("x",)
    assert report.status.episode == T0 + 3 * WEEK
    assert not evaluate(
        reference, {end: rows for end, rows in tables.items() if end < T0 + 3 * WEEK}, POLICY
    ).status.sustained
