"""Training sets as of honest instants, and the model that is fitted to them.

Entity rows are taken at monthly cut-offs. The latest cut-off whose label is mature is the hold-out; a training
cut-off's label window must have closed before the hold-out's cut-off, so nothing that training learned from is in the
hold-out's future. Features arrive through a callable (`ml.features.historical` with the store bound); the registry,
files and plots are elsewhere.

Errors: NotTrained               no honest model can be made of what there is; the message says what is missing
          ├─ NotEnoughHistory    no cut-off, or none before the hold-out, has a mature label
          ├─ TooFewRows          fewer entity rows than the gate asks for
          ├─ OneClass            every label of a binary model is the same
          └─ FeaturesMissing     the feature service did not return what was asked for
        DigestMismatch           a stored training set is not what its digest says
"""

from __future__ import annotations

import calendar
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.keys import Key
from catalog.spec import Label, Model
from lake.tables import Lake, quoted
from ml.algorithms import Fitted, fit
from ml.encoding import Encoding, Matrix, dtype_of, fit_encoding
from ml.evaluation import Evaluation, HoldOut, evaluate

__all__ = [
    "BASELINE_COLUMNS",
    "DigestMismatch",
    "FeaturesMissing",
    "NotEnoughHistory",
    "NotTrained",
    "OneClass",
    "Retrieve",
    "TooFewRows",
    "Trained",
    "TrainingSet",
    "build_training_set",
    "content_digest",
    "restore_training_set",
    "train",
    "training_entities",
]

# What the baselines know, from the label's table itself: they must not depend on the features that they judge.
BASELINE_COLUMNS = ("baseline_recency_days", "baseline_sum_90d")

Retrieve = Callable[[str, pa.Table], pa.Table]
"""(feature service, entity rows) -> the same rows in the same order with a column for each feature."""

# A purchase at the cut-off itself belongs to the label window [cut-off, ...), and a feature at t sees events at t:
# features are therefore read at the last instant before the cut-off.
INSTANT_BEFORE = timedelta(microseconds=1)


class NotTrained(RuntimeError):
    """No honest model can be made of what there is."""


class NotEnoughHistory(NotTrained):
    """No cut-off, or none before the hold-out, has a mature label."""


class TooFewRows(NotTrained):
    """Fewer entity rows than the gate asks for."""


class OneClass(NotTrained):
    """Every label of a binary model is the same."""


class DigestMismatch(RuntimeError):
    """A stored training set is not what its digest says."""


class FeaturesMissing(NotTrained):
    """The feature service did not return what was asked for."""


@dataclass(frozen=True)
class Cutoffs:
    """Instants at which entity rows are taken, oldest first."""

    training: tuple[datetime, ...]
    holdout: datetime


@dataclass(frozen=True)
class TrainingSet:
    """Entity rows with label and features.

    Columns of `table`: customer_id, event_timestamp (the instant features are read at: 1 us before the cut-off),
    cutoff, label (int64 0/1 or float64), is_holdout, BASELINE_COLUMNS, one for each of `features` in service order.
    `digest` is the sha256 of every value.
    """

    model: str
    table: pa.Table
    features: tuple[str, ...]
    cutoffs: Cutoffs
    digest: str
    built_at: datetime

    @property
    def training(self) -> pa.Table:
        return self.table.filter(pc.invert(self.table["is_holdout"]))

    @property
    def holdout(self) -> pa.Table:
        return self.table.filter(self.table["is_holdout"])


@dataclass(frozen=True)
class Trained:
    """A fitted model and how it did on the hold-out. `minimum` and `maximum` bound what it may predict.

    `importance` [n_features] sums to 1: the algorithm's own notion, else how far shuffling a feature moves the scores.
    """

    fitted: Fitted
    encoding: Encoding
    importance: Matrix
    minimum: float | None
    maximum: float | None
    evaluation: Evaluation


def training_entities(model: Model, lake: Lake, now: datetime) -> pa.Table:
    """Entity rows at every honest cut-off, ordered by cut-off and customer, without features.

    Raises NotEnoughHistory; MissingTableError when the label's table was never written.
    """
    return _entities(model, lake, plan_cutoffs(model, _first_event(model.label, lake), now))


def plan_cutoffs(model: Model, first_event: datetime | None, now: datetime) -> Cutoffs:
    """The hold-out at the day of now - horizon, and the training cut-offs months before it that are honest.

    Raises NotEnoughHistory.
    """
    if first_event is None:
        raise NotEnoughHistory(f"{model.name}: {model.label.table} has no rows before {now}, so nothing can be learned")
    horizon = timedelta(days=model.label.horizon_days)
    holdout = (now - horizon).replace(hour=0, minute=0, second=0, microsecond=0)
    earliest = first_event + timedelta(days=model.cutoffs.min_history_days)
    mature = [c for c in _months_back(holdout, earliest) if c + horizon <= holdout]
    training = tuple(reversed(mature[: model.cutoffs.max_count]))
    if not training:
        raise NotEnoughHistory(
            f"{model.name}: found {(now - first_event).days} days of history (from {first_event} to {now}), needed are "
            f"about {model.cutoffs.min_history_days + 2 * horizon.days + 31}: cutoffs.min_history_days before the "
            "first cut-off, label.horizon_days for its label and again for the hold-out's, and a whole month between; "
            "wait, or lower them in the model's YAML"
        )
    return Cutoffs(training, holdout)


