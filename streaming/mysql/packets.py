"""Packets of the client protocol, read in bulk from the socket of an open connection.

PyMySQL authenticates, negotiates TLS and runs queries; but it reads a packet with two calls into a buffered file and
wraps it into an object, which for a stream of small ones costs more than decoding them.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING

from streaming.capture.errors import Retryable

if TYPE_CHECKING:
    import pymysql

__all__ = ["Packets"]

# At once from the socket: some milliseconds of work, after which whoever polls gets his turn.
_BULK = 64 * 1024
# A longer packet goes on in the next one.
_LONGEST = 0xFFFFFF


class Packets:
    """The payloads that a server sends, in order. Nothing must be left unread by PyMySQL when this takes over."""

    def __init__(self, connection: pymysql.Connection, stall_s: float) -> None:
        """`stall_s`: how long a packet that has begun may stand still before the connection counts as lost."""
        found: socket.socket | None = connection._sock
        if found is None:
            raise Retryable("the connection is closed")
        self._socket = found
        self._socket.settimeout(stall_s)
        self._poll = select.poll()
        self._poll.register(found, select.POLLIN)
        self._data = bytearray()
        self._parts: list[bytes] = []

    def receive(self, timeout_s: float) -> bool:
        """Wait for something to arrive and take it. False: nothing came in that time. Raises Retryable."""
        pending = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()
        try:
            if not pending and not self._poll.poll(timeout_s * 1000):
                return False
            came = self._socket.recv(max(_BULK, self._missing()))
        except OSError as error:  # a reset, a timeout, a closed descriptor, TLS that broke
            raise Retryable(f"the connection to the database was lost: {error}") from error
        if not came:
            raise Retryable("the connection to the database was lost: the server closed it")
        self._data += came
        return True

    def _missing(self) -> int:
        """What is still to come of the packet that has begun."""
        data = self._data
        return int.from_bytes(data[:3], "little") + 4 - len(data) if len(data) >= 4 else 0

    def ready(self) -> Iterator[bytes]:
        """The packets that are complete."""
        data, at = self._data, 0
        self._data = bytearray()  # should the caller stop half-way, it has to connect anew
        end = len(data)
        while end - at >= 4:
            size = data[at] | data[at + 1] << 8 | data[at + 2] << 16
            after = at + 4 + size
            if after > end:
                break
            payload = bytes(data[at + 4 : after])
            at = after
            if size == _LONGEST:
                self._parts.append(payload)
            elif self._parts:
                self._parts.append(payload)
                payload, self._parts = b"".join(self._parts), []
                yield payload
            else:
                yield payload
        self._data = data[at:]
