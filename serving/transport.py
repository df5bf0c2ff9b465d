"""HTTP below the endpoints: bounded bodies, declared types, HEAD, and a measure of every request.

Nothing here knows predictions.
"""

from __future__ import annotations

from time import perf_counter
from typing import Protocol

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.problems import BodyTooLarge, WrongContentType

__all__ = ["HeadLikeGet", "Measured", "RequestMeter", "read_json_body"]

# A client that is still sending does not see an answer, only a reset connection: read on (and forget) this many limits.
_DRAIN_LIMITS = 4
_JSON = "application/json"


class RequestMeter(Protocol):
    """Takes one finished request: route as declared, method, status and seconds."""

    def request(self, route: str, method: str, status: int, seconds: float) -> None: ...


class Measured:
    """ASGI middleware that reports every request to a meter; plain ASGI: Starlette's base class costs more."""

    def __init__(self, app: ASGIApp, meter: RequestMeter) -> None:
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            # A path that matched nothing is one label: clients must not be able to create label values.
            route = getattr(scope.get("route"), "path", "unmatched")
            self._meter.request(route, scope["method"], status, perf_counter() - started)


class HeadLikeGet:
    """ASGI middleware that answers HEAD as GET, without the body: monitors and proxies ask that way."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        asked = {**scope, "method": "GET"}
        try:
            await self._app(asked, receive, bodiless)
        finally:
            scope["route"] = asked.get("route")  # for the meter outside


async def read_json_body(request: Request, limit: int) -> bytes:
    """The body, if it is declared as JSON and not over `limit` bytes. Raises WrongContentType or BodyTooLarge."""
    _expect_json(request)
    declared = request.headers.get("content-length", "")
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > limit * _DRAIN_LIMITS:
            break
    if size > limit:
        raise BodyTooLarge(f"{declared} bytes" if declared else f"more than {limit} bytes", limit)
    return b"".join(chunks)


def _expect_json(request: Request) -> None:
    found = request.headers.get("content-type", "")
    media, _, parameters = found.partition(";")
    charset = parameters.strip().lower().replace('"', "").replace(" ", "")
    if media.strip().lower() != _JSON or charset not in ("", "charset=utf-8"):
        raise WrongContentType(f"found content-type {found!r}, allowed is {_JSON} in UTF-8")
    if encoding := request.headers.get("content-encoding"):
        raise WrongContentType(f"found content-encoding {encoding!r}, allowed is a body that is not compressed")
