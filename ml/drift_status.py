"""Where a model stands, derived from the kept judgements of `monitoring/<model>/drift`; computes no drift.

A window is judged by the champion of its time; a later version's judgement of the same window is kept beside it but
does not rewrite it. An episode is a continuous run of windows at which the breach was sustained, through restarts,
retraining and new champions.

An episode has a cause id, which asks for one retraining. That one cannot have learned from the drift: a label takes a
horizon to mature, so its hold-out and training cut-offs lie before. So while the breach persists, each further whole
horizon is a cause of its own: at the first the hold-out's labels are all of the drifted period, at the second those of
the newest training cut-off are too. Nothing here looks at a clock: the latest judged window is "now".

Light enough for a sensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa

from catalog import keys
from catalog.spec import Drift, Model
from lake import Lake

__all__ = ["ROWS", "DriftStatus", "FeatureStatus", "read_status", "status_of", "unrecorded"]

# monitoring/<model>/drift: one row for each judged window, version and feature (`prediction` is one of them).
# `upstream` says why the window cannot be judged (then `breached` is false); null when it can.
ROWS = pa.schema(
    [
        ("window_start", pa.timestamp("us")),
        ("window_end", pa.timestamp("us")),
        ("feature", pa.string()),
        ("psi", pa.float64()),
        ("kl", pa.float64()),
        ("threshold", pa.float64()),
        ("n_reference", pa.int64()),
        ("n_current", pa.int64()),
        ("breached", pa.bool_()),
        ("upstream", pa.string()),
        ("events", pa.int64()),
        ("model", pa.string()),
        ("version", pa.string()),
        ("reference_digest", pa.string()),
        ("evaluated_at", pa.timestamp("us")),
    ]
)


@dataclass(frozen=True)
class FeatureStatus:
    """One feature in the latest judged window; `breaches` counts the last `windows` windows."""

    feature: str
    psi: float
    kl: float
    threshold: float
    breaches: int
    windows: int
    sustained: bool

    def line(self) -> str:
        """For the command line."""
        mark = "DRIFT" if self.sustained else "above" if self.psi > self.threshold else "ok"
        return (
            f"{mark:5}  {self.feature:28} PSI {self.psi:7.3f}  threshold {self.threshold:6.3f}  "
            f"KL {self.kl:7.3f}  breached {self.breaches} of the last {self.windows} windows"
        )


@dataclass(frozen=True)
class DriftStatus:
    """Where a model stands. `episode`, `cause_id` and what follows are set while a breach is sustained.

    `episode` is the window end at which the breach became sustained, `drifted_from` the start of its first breached
    window, `matured` the cut-off in the drifted period whose label last matured, whole horizons after `drifted_from`
    (None: no label of that period is mature), `matures_next` the instant at which the next one's will be.
    """

    model: str
    version: str | None
    window_end: datetime | None
    sustained: bool
    features: tuple[str, ...]
    episode: datetime | None
    cause: str
    cause_id: str | None
    upstream: str | None
    details: tuple[FeatureStatus, ...]
    drifted_from: datetime | None = None
    matured: datetime | None = None
    matures_next: datetime | None = None

    @property
    def wants_retraining(self) -> bool:
        """A sustained breach that no upstream cause explains."""
        return self.sustained and self.upstream is None

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no infinity: the threshold of an empty window is None."""
        plain = asdict(self)
        for detail in plain["details"]:
            detail["threshold"] = detail["threshold"] if math.isfinite(detail["threshold"]) else None
        for name in ("window_end", "episode", "drifted_from", "matured", "matures_next"):
            plain[name] = plain[name].isoformat() if plain[name] else None
        return {**plain, "wants_retraining": self.wants_retraining}

    def lines(self) -> list[str]:
        """The status for people: a headline, what comes next, then one line for each feature, the worst first."""
        lines = [f"{self.model}: {self.cause}"]
        if self.wants_retraining:
            lines.append(f"  {self._next()}")
        worst = sorted(self.details, key=lambda d: (not d.sustained, d.threshold - d.psi))
        return [*lines, *(f"  {detail.line()}" for detail in worst)]

    def _next(self) -> str:
        since = f"drifted since {self.drifted_from:%Y-%m-%d}; cause {self.cause_id}"
        return since + (f"; if it lasts, again at {self.matures_next:%Y-%m-%d}" if self.matures_next else "")


def status_of(rows: pa.Table, policy: Drift, model: str, horizon: timedelta | None = None) -> DriftStatus:
    """The status that follows from kept judgements (ROWS), in any order.

    `horizon` is the time that a label takes to mature; None when there is no label to wait for.
    """
    judged = _first_judgements(rows)
    if not judged:
        return DriftStatus(model, None, None, False, (), None, "no window has been judged yet", None, None, ())
    ends = sorted(judged)
    details = _details(judged, ends, policy)
    features = tuple(d.feature for d in details if d.sustained)
    episode = _episode_start(judged, ends, policy)
    drifted_from = _drifted_from(judged, ends, episode, policy) if episode else None
    matured, matures_next = _maturity(drifted_from, ends[-1], horizon)
    latest = next(iter(judged[ends[-1]].values()))
    return DriftStatus(
        model=model,
        version=latest["version"],
        window_end=ends[-1],
        sustained=episode is not None,
        features=features,
        episode=episode,
        cause=_cause(details, policy, ends[-1], latest["upstream"], matured),
        cause_id=_cause_id(model, episode, matured),
        upstream=latest["upstream"],
        details=details,
        drifted_from=drifted_from,
        matured=matured,
        matures_next=matures_next,
    )


Judged = dict[datetime, dict[str, dict[str, Any]]]


