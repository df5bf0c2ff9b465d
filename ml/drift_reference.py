"""What the population looked like when a model was trained, in counts: bins, the reference, PSI and KL.

Pure arithmetic over Arrow columns. Where the rows come from is in `ml.drift_windows`; what a shift means is in
`ml.drift`.

Errors: DriftError (ValueError)
          ├─ ColumnKindError     a column is neither a number, a truth value nor a string
          └─ NoReferenceError    too little history to say what is normal
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ml.drift_windows import Window

__all__ = ["Bins", "ColumnKindError", "ColumnReference", "DriftError", "NoReferenceError", "Reference", "kl", "psi"]

Counts = NDArray[np.int64]

# Fewer rows cannot fill ten bins, so their shares say nothing.
MIN_REFERENCE_ROWS = 100
# The usual shift is what nine in ten past windows stayed below: an episode of drift that lies within the reference must
# not blind the monitor for a year, and a trend's shift keeps growing. On the UCI retail year the
# trending features stayed below 1.2 times that in the four weeks that the reference had not seen: hence the margin.
HISTORY_QUANTILE = 0.9
HISTORY_MARGIN = 1.5
# Known categories are listed so that a new one can be told from a rare one; beyond this many the tail counts as unseen
# in the reference and in the current rows alike.
MAX_VOCABULARY = 1_000
_PREFIX = {"number": ("null", "-inf", "+inf"), "text": ("null", "unseen", "other")}


class DriftError(ValueError):
    """Drift cannot be computed."""


class ColumnKindError(DriftError):
    """A column is neither a number, a truth value nor a string."""


class NoReferenceError(DriftError):
    """Too little history to say what is normal."""


def psi(reference: Counts, current: Counts) -> float:
    """Population stability index of two arrays of counts over the same bins; 0 when equal, never negative.

    sum (q - p) ln(q / p), symmetric (Siddiqi, Credit Risk Scorecards, 2006). `p` and `q` carry the Jeffreys prior of
    half a row in each bin (Krichevsky & Trofimov, 1981), so that an empty bin is finite; a bin that is empty on both
    sides is left out, because half a row is a different share of 200 rows than of 5,000.
    """
    p, q = _shares(reference, current)
    return float(np.sum((q - p) * np.log(q / p)))


def kl(reference: Counts, current: Counts) -> float:
    """Kullback-Leibler divergence of the current from the reference, sum q ln(q / p), in nats; smoothed as `psi`."""
    p, q = _shares(reference, current)
    return float(max(0.0, np.sum(q * np.log(q / p))))


def sampling_psi(reference: Counts, current: Counts, false_alarm_rate: float) -> float:
    """The PSI that sampling alone exceeds with probability `false_alarm_rate` when nothing has shifted.

    Under no shift PSI is about chi-squared(B - 1) x (1/n + 1/m) (Yurdakul & Naranjo, Journal of Risk Model Validation,
    2020), B bins that either side occupies. The quantile is Wilson and Hilferty's (1931): from 5 degrees of freedom on
    at most 3.5% too high down to 1e-5, and not too low.
    """
    freedom = int(np.count_nonzero(reference + current)) - 1
    n, m = int(reference.sum()), int(current.sum())
    if n == 0 or m == 0:
        return math.inf
    return chi2_quantile(1 - false_alarm_rate, freedom) * (1 / n + 1 / m)


def chi2_quantile(probability: float, freedom: int) -> float:
    """Wilson-Hilferty quantile of chi-squared; 0 without a degree of freedom."""
    if freedom < 1:
        return 0.0
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + NormalDist().inv_cdf(probability) * math.sqrt(spread)) ** 3)


def _shares(reference: Counts, current: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    occupied = (reference + current) > 0
    p, q = reference[occupied] + 0.5, current[occupied] + 0.5
    return p / p.sum(), q / q.sum()


@dataclass(frozen=True)
class Bins:
    """How one column's values are binned; fixed by the reference, so that one wild value cannot stretch a bin.

    Numbers: null (NaN too), -inf, +inf, then the intervals (edge, edge]. Text: null, unseen, other known, then the
    `own` most frequent values of `vocabulary`.
    """

    column: str
    kind: str
    edges: tuple[float, ...] = ()
    vocabulary: tuple[str, ...] = ()
    own: int = 0

    @classmethod
    def fit(cls, column: str, values: pa.ChunkedArray, bins: int) -> Bins:
        """At most about `bins` bins of equal mass; a value that alone weighs a bin (0, mostly) gets its own."""
        if _is_text(values.type):
            ranked = _by_frequency(_as_text(values))
            return cls(column, "text", vocabulary=tuple(ranked[:MAX_VOCABULARY]), own=min(bins, len(ranked)))
        return cls(column, "number", edges=_edges(_as_numbers(column, values), bins))

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each bin, in the order of `counts`."""
        if self.kind == "text":
            return (*_PREFIX["text"], *self.vocabulary[: self.own])
        return (*_PREFIX["number"], *(_interval(a, b) for a, b in pairwise((-math.inf, *self.edges, math.inf))))

    def counts(self, values: pa.ChunkedArray) -> Counts:
        """Rows in each bin, int64[len(labels)]. Raises ColumnKindError."""
        if self.kind == "text":
            return self._text_counts(_as_text(values))
        numbers = _as_numbers(self.column, values)
        finite = numbers[np.isfinite(numbers)]
        inside = np.bincount(np.searchsorted(np.array(self.edges), finite, side="left"), minlength=len(self.edges) + 1)
        special = [np.isnan(numbers).sum(), np.isneginf(numbers).sum(), np.isposinf(numbers).sum()]
        return np.concatenate([special, inside]).astype(np.int64)

    def _text_counts(self, values: pa.ChunkedArray) -> Counts:
        found = pc.index_in(values, value_set=pa.array(self.vocabulary, pa.string()))
        codes = pc.fill_null(found, -1).to_numpy()
        nulls = values.null_count
        other = int((codes >= self.own).sum())
        own = np.bincount(codes[(codes >= 0) & (codes < self.own)], minlength=self.own)
        return np.concatenate([[nulls, int((codes < 0).sum()) - nulls, other], own]).astype(np.int64)


