"""Runs the application: one process, one event loop, until told to stop; then requests and the log are drained.

Errors: AddressError   the address cannot be listened on
"""

from __future__ import annotations

import logging
import socket

import uvicorn

from catalog.load import Catalog
from catalog.settings import Settings
from serving.app import create_app

__all__ = ["AddressError", "serve"]

logger = logging.getLogger(__name__)


class AddressError(RuntimeError):
    """The address cannot be listened on."""


def serve(settings: Settings, catalog: Catalog) -> None:
    """Serve on HEADWATER_API_HOST and HEADWATER_API_PORT until SIGINT or SIGTERM. Raises AddressError."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s:     %(message)s")
    logging.getLogger("serving").setLevel(logging.INFO)  # which version serves, and why a newer one does not
    with _listen(settings.api_host, settings.api_port) as listener:
        config = uvicorn.Config(
            create_app(settings, catalog),
            access_log=False,  # metrics count requests; a line for each one costs more than the request
            timeout_graceful_shutdown=10,
        )
        logger.info("listening on http://%s:%d, documentation at /docs", settings.api_host, settings.api_port)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            return  # drained already: uvicorn raises the signal again when it is done


def _listen(host: str, port: int) -> socket.socket:
    """Bound here, not by uvicorn, whose exit code 3 would mean something else to our callers."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise AddressError(
            f"cannot listen on {host} port {port} ({error.strerror}): set HEADWATER_API_PORT or --port to a free port, "
            "HEADWATER_API_HOST to an address of this machine"
        ) from None
