"""The shape of an answer, the same from the API and from `headwater predict`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from serving.prediction_log import Predictions

__all__ = ["answer", "oldest_events", "utc"]


def oldest_events(made: Predictions) -> dict[str, datetime | None]:
    """Each view's oldest event time in the answer; None when no customer in it has one that has not expired."""
    views = dict.fromkeys(view for each in made.predictions for view in each.as_of)
    return {
        view: min((at for each in made.predictions if (at := each.as_of.get(view))), default=None) for view in views
    }


def answer(made: Predictions) -> dict[str, Any]:
    """The response to one request, ready for JSON; instants end in Z."""
    return {
        "model": made.model,
        "version": made.version,
        "request_id": made.request_id,
        "served_at": utc(made.served_at),
        "feature_freshness": {
            view: {"oldest_event_at": utc(at), "age_seconds": (made.served_at - at).total_seconds() if at else None}
            for view, at in oldest_events(made).items()
        },
        "predictions": [
            {
                "customer_id": each.customer_id,
                "prediction": each.prediction,
                "prediction_id": each.prediction_id,
                "features_as_of": utc(each.features_as_of),
            }
            for each in made.predictions
        ],
    }


def utc(instant: datetime | None) -> str | None:
    """Business instants are naive UTC; on the wire they say so."""
    return instant.isoformat() + "Z" if instant else None