def _interval(low: float, high: float) -> str:
    alone = math.nextafter(low, high) == high  # one double lies in (low, high]: the bin of a heavy value
    return f"{high:.6g}" if alone else f"({low:.6g}, {high:.6g}]"


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_dictionary(kind)
    )


def _as_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return values.cast(pa.string())


def _as_numbers(column: str, values: pa.ChunkedArray) -> NDArray[np.float64]:
    kind = values.type
    known = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (known or pa.types.is_null(kind)):
        raise ColumnKindError(f"column {column!r} is {kind}: drift is computed for numbers, truth values and strings")
    floats = values.cast(pa.float64(), safe=False).to_numpy()
    return np.asarray(floats, dtype=np.float64)


def _by_frequency(values: pa.ChunkedArray) -> list[str]:
    """Distinct values, most frequent first, then by name, so that the order of rows does not matter."""
    counted = pc.value_counts(values.drop_null()).to_pylist()
    return [c["values"] for c in sorted(counted, key=lambda c: (-c["counts"], c["values"]))]


def _edges(values: NDArray[np.float64], bins: int) -> tuple[float, ...]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ()
    distinct, weight = np.unique(finite, return_counts=True)
    heavy = distinct[weight >= len(finite) / bins]
    rest = finite[~np.isin(finite, heavy)]
    # The heaviest values take one bin each, the others share what is left by quantile.
    shares = np.linspace(0, 1, max(bins - len(heavy), 1) + 1)[1:-1]
    cuts = np.quantile(rest, shares, method="inverted_cdf") if len(rest) else np.array([])
    with np.errstate(over="ignore"):  # nothing finite lies below the smallest double
        below = np.nextafter(heavy, -np.inf)
    edges = np.unique(np.concatenate([cuts, heavy, below]))
    return tuple(float(e) for e in edges[np.isfinite(edges)])