def _months_back(instant: datetime, earliest: datetime) -> Iterator[datetime]:
    """One, two ... months before the instant, down to `earliest`; day 31 becomes a shorter month's last day."""
    for months in itertools.count(1):
        year, month = divmod(instant.year * 12 + instant.month - 1 - months, 12)
        last_day = calendar.monthrange(year, month + 1)[1]
        found = instant.replace(year=year, month=month + 1, day=min(instant.day, last_day))
        if found < earliest:
            return
        yield found


def _first_event(label: Label, lake: Lake) -> datetime | None:
    key = Key.parse(label.table)
    with lake.connect([key]) as db:
        found = db.sql(f"SELECT min(invoiced_at) FROM {quoted(key)} WHERE customer_id IS NOT NULL").fetchall()
    first: datetime | None = found[0][0]
    return first


def _entities(model: Model, lake: Lake, cutoffs: Cutoffs) -> pa.Table:
    """One pass over the events for all cut-offs. Sums are exact decimals: a float sum depends on the order of rows."""
    key, label = Key.parse(model.label.table), model.label
    amount = f'e."{label.column}"' if label.column else "0"
    outcome = "coalesce(sum(amount) FILTER (upcoming), 0)::DOUBLE" if label.column else "count_if(upcoming) = 0"
    sql = f"""
        WITH cutoffs AS (SELECT unnest($cutoffs::TIMESTAMP[]) AS cutoff),
        events AS (
            SELECT e.customer_id, e.invoiced_at, {amount}::DECIMAL(24, 6) AS amount, c.cutoff,
                   e.invoiced_at >= c.cutoff AS upcoming
            FROM {quoted(key)} AS e CROSS JOIN cutoffs AS c
            WHERE e.customer_id IS NOT NULL AND e.invoiced_at < c.cutoff + to_days($horizon)
        )
        SELECT customer_id::BIGINT AS customer_id,
               cutoff - INTERVAL 1 MICROSECOND AS event_timestamp,
               cutoff,
               ({outcome})::{"DOUBLE" if label.column else "BIGINT"} AS label,
               cutoff = $holdout::TIMESTAMP AS is_holdout,
               epoch(cutoff - max(invoiced_at) FILTER (NOT upcoming)) / 86400 AS baseline_recency_days,
               coalesce(sum(amount) FILTER (NOT upcoming AND invoiced_at >= cutoff - INTERVAL 90 DAY), 0)::DOUBLE
                   AS baseline_sum_90d
        FROM events
        GROUP BY cutoff, customer_id
        HAVING NOT bool_and(upcoming)
        ORDER BY cutoff, customer_id"""
    values = {
        "cutoffs": [*cutoffs.training, cutoffs.holdout],
        "holdout": cutoffs.holdout,
        "horizon": label.horizon_days,
    }
    with lake.connect([key]) as db:
        return db.sql(sql, params=values).to_arrow_table()


def build_training_set(model: Model, lake: Lake, retrieve: Retrieve, now: datetime) -> TrainingSet:
    """Entity rows with their features as known just before each cut-off. Raises NotTrained."""
    cutoffs = plan_cutoffs(model, _first_event(model.label, lake), now)
    entities = _entities(model, lake, cutoffs)
    _expect_rows(model, entities)
    table = retrieve(model.name, entities)
    features = _features_of(model, entities, table)
    table = table.select([*entities.column_names, *features])
    return TrainingSet(model.name, table, features, cutoffs, content_digest(table), now)


def restore_training_set(model: Model, table: pa.Table, built_at: datetime, digest: str) -> TrainingSet:
    """A training set that was stored, its rows in any order. Raises DigestMismatch when it is not the one recorded."""
    if (found := content_digest(table)) != digest:
        raise DigestMismatch(f"{model.name}: the stored training set has digest {found}, {digest} was recorded")
    # A fit depends on the order of rows, and files come back in any.
    table = table.sort_by([("cutoff", "ascending"), ("customer_id", "ascending")])
    cutoffs = sorted(table.filter(pc.invert(table["is_holdout"]))["cutoff"].unique().to_pylist())
    holdout = table.filter(table["is_holdout"])["cutoff"][0].as_py()
    features = tuple(name for name in table.column_names if name in {r.partition(":")[2] for r in model.features})
    return TrainingSet(model.name, table, features, Cutoffs(tuple(cutoffs), holdout), digest, built_at)


