"""What the API says about itself: summaries, shapes and examples. Documentation only; validation is done by hand."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from serving.entities import MAX_ENTITIES

__all__ = ["ABOUT", "CARD", "HEALTHZ", "METRICS", "MODEL", "MODELS", "PREDICT", "READYZ"]

REQUEST_EXAMPLE = {"entities": [{"customer_id": 17850}, {"customer_id": 13047}]}
ANSWER_EXAMPLE: dict[str, Any] = {
    "model": "churn",
    "version": "3",
    "request_id": "0f8b1c5c5e0c4a1db2f6a8f3f0f1f7aa",
    "served_at": "2011-12-09T12:50:00Z",
    "feature_freshness": {"activity": {"oldest_event_at": "2010-12-02T15:27:00Z", "age_seconds": 32131380.0}},
    "predictions": [
        {
            "customer_id": 17850,
            "prediction": 0.9312,
            "prediction_id": "0f8b1c5c5e0c4a1db2f6a8f3f0f1f7aa-0",
            "features_as_of": "2010-12-02T15:27:00Z",
        },
        {
            "customer_id": 13047,
            "prediction": 0.2148,
            "prediction_id": "0f8b1c5c5e0c4a1db2f6a8f3f0f1f7aa-1",
            "features_as_of": "2011-11-08T12:10:00Z",
        },
    ],
}


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Entity(_Shape):
    customer_id: int = Field(description="A 64-bit integer; text, true/false and 17850.0 are refused.")


class PredictRequest(_Shape):
    entities: list[Entity] = Field(
        min_length=1, max_length=MAX_ENTITIES, description="In any order; the same one twice is two predictions."
    )


class Freshness(_Shape):
    oldest_event_at: str | None = Field(
        description="Oldest of the customers' latest events in this view; expired ones aside."
    )
    age_seconds: float | None = Field(description="served_at minus oldest_event_at, on the business clock.")


class OnePrediction(_Shape):
    customer_id: int
    prediction: float = Field(description="A probability, or an amount in the label's unit.")
    prediction_id: str = Field(description="Identifies it in predictions.<model>.served.")
    features_as_of: str | None = Field(
        description="The customer's latest event that a feature was computed from; null when all have expired."
    )


class PredictAnswer(_Shape):
    """Predictions in the order of the request's entities."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": ANSWER_EXAMPLE})

    model: str
    version: str
    request_id: str
    served_at: str = Field(description="The business instant of serving.")
    feature_freshness: dict[str, Freshness] = Field(description="By feature view.")
    predictions: list[OnePrediction]


class ProblemDocument(BaseModel):
    """RFC 9457 problem details; `detail` says what was found and what is allowed."""

    type: str
    title: str
    status: int
    detail: str


class ModelSummary(_Shape):
    name: str
    description: str
    task: str
    version: str | None = Field(description="The version that serves; null when none does.")
    status: str = Field(description="serving, stale (the newest package cannot be used) or not deployed.")
    url: str


class ModelList(_Shape):
    models: list[ModelSummary]


class Readiness(_Shape):
    status: str = Field(description="ready, degraded (answers, but something is wrong) or not ready.")
    problems: dict[str, str] = Field(description="What is wrong, by what it concerns.")
    not_deployed: list[str] = Field(description="Declared models that nothing serves yet.")


ABOUT: dict[str, Any] = {
    "description": "Predictions of the deployed champions, from online features, each one logged.",
    "docs_url": None,
    "redoc_url": None,
}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """A refusal's shape and, from the class that raises it, its meaning."""
    meanings = {
        400: "The body is not JSON (NaN and Infinity are not).",
        404: "No such model (the document lists them), or customers without any known event (all of them are listed).",
        413: "The body is larger than HEADWATER_MAX_BODY_BYTES.",
        415: "The content type is not application/json.",
        422: "The entities are missing, empty, too many, of a wrong type, or have unknown fields.",
        503: "Nothing is deployed yet, or its features are not there; the document says what to do.",
    }
    return {s: {"model": ProblemDocument, "description": meanings[s]} for s in statuses}


PREDICT: dict[str, Any] = {
    "summary": "Predict for one or more customers",
    "description": f"Up to {MAX_ENTITIES} customers, as of the business clock's now. If one customer is unknown, none "
    "is scored. Every prediction is logged with the features it was made from.",
    "response_model": PredictAnswer,
    "responses": _problems(400, 404, 413, 415, 422, 503),
    "tags": ["predictions"],
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": PredictRequest.model_json_schema(), "example": REQUEST_EXAMPLE}},
        }
    },
}
MODELS: dict[str, Any] = {
    "summary": "Every declared model and what serves",
    "response_model": ModelList,
    "tags": ["models"],
}
MODEL: dict[str, Any] = {
    "summary": "One model: version, features, metrics, lineage, card",
    "responses": _problems(404),
    "tags": ["models"],
}
CARD: dict[str, Any] = {
    "summary": "The model card of the version that serves",
    "responses": {200: {"content": {"text/html": {}}}, **_problems(404, 503)},
    "tags": ["models"],
}
HEALTHZ: dict[str, Any] = {"summary": "The process is up", "tags": ["operation"]}
READYZ: dict[str, Any] = {
    "summary": "Whether predictions are answered, and everything that is wrong",
    "response_model": Readiness,
    "responses": {503: {"model": Readiness, "description": "No model can answer."}},
    "tags": ["operation"],
}
METRICS: dict[str, Any] = {
    "summary": "Prometheus metrics",
    "responses": {200: {"content": {"text/plain": {}}}},
    "tags": ["operation"],
}
