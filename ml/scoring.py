"""Batch scores: every known customer, scored by a package at one instant. The features travel with the scores."""

from __future__ import annotations

from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from catalog.keys import Key
from lake.tables import Lake
from ml.predictor import Predictor
from ml.training import Retrieve

__all__ = ["batch_scores", "known_customers"]

_CUSTOMERS = Key("marts", "sales", "customers")


def known_customers(lake: Lake) -> pa.Array:
    """The number of every customer, ascending. Raises MissingTableError."""
    return pc.unique(lake.read(_CUSTOMERS, ["customer_id"])["customer_id"].combine_chunks()).sort()


def batch_scores(predictor: Predictor, retrieve: Retrieve, customers: pa.Array, now: datetime) -> pa.Table:
    """Columns customer_id, prediction, model, version, scored_at, then one for each feature; rows as in `customers`.

    Raises EncodingError when the feature service no longer returns what the package was trained on.
    """
    n = len(customers)
    instant = pa.scalar(now, pa.timestamp("us"))
    entities = pa.table({"customer_id": customers, "event_timestamp": pa.repeat(instant, n)})
    features = retrieve(predictor.model, entities)
    scores = predictor.score_table(features)
    return pa.table(
        {
            "customer_id": customers,
            "prediction": pa.array(scores, pa.float64()),
            "model": pa.repeat(predictor.model, n),
            "version": pa.repeat(predictor.version, n),
            "scored_at": pa.repeat(instant, n),
            **{name: features[name] for name in predictor.feature_names},
        }
    )