@dataclass(frozen=True)
class ColumnReference:
    """One column's bins, its counts over the whole reference, and its counts in each of the reference's windows."""

    bins: Bins
    counts: tuple[int, ...]
    history: tuple[tuple[int, ...], ...]

    def usual_psi(self) -> float:
        """How far a past window lies from all the others (HISTORY_QUANTILE of them), less what sampling explains.

        Growth and seasons are in it: a feature that moves from window to window earns a wide band.
        """
        total = np.array(self.counts, np.int64)
        shifts = [_excess(total - past, past) for past in map(np.array, self.history)]
        return float(np.quantile(shifts, HISTORY_QUANTILE, method="higher")) if shifts else 0.0

    def threshold(self, current: Counts, floor: float, false_alarm_rate: float) -> float:
        """max(floor, margin x the usual shift + what sampling explains)."""
        sampling = sampling_psi(np.array(self.counts, np.int64), current, false_alarm_rate)
        return max(floor, HISTORY_MARGIN * self.usual_psi() + sampling)


def _excess(others: Counts, past: Counts) -> float:
    n, m = int(others.sum()), int(past.sum())
    if n == 0 or m == 0:
        return 0.0
    freedom = int(np.count_nonzero(others + past)) - 1
    return max(0.0, psi(others, past) - freedom * (1 / n + 1 / m))


@dataclass(frozen=True)
class Reference:
    """The population that a model version is compared with, fixed when it was trained; JSON in and out.

    `events` and `quiet_days` are, for each past window, the events that it held and the time from its last one to its
    end: they say what a normal feed looks like.
    """

    model: str
    version: str
    fixed_at: datetime
    ends: tuple[datetime, ...]
    events: tuple[int, ...]
    quiet_days: tuple[float, ...]
    columns: tuple[ColumnReference, ...]

    @classmethod
    def fit(
        cls,
        windows: Sequence[Window],
        columns: Sequence[str],
        *,
        bins: int,
        model: str = "",
        version: str = "",
        fixed_at: datetime | None = None,
    ) -> Reference:
        """Fix bins and counts from past windows; `columns` are features and `prediction`.

        Windows without rows are left out. Raises NoReferenceError when fewer than MIN_REFERENCE_ROWS rows remain.
        """
        kept = sorted((w for w in windows if w.rows.num_rows), key=lambda w: w.end)
        rows = sum(w.rows.num_rows for w in kept)
        if rows < MIN_REFERENCE_ROWS:
            raise NoReferenceError(
                f"model {model!r}: {len(windows)} past windows hold {rows} rows, drift needs {MIN_REFERENCE_ROWS}: "
                "let more history arrive, or shorten drift.window_days or drift.windows in the model's YAML"
            )
        return cls(
            model=model,
            version=version,
            fixed_at=fixed_at or kept[-1].end,
            ends=tuple(w.end for w in kept),
            events=tuple(w.events for w in kept),
            quiet_days=tuple(w.quiet_days for w in kept),
            columns=tuple(_column_reference(name, kept, bins) for name in columns),
        )

    @property
    def rows(self) -> int:
        return sum(self.columns[0].counts) if self.columns else 0

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON text; `from_json` reads it back to an equal object."""
        return json.dumps(asdict(self), sort_keys=True, default=datetime.isoformat)

    @classmethod
    def from_json(cls, text: str) -> Reference:
        """Read what `to_json` wrote."""
        tree = json.loads(text)
        tree["fixed_at"] = datetime.fromisoformat(tree["fixed_at"])
        tree["ends"] = tuple(datetime.fromisoformat(e) for e in tree["ends"])
        tree["events"], tree["quiet_days"] = tuple(tree["events"]), tuple(tree["quiet_days"])
        tree["columns"] = tuple(_column_from(c) for c in tree["columns"])
        return cls(**tree)


def _column_reference(name: str, windows: Sequence[Window], bins: int) -> ColumnReference:
    together = pa.chunked_array([c for w in windows for c in w.rows.column(name).chunks], windows[0].rows[name].type)
    fitted = Bins.fit(name, together, bins)
    history = [fitted.counts(w.rows.column(name)) for w in windows]
    total = np.sum(history, axis=0)
    return ColumnReference(fitted, tuple(map(int, total)), tuple(tuple(map(int, h)) for h in history))


def _column_from(tree: dict[str, Any]) -> ColumnReference:
    bins = tree["bins"]
    known = {**bins, "edges": tuple(bins["edges"]), "vocabulary": tuple(bins["vocabulary"])}
    return ColumnReference(Bins(**known), tuple(tree["counts"]), tuple(tuple(h) for h in tree["history"]))