def _expect_rows(model: Model, entities: pa.Table) -> None:
    for name, held in (("hold-out", True), ("training", False)):
        labels = entities.filter(pc.equal(entities["is_holdout"], held))["label"]
        if len(labels) < model.gate.min_holdout_rows:
            raise TooFewRows(
                f"{model.name}: found {len(labels)} {name} rows, needed are {model.gate.min_holdout_rows} "
                "(gate.min_holdout_rows in the model's YAML)"
            )
        if model.task == "binary" and len(classes := labels.unique()) == 1:
            raise OneClass(
                f"{model.name}: found label {classes[0].as_py()} in all {len(labels)} {name} rows, needed both"
            )


def _features_of(model: Model, entities: pa.Table, table: pa.Table) -> tuple[str, ...]:
    """The feature columns in the order that the service returned them."""
    if table.num_rows != entities.num_rows:
        raise FeaturesMissing(
            f"{model.name}: the feature service returned {table.num_rows} rows for {entities.num_rows} entity rows"
        )
    if not table["customer_id"].equals(entities["customer_id"]):
        raise FeaturesMissing(f"{model.name}: the feature service returned the entity rows in another order")
    wanted = [ref.partition(":")[2] for ref in model.features]
    if missing := [name for name in wanted if name not in table.column_names]:
        raise FeaturesMissing(f"{model.name}: the feature service returned no {', '.join(missing)}")
    return tuple(name for name in table.column_names if name in wanted)


def content_digest(table: pa.Table) -> str:
    """sha256 of every value of a table with `cutoff` and `customer_id`: names, types, nulls and values, by sorted rows.

    The order and chunking of rows do not matter, nor the width of text offsets. A sampled digest would not notice a
    change in most rows.
    """
    ordered = table.sort_by([("cutoff", "ascending"), ("customer_id", "ascending")]).combine_chunks()
    digest = hashlib.sha256(str(ordered.num_rows).encode())
    for name in ordered.column_names:
        column = ordered.column(name).combine_chunks()
        digest.update(f"\0{name}\0{dtype_of(column.type)}\0".encode())
        digest.update(pc.cast(column.is_valid(), pa.uint8()).to_numpy().tobytes())
        for part in _canonical(column):
            digest.update(part)
    return digest.hexdigest()


def _canonical(column: pa.Array) -> Sequence[bytes]:
    """The values' bytes with nulls as zero, whatever lay in their slots; text with its lengths."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        filled = pc.fill_null(column, "")
        lengths = pc.cast(pc.binary_length(filled), pa.int64()).to_numpy()
        return [lengths.tobytes(), "".join(filled.to_pylist()).encode()]
    if pa.types.is_timestamp(column.type):
        column = pc.cast(column, pa.int64())
    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.uint8())
    return [pc.fill_null(column, 0).to_numpy(zero_copy_only=False).tobytes()]


def train(model: Model, training_set: TrainingSet) -> Trained:
    """Fit on the training cut-offs, evaluate on the hold-out. The same training set gives the same scores.

    Raises UnknownAlgorithm, EncodingError, SliceError.
    """
    rows, held = training_set.training, training_set.holdout
    encoding = fit_encoding(rows, training_set.features)
    labels = _labels(rows)
    fitted = fit(model, encoding, encoding.encode_table(rows), labels)
    minimum, maximum = _bounds(model, labels)
    asked = encoding.encode_table(held)
    evaluation = evaluate(model, rows, HoldOut(held, np.clip(fitted.score(asked), minimum, maximum)))
    native = fitted.importance()
    importance = _sensitivity(fitted, asked, model.seed) if native is None else native
    return Trained(fitted, encoding, importance, minimum, maximum, evaluation)


def _sensitivity(fitted: Fitted, rows: Matrix, seed: int) -> Matrix:
    """Mean absolute change of the scores when one feature is shuffled, as shares; over at most a thousand rows."""
    rng = np.random.default_rng(seed)
    rows = rows[rng.permutation(len(rows))[:1000]]
    scores = fitted.score(rows)
    moved = np.zeros(rows.shape[1])
    for position in range(rows.shape[1]):
        shuffled = rows.copy()
        shuffled[:, position] = rng.permutation(rows[:, position])
        moved[position] = np.abs(fitted.score(shuffled) - scores).mean()
    shares: Matrix = moved / moved.sum() if moved.any() else moved
    return shares


def _labels(table: pa.Table) -> Matrix:
    labels: Matrix = pc.cast(table["label"], pa.float64()).to_numpy()
    return labels


def _bounds(model: Model, labels: Matrix) -> tuple[float | None, float | None]:
    """A probability is within 0..1; a sum that was never negative is not predicted to be."""
    if model.task == "binary":
        return 0.0, 1.0
    return (0.0 if labels.min() >= 0 else None), None