def _first_judgements(rows: pa.Table) -> Judged:
    """For each window and feature the first verdict that was not upstream: a later version's does not rewrite it."""
    with duckdb.connect() as db:
        db.register("drift_rows", rows)
        first = db.sql(
            """SELECT * FROM drift_rows QUALIFY row_number() OVER (PARTITION BY window_end, feature
                ORDER BY upstream IS NOT NULL, evaluated_at, length(version), version) = 1
            ORDER BY window_end, feature"""
        ).to_arrow_table()
    judged: Judged = {}
    for row in first.to_pylist():
        judged.setdefault(row["window_end"], {})[row["feature"]] = row
    return judged


def _recent(ends: Sequence[datetime], at: datetime, policy: Drift) -> list[datetime]:
    oldest = at - timedelta(days=policy.window_days) * policy.windows
    return [end for end in ends if oldest < end <= at]


def _sustained_at(judged: Judged, ends: Sequence[datetime], at: datetime, policy: Drift) -> dict[str, int]:
    """Features breached in at least k of the m windows up to `at`, with their count."""
    counts: dict[str, int] = {}
    for end in _recent(ends, at, policy):
        for feature, row in judged[end].items():
            counts[feature] = counts.get(feature, 0) + row["breached"]
    return {feature: count for feature, count in counts.items() if count >= policy.breaches}


def _episode_start(judged: Judged, ends: Sequence[datetime], policy: Drift) -> datetime | None:
    """The first window end of the run of sustained windows that reaches the latest; None when that is not sustained.

    A window that could not be judged neither ends a run nor begins one.
    """
    start: datetime | None = None
    for end in ends:
        if next(iter(judged[end].values()))["upstream"] is not None:
            continue
        sustained = bool(_sustained_at(judged, ends, end, policy))
        start = (start or end) if sustained else None
    return start


def _drifted_from(judged: Judged, ends: Sequence[datetime], episode: datetime, policy: Drift) -> datetime:
    """The start of the first window whose breaches made the episode."""
    sustained = _sustained_at(judged, ends, episode, policy)
    rows = [row for end in _recent(ends, episode, policy) for name, row in judged[end].items() if name in sustained]
    first: datetime = min(row["window_start"] for row in rows if row["breached"])
    return first


def _maturity(
    drifted_from: datetime | None, end: datetime, horizon: timedelta | None
) -> tuple[datetime | None, datetime | None]:
    """The last cut-off, whole horizons after `drifted_from`, whose label is mature at `end`; when the next one's is."""
    if drifted_from is None or horizon is None:
        return None, None
    horizons = (end - drifted_from) // horizon
    matured = drifted_from + horizon * (horizons - 1) if horizons else None
    return matured, drifted_from + horizon * (horizons + 1)


def _cause_id(model: str, episode: datetime | None, matured: datetime | None) -> str | None:
    if episode is None:
        return None
    begun = f"{model}-{episode:%Y%m%dT%H%M%S}"
    return f"{begun}:matured:{matured:%Y%m%d}" if matured else begun


def _details(judged: Judged, ends: Sequence[datetime], policy: Drift) -> tuple[FeatureStatus, ...]:
    last = ends[-1]
    sustained = _sustained_at(judged, ends, last, policy)
    recent = _recent(ends, last, policy)
    found = []
    for feature, row in judged[last].items():
        breaches = sum(judged[end][feature]["breached"] for end in recent if feature in judged[end])
        shown = (row["psi"], row["kl"], row["threshold"], breaches, len(recent), feature in sustained)
        found.append(FeatureStatus(feature, *shown))
    return tuple(sorted(found, key=lambda d: (not d.sustained, d.threshold - d.psi)))


def _cause(
    details: Sequence[FeatureStatus], policy: Drift, end: datetime, upstream: str | None, matured: datetime | None
) -> str:
    if upstream:
        return f"upstream, not drift: {upstream}"
    sustained = [d for d in details if d.sustained]
    if not sustained:
        return f"no sustained drift in the {policy.windows} windows up to {end:%Y-%m-%d}"
    top = ", ".join(f"{d.feature} PSI {d.psi:.2f} over {d.threshold:.2f}" for d in sustained[:3])
    more = f" and {len(sustained) - 3} more" if len(sustained) > 3 else ""
    labels = f"labels of the drifted period are mature up to cut-off {matured:%Y-%m-%d}; " if matured else ""
    return f"{labels}{top}{more}; in {policy.breaches} or more of {policy.windows} windows up to {end:%Y-%m-%d}"


def read_status(lake: Lake, model: Model) -> DriftStatus:
    """The status from what `monitoring/<model>/drift` holds; computes no drift. A missing table: nothing judged yet."""
    key = keys.drift(model.name)
    rows = lake.read(key) if lake.exists(key) else ROWS.empty_table()
    return status_of(rows, model.drift, model.name, timedelta(days=model.label.horizon_days))


def unrecorded(rows: pa.Table, history: pa.Table) -> pa.Table:
    """The rows of `rows` that `history` does not hold yet; both are ROWS."""
    with duckdb.connect() as db:
        db.register("fresh", rows)
        db.register("history", history)
        # A judged window is settled; an upstream one is settled only for another upstream verdict.
        found = db.sql(
            """SELECT fresh.* FROM fresh ANTI JOIN history ON fresh.window_end = history.window_end
            AND fresh.version = history.version AND fresh.feature = history.feature
            AND (history.upstream IS NULL OR fresh.upstream IS NOT NULL)
            ORDER BY fresh.window_end, fresh.feature"""
        ).to_arrow_table()
    return found.select(ROWS.names).cast(ROWS)
