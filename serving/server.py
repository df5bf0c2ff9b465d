"""Runs the application: one process, one event loop, until told to stop; then requests and the log are drained."""

from __future__ import annotations

import uvicorn

from catalog.load import Catalog
from catalog.settings import Settings
from serving.app import create_app

__all__ = ["serve"]


def serve(settings: Settings, catalog: Catalog) -> None:
    """Serve on HEADWATER_API_HOST and HEADWATER_API_PORT until SIGINT or SIGTERM."""
    uvicorn.run(
        create_app(settings, catalog),
        host=settings.api_host,
        port=settings.api_port,
        log_level="info",
        access_log=False,  # metrics count requests; a line for each one costs more than the request
        timeout_graceful_shutdown=10,
    )
