"""The HTML report: one self-contained file with our verdict on top, whatever the columns hold."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from catalog.spec import Drift
from ml.drift import Reference, Window, evaluate
from ml.drift_report import write_report

# Evidently's own imports: litestar deprecates what litestar uses; Evidently asks for numpy.core, writes an escape that
# Python deprecates (seen when it is first compiled) and leaves a file open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:litestar.*"),
    pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning:evidently.*"),
    pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]
T0 = datetime(2024, 1, 1)
WEEK = timedelta(days=7)


def rows(seed: int, size: int, shift: float = 0.0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "amount": rng.lognormal(3 + shift, 1, size),
            "visits": rng.poisson(0.4, size),
            "rate": pa.array(np.where(rng.random(size) < 0.6, np.nan, rng.random(size)), from_pandas=True),
            "wild": np.where(rng.random(size) < 0.01, np.inf, rng.normal(size=size)),
            "constant": np.full(size, 4.0),
            "empty": pa.array([None] * size, pa.float64()),
            "country": pa.array(
                [None if r < 0.1 else "DE" if r < 0.3 + shift / 2 else "<b>UK" for r in rng.random(size)]
            ),
            "prediction": rng.random(size),
        }
    )


@pytest.fixture(scope="module")
def reference() -> Reference:
    past = [Window(T0 - WEEK * (w + 1), T0 - WEEK * w, rows(w, 900), 1_000, T0 - WEEK * w) for w in range(4)]
    return Reference.fit(past, past[0].rows.column_names, bins=10, model="churn", version="3")


def test_a_report_holds_verdict_numbers_and_distributions_and_loads_nothing(tmp_path, reference):
    report = evaluate(reference, {T0 + w * WEEK: rows(50 + w, 700, shift=1) for w in (1, 2, 3)}, Drift())
    path = write_report(report, rows(0, 3_000), tmp_path / "reports" / "drift.html")
    text = path.read_text(encoding="utf-8")
    assert "Drift of churn, version 3" in text
    assert report.status.cause in text
    assert f"{report.status.details[0].psi:.3f}" in text
    assert text.index("Drift of churn") < text.index("plotly")
    assert "&lt;b&gt;UK" in text.split("by Evidently")[0]
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="https?:', text)
    assert list(path.parent.iterdir()) == [path]


def test_a_report_without_current_rows_still_says_why(tmp_path, reference):
    nothing = Window(T0, T0 + WEEK, rows(0, 1).slice(0, 0), 0, None)
    report = evaluate(reference, [nothing], Drift())
    text = write_report(report, rows(0, 100), tmp_path / "drift.html").read_text(encoding="utf-8")
    assert "upstream, not drift: no events arrived" in text
