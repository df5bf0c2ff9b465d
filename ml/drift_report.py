"""The drift report as one HTML file: our verdict first, Evidently's distributions below it.

The verdict (quantile bins, thresholds, windows) is ours and decides; Evidently shows reference beside current.
Importing Evidently takes 7 CPU-seconds: write a report only when `DriftReport.appended` says that there is news.
"""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml.drift import DriftReport, Window
from ml.drift_reference import ColumnReference
from ml.drift_status import ROWS, FeatureStatus

__all__ = ["write_report"]

# Enough for the eye; Evidently's cost and the file's size grow with it.
SAMPLE_ROWS = 2_000
# The columns drawn bin by bin.
DRAWN_COLUMNS = 3
# The windows in a feature's strip.
STRIP_WINDOWS = 16

_RED, _AMBER, _GREEN, _GREY = "#c0392b", "#d68910", "#2e8b57", "#9aa5b1"
_STYLE = """<style>
.hw{font-family:system-ui,sans-serif;max-width:1180px;margin:24px auto;padding:0 16px;color:#1f2933}
.hw h1{font-size:22px;margin:0 0 4px}.hw h2{font-size:16px;margin:24px 0 8px}.hw p{margin:4px 0;color:#52606d}
.hw .verdict{padding:10px 14px;border-left:5px solid;background:#f5f7fa;margin:12px 0;color:#1f2933}
.hw table{border-collapse:collapse;width:100%;font-size:13px}.hw th{text-align:left;color:#52606d;font-weight:600}
.hw td,.hw th{padding:5px 8px;border-bottom:1px solid #e4e7eb}.hw .n{text-align:right;font-variant-numeric:tabular-nums}
.hw .bins{display:flex;gap:24px;flex-wrap:wrap}.hw svg text{font-size:10px;fill:#52606d}
</style>"""


def write_report(report: DriftReport, reference_rows: pa.Table, path: Path, history: pa.Table | None = None) -> Path:
    """Write the report to `path`, replacing it at once, and return it.

    `reference_rows` is the reference's `reference.parquet`; `history` (ROWS, default the report's own) draws the
    strips. The current sample is the latest window that has rows. Columns that are null throughout on either side are
    left to our own table: Evidently cannot draw them.
    """
    judged = report.rows if history is None else history.select(ROWS.names)
    current = next((w for w in reversed(report.windows) if w.rows.num_rows), None)
    summary = _summary(report, judged.to_pylist(), current)
    page = _page(summary, "" if current is None else _evidently(report, reference_rows, current.rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, path)
    return path


def _page(summary: str, evidently: str) -> str:
    """Our summary at the top of Evidently's own document."""
    if not evidently:
        return f'<!doctype html><html lang="en"><head><meta charset="utf-8"></head><body>{summary}</body></html>'
    head, body, rest = evidently.partition("<body>")
    if not body:
        raise ValueError("found no <body> in Evidently's document: its version is not the pinned one")
    return f"{head}{body}{summary}{rest}"


def _evidently(report: DriftReport, reference_rows: pa.Table, current_rows: pa.Table) -> str:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    names = [c.bins.column for c in report.reference.columns]
    tables = [_sample(table.select(names)) for table in (reference_rows, current_rows)]
    drawn = [name for name in names if all(t[name].null_count < t.num_rows for t in tables)]
    if not drawn:
        return ""
    text = {c.bins.column for c in report.reference.columns if c.bins.kind == "text"}
    definition = DataDefinition(
        numerical_columns=[name for name in drawn if name not in text],
        categorical_columns=[name for name in drawn if name in text],
    )
    reference, current = (
        Dataset.from_pandas(table.select(drawn).to_pandas(), data_definition=definition) for table in tables
    )
    run = Report([DataDriftPreset(columns=drawn, method="psi", threshold=0.2)]).run(current, reference)
    return str(run.get_html_str(as_iframe=False))


def _sample(table: pa.Table) -> pa.Table:
    """At most SAMPLE_ROWS rows, the same ones every time; infinite values as nulls, which histograms cannot hold."""
    if table.num_rows > SAMPLE_ROWS:
        chosen = np.sort(np.random.default_rng(7).choice(table.num_rows, SAMPLE_ROWS, replace=False))
        table = table.take(pa.array(chosen))
    return pa.table({name: _drawable(table[name]) for name in table.column_names})


def _drawable(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_boolean(values.type):
        return values.cast(pa.string())
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type) or pa.types.is_decimal(values.type)):
        return values
    floats = values.cast(pa.float64(), safe=False)
    return pc.if_else(pc.is_finite(floats), floats, pa.scalar(None, pa.float64()))


