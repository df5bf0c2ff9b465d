"""What there is of the binary log from our place on: measured by a connector that runs, or by whoever asks."""

from __future__ import annotations

import time
from contextlib import closing, suppress

from streaming.capture.credentials import Address
from streaming.capture.errors import CaptureError, Halt
from streaming.capture.source import Retained
from streaming.mysql.connect import Database
from streaming.mysql.history import deleted_before
from streaming.mysql.positions import Resume
from streaming.mysql.server import Logs, Server

__all__ = ["ask_retained", "measured"]


def measured(server: Server, logs: Logs, confirmed: Resume) -> Retained:
    """Bytes of the log from our place on; the bound by which they may grow until files with them are deleted.

    The server bounds the age of its files, not their size: the bound is what would be behind us when our place gets
    that old, if the shop goes on changing as much as it did. Its log does not grow for our sake: without a bound of
    its own it keeps everything for anybody.
    """
    behind = logs.behind(confirmed.file, confirmed.pos)
    age_s, limit = time.time() - confirmed.written, server.kept_bytes or None
    if limit is None and server.kept_s and behind and age_s >= 1:
        limit = int(behind * server.kept_s / age_s)
    return Retained(behind, behind, limit, logs.end)


def ask_retained(address: Address, confirmed: Resume, within_s: int) -> Retained | None:
    """Over a connection of its own, which changes nothing; None when it cannot be asked in that time.

    Raises Halt when our place was deleted.
    """
    found: Retained | None = None
    gone: Halt | None = None
    with suppress(CaptureError):
        database = Database(address)
        with closing(database.connect(within_s=within_s)) as connection:
            server = Server(database, connection)
            logs = server.logs()
            gone = deleted_before(logs, confirmed) if server.name == confirmed.server else None
            found = measured(server, logs, confirmed)
    if gone:
        raise gone
    return found
