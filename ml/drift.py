"""Drift: which window's population differs from the reference, since when, and whether that asks for a retraining.

A window is judged by the champion of its time and the judgement is kept (`monitoring/<model>/drift`, append-only). The
status follows from the kept judgements alone, so it survives restarts, retraining and new champions.

    monitor(...)        what the asset calls: reference (fitted once per version), windows, judgement, record, status
    read_status(...)    what a sensor or the command line calls: the status from the table, nothing computed anew

Bins and distances are in `ml.drift_reference`, the rows in `ml.drift_windows`, episodes in `ml.drift_status`, the
report in `ml.drift_report`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog import keys
from catalog.spec import Drift, Model
from lake import Lake
from ml.drift_reference import ColumnKindError, DriftError, NoReferenceError, Reference, kl, psi
from ml.drift_status import ROWS, DriftStatus, FeatureStatus, read_status, status_of, unrecorded
from ml.drift_windows import (
    PREDICTION,
    Features,
    Predict,
    Window,
    build_windows,
    columns_of,
    reference_windows,
    windows_for,
)

__all__ = [
    "PREDICTION",
    "ROWS",
    "ColumnKindError",
    "DriftError",
    "DriftReport",
    "DriftStatus",
    "FeatureStatus",
    "NoReferenceError",
    "Reference",
    "Window",
    "build_windows",
    "columns_of",
    "evaluate",
    "fit_reference",
    "judge",
    "kl",
    "load_reference",
    "monitor",
    "psi",
    "read_status",
    "record",
    "reference_windows",
    "status_of",
    "windows_for",
]

# A window with less than this share of the usual events is a feed that broke, not a population that moved.
COLLAPSED_SHARE = 0.2


@dataclass(frozen=True)
class DriftReport:
    """What one evaluation found: `rows` (ROWS) of the windows under judgement, the status, how many rows were new."""

    rows: pa.Table
    status: DriftStatus
    appended: int
    windows: tuple[Window, ...]
    reference: Reference


def judge(reference: Reference, windows: Sequence[Window], policy: Drift, now: datetime) -> pa.Table:
    """Compare each window with the reference. Returns ROWS, windows in order, features in the reference's order.

    The false-alarm rate holds for a whole window: it is shared among its features (Bonferroni).
    """
    rate = policy.false_alarm_rate / max(len(reference.columns), 1)
    rows: list[dict[str, Any]] = []
    for window in windows:
        upstream = _upstream(reference, window)
        common = {
            "window_start": window.start,
            "window_end": window.end,
            "n_reference": reference.rows,
            "n_current": window.rows.num_rows,
            "upstream": upstream,
            "events": window.events,
            "model": reference.model,
            "version": reference.version,
            "reference_digest": reference.digest,
            "evaluated_at": now,
        }
        for column in reference.columns:
            known = np.array(column.counts, np.int64)
            current = column.bins.counts(window.rows.column(column.bins.column))
            shift, threshold = psi(known, current), column.threshold(current, policy.psi_floor, rate)
            found = {"feature": column.bins.column, "psi": shift, "kl": kl(known, current), "threshold": threshold}
            rows.append({**common, **found, "breached": upstream is None and shift > threshold})
    return pa.Table.from_pylist(rows, ROWS)


def _upstream(reference: Reference, window: Window) -> str | None:
    """The feed's own failure, looked for before the population's: silence, a collapse, a feed that stopped."""
    span = f"{window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M}"
    usual = float(np.median(reference.events))
    if window.events == 0 or window.rows.num_rows == 0:
        return f"no events arrived from {span}"
    if window.events < COLLAPSED_SHARE * usual:
        return f"{window.events} events from {span}, usual are {usual:.0f}"
    patience = max((window.end - window.start) / timedelta(days=2), *reference.quiet_days)
    if window.quiet_days > patience:
        return f"no event since {window.last_event_at:%Y-%m-%d %H:%M}, {window.quiet_days:.1f} days before the end"
    return None


def evaluate(
    reference: Reference,
    windows: Mapping[datetime, pa.Table] | Sequence[Window],
    policy: Drift,
    now: datetime | None = None,
    history: pa.Table | None = None,
) -> DriftReport:
    """Judge windows and derive the status from them and from earlier judgements (`history`, ROWS); writes nothing.

    A mapping from window end to rows stands for windows whose feed was normal.
    """
    if isinstance(windows, Mapping):
        windows = [_plain_window(reference, policy, end, rows) for end, rows in sorted(windows.items())]
    rows = judge(reference, windows, policy, now or max((w.end for w in windows), default=reference.fixed_at))
    fresh = rows if history is None else unrecorded(rows, history)
    known = fresh if history is None else pa.concat_tables([history.select(ROWS.names).cast(ROWS), fresh])
    return DriftReport(rows, status_of(known, policy, reference.model), fresh.num_rows, tuple(windows), reference)


def _plain_window(reference: Reference, policy: Drift, end: datetime, rows: pa.Table) -> Window:
    return Window(end - timedelta(days=policy.window_days), end, rows, int(np.median(reference.events)), end)


def record(lake: Lake, model: str, rows: pa.Table) -> int:
    """Append the judgements that `monitoring/<model>/drift` does not hold yet; returns how many rows were new.

    One for each window and version; a window that could not be judged (upstream) is judged again when its data came.
    """
    key = keys.drift(model)
    if not lake.exists(key):
        lake.append(key, rows)
        return int(rows.num_rows)
    fresh = unrecorded(rows, lake.read(key))
    if fresh.num_rows:
        lake.append(key, fresh)
    return int(fresh.num_rows)


def fit_reference(
    model: Model, version: str, lake: Lake, features: Features, predict: Predict, fixed_at: datetime, directory: Path
) -> Reference:
    """Fix the reference of a model version in `directory`: reference.json, and its rows in reference.parquet.

    Raises NoReferenceError.
    """
    windows = reference_windows(model, lake, features, predict, fixed_at)
    policy = model.drift
    reference = Reference.fit(
        windows, columns_of(model), bins=policy.bins, model=model.name, version=version, fixed_at=fixed_at
    )
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables([w.rows for w in windows]), directory / "reference.parquet")
    # The JSON comes last and at once: with it the reference is complete.
    draft = directory / "reference.json.new"
    draft.write_text(reference.to_json())
    os.replace(draft, directory / "reference.json")
    return reference


def load_reference(directory: Path) -> Reference | None:
    """What `fit_reference` wrote; None when there is none."""
    file = directory / "reference.json"
    return Reference.from_json(file.read_text()) if file.exists() else None


def monitor(
    model: Model,
    version: str,
    lake: Lake,
    features: Features,
    predict: Predict,
    *,
    now: datetime,
    fixed_at: datetime,
    directory: Path,
) -> DriftReport:
    """Judge the last windows for the champion `version` and record the judgement.

    `features` and `predict` are those of `ml.drift_windows`; `fixed_at` is the business instant of the version's
    training; `directory` keeps one version's reference. Raises NoReferenceError while history is too short.
    """
    reference = load_reference(directory)
    if reference is None or reference.version != version:
        reference = fit_reference(model, version, lake, features, predict, fixed_at, directory)
    windows = build_windows(model, lake, features, predict, now)
    rows = judge(reference, windows, model.drift, now)
    appended = record(lake, model.name, rows)
    return DriftReport(rows, read_status(lake, model), appended, windows, reference)