def _summary(report: DriftReport, judged: Sequence[dict[str, Any]], current: Window | None) -> str:
    status, reference = report.status, report.reference
    color = _AMBER if status.upstream else _RED if status.sustained else _GREEN
    rows = "".join(_feature_row(detail, judged) for detail in status.details)
    return f"""{_STYLE}<div class="hw">
<h1>Drift of {_safe(status.model)}, version {_safe(status.version or reference.version)}</h1>
<p>Reference: {reference.rows:,} rows in {len(reference.ends)} windows, {reference.ends[0]:%Y-%m-%d} to
{reference.ends[-1]:%Y-%m-%d}, fixed {reference.fixed_at:%Y-%m-%d %H:%M}. Judged up to {_day(status.window_end)}.</p>
<div class="verdict" style="border-color:{color}">{_safe(status.cause)}{_episode(report)}</div>
<table><tr><th>Column</th><th class="n">PSI</th><th class="n">Threshold</th><th class="n">KL</th>
<th>PSI beside its threshold</th><th>Windows, oldest first</th></tr>{rows}</table>
<p>PSI over bins fixed by the reference's quantiles, with bins of their own for null, infinite and unseen values. The
threshold is the larger of the model's floor and what sampling and the column's own past explain.</p>
<h2>Where the worst columns moved</h2><div class="bins">{_bins(report, current)}</div>
<h2>Distributions, by Evidently</h2>
<p>Samples of at most {SAMPLE_ROWS:,} rows. Evidently's PSI has equal-width bins and one threshold, 0.2, for every
column, and its headline counts columns: it illustrates, the table above decides.</p></div>"""


def _episode(report: DriftReport) -> str:
    status = report.status
    return f"<br>Episode since {status.episode:%Y-%m-%d} ({_safe(status.cause_id or '')})" if status.episode else ""


def _feature_row(detail: FeatureStatus, judged: Sequence[dict[str, Any]]) -> str:
    color = _RED if detail.sustained else _AMBER if detail.psi > detail.threshold else _GREEN
    cells = (detail.psi, detail.threshold, detail.kl)
    numbers = "".join(f'<td class="n">{value:.3f}</td>' for value in cells)
    name = f'<td style="color:{color};font-weight:600">{_safe(detail.feature)}</td>'
    return f"<tr>{name}{numbers}<td>{_bar(detail, color)}</td><td>{_strip(detail.feature, judged)}</td></tr>"


def _bar(detail: FeatureStatus, color: str) -> str:
    """PSI as a bar, the threshold as a tick at one half of the width."""
    width = 200 * min(detail.psi / (2 * detail.threshold), 1.0)
    return (
        f'<svg width="204" height="14"><rect x="1" y="3" width="{width:.1f}" height="8" fill="{color}"/>'
        '<line x1="101" x2="101" y1="0" y2="14" stroke="#1f2933"/></svg>'
    )


def _strip(feature: str, judged: Sequence[dict[str, Any]]) -> str:
    """One square for each window: breached, calm, or not judged."""
    latest = {row["window_end"]: row for row in judged if row["feature"] == feature}
    squares = []
    for place, end in enumerate(sorted(latest)[-STRIP_WINDOWS:]):
        row = latest[end]
        color = _GREY if row["upstream"] else _RED if row["breached"] else _GREEN
        title = row["upstream"] or f"PSI {row['psi']:.3f}, threshold {row['threshold']:.3f}, {row['n_current']} rows"
        squares.append(
            f'<rect x="{place * 15}" y="1" width="12" height="12" fill="{color}">'
            f"<title>{_day(end)}: {_safe(title)}</title></rect>"
        )
    return f'<svg width="{15 * STRIP_WINDOWS}" height="14">{"".join(squares)}</svg>'


def _bins(report: DriftReport, current: Window | None) -> str:
    if current is None:
        return "<p>No current rows.</p>"
    columns = {c.bins.column: c for c in report.reference.columns}
    worst = [d.feature for d in report.status.details if d.feature in columns][:DRAWN_COLUMNS]
    return "".join(_bin_chart(columns[name], current) for name in worst)


def _bin_chart(column: ColumnReference, current: Window) -> str:
    """Shares of each occupied bin: the reference in grey, the current window in color."""
    known = np.array(column.counts, np.int64)
    now = column.bins.counts(current.rows.column(column.bins.column))
    shares = [counts / max(int(counts.sum()), 1) for counts in (known, now)]
    kept = [i for i in range(len(known)) if known[i] or now[i]]
    scale = 150 / max(float(np.max(shares)), 1e-9)
    lines = []
    for row, i in enumerate(kept):
        y = 16 * row
        for offset, share, color in ((1, shares[0][i], _GREY), (7, shares[1][i], "#2f6fab")):
            lines.append(f'<rect x="150" y="{y + offset}" width="{share * scale:.1f}" height="6" fill="{color}"/>')
        lines.append(f'<text x="144" y="{y + 11}" text-anchor="end">{_safe(column.bins.labels[i])}</text>')
    title = f"<b>{_safe(column.bins.column)}</b> <span>grey: reference, blue: window to {_day(current.end)}</span>"
    return f'<div><p>{title}</p><svg width="310" height="{16 * len(kept) + 4}">{"".join(lines)}</svg></div>'


def _day(instant: datetime | None) -> str:
    return f"{instant:%Y-%m-%d}" if instant else "never"


def _safe(text: str) -> str:
    return html.escape(text)
