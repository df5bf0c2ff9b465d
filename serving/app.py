"""The HTTP application: addresses, request and response shapes, and every refusal as a problem document.

Predictions are made by `serving.gateway`; nothing here scores, reads features or writes the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from catalog.clock import Clock
from catalog.load import Catalog
from catalog.settings import Settings
from serving import openapi
from serving.answers import answer
from serving.docs_page import docs_page
from serving.entities import parse_entities
from serving.gateway import Gateway
from serving.metrics import CONTENT_TYPE, Metrics, ModelSample, Sample
from serving.model_info import ModelInfo
from serving.problems import Problem, UnknownPath, WrongMethod
from serving.transport import HeadLikeGet, Measured, read_json_body

__all__ = ["create_app"]


def create_app(settings: Settings, catalog: Catalog, clock: Clock | None = None, poll_s: float = 1.0) -> FastAPI:
    """The application; its gateway starts and drains with it. `poll_s`: how often a new champion is looked for."""
    gateway = Gateway(settings, catalog, clock, poll_s)
    metrics = Metrics(lambda: _sample(gateway))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        gateway.start()
        yield
        gateway.close()

    app = FastAPI(title="Headwater predictions", lifespan=lifespan, **openapi.ABOUT)
    app.add_middleware(HeadLikeGet)
    app.add_middleware(Measured, meter=metrics)
    app.add_exception_handler(Problem, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(ClientDisconnect, _nobody_listens)
    _add_predictions(app, gateway, metrics, settings.max_body_bytes)
    _add_models(app, ModelInfo(gateway, settings))
    _add_health(app, gateway, metrics)
    return app


def _add_predictions(app: FastAPI, gateway: Gateway, metrics: Metrics, max_body_bytes: int) -> None:
    @app.post("/v1/models/{model}:predict", **openapi.PREDICT)
    async def predict(model: str, request: Request) -> Response:
        gateway.slot(model)  # an unknown model is refused before its body is read
        customer_ids = parse_entities(await read_json_body(request, max_body_bytes))
        made = gateway.predict(model, customer_ids)
        metrics.served(made)
        return _json(answer(made))


def _add_models(app: FastAPI, info: ModelInfo) -> None:
    @app.get("/v1/models", **openapi.MODELS)
    def models() -> Response:
        return _json({"models": info.every()})

    @app.get("/v1/models/{model}", **openapi.MODEL)
    def model_details(model: str) -> Response:
        if model.endswith(":predict"):
            raise WrongMethod("GET", "POST")
        return _json(info.one(model))

    @app.get("/v1/models/{model}/card", **openapi.CARD)
    def model_card(model: str) -> Response:
        return HTMLResponse(info.card(model))


def _add_health(app: FastAPI, gateway: Gateway, metrics: Metrics) -> None:
    @app.get("/healthz", **openapi.HEALTHZ)
    async def healthz() -> Response:
        return _json({"status": "ok"})

    @app.get("/readyz", **openapi.READYZ)
    async def readyz() -> Response:
        health = gateway.health()
        document = {"status": health.status, "problems": health.problems, "not_deployed": health.not_deployed}
        return _json(document, 200 if health.ready else 503)

    @app.get("/metrics", **openapi.METRICS)
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(app.openapi()))


def _sample(gateway: Gateway) -> Sample:
    slots = [(m.name, gateway.slot(m.name)) for m in gateway.catalog.models]
    return Sample(
        tuple(
            ModelSample(name, slot.loaded.predictor.version if slot.loaded else None, slot.failures, slot.stale)
            for name, slot in slots
        ),
        gateway.log_health(),
    )


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


async def _refuse(request: Request, problem: Exception) -> Response:
    """A Problem as its document."""
    assert isinstance(problem, Problem)  # registered for this class only
    return Response(
        orjson.dumps(problem.document()), problem.status, problem.headers, media_type="application/problem+json"
    )


async def _refuse_route(request: Request, error: Exception) -> Response:
    """The router's own refusals: no such path, no such method."""
    assert isinstance(error, HTTPException)  # registered for this class only
    if error.status_code == WrongMethod.status:
        allowed = (error.headers or {}).get("Allow", "another method")
        return await _refuse(request, WrongMethod(request.method, allowed + ", HEAD" * (allowed == "GET")))
    if error.status_code == UnknownPath.status:
        return await _refuse(request, UnknownPath(f"found {request.url.path!r}, allowed are the addresses at /docs"))
    raise error


async def _nobody_listens(request: Request, error: Exception) -> Response:
    """The client left before its body was complete; 499, as nginx counts it, is for the metrics only."""
    return Response(status_code=499)
