"""An open replication stream: which server it is, what it sends, and telling it how far we are.

What the messages mean is `pgoutput`'s and `source`'s matter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import pq

from streaming.capture.errors import Halt, Retryable
from streaming.postgres.connect import Server, result_error, wait_readable, wait_writable
from streaming.postgres.pgoutput import lsn_text, parse_lsn, standby_status

__all__ = ["ServerIdentity", "Stream"]

# An answer is asked for when nothing was said for this long; a server that has said nothing for the second time is
# taken for dead. It may be silent for minutes while it skips a large transaction of tables that are not captured.
_ASK_AFTER_S, _DEAD_AFTER_S = 10.0, 300.0
_SEND_WITHIN_S = 30.0
_BATCH_MESSAGES = 500


@dataclass(frozen=True)
class ServerIdentity:
    """What IDENTIFY_SYSTEM says: `position` is how far its log is written."""

    system: str
    timeline: int
    position: int


class Stream:
    """A connection to a walsender. Methods raise Retryable and Halt."""

    def __init__(self, server: Server, *, encoding: str) -> None:
        """Connects; `encoding`: of the text that the server sends."""
        self._server = server
        self._connection = server.walsender(encoding=encoding)
        self._pgconn = self._connection.pgconn
        self._heard = self._told = time.monotonic()

    def identify(self) -> ServerIdentity:
        """Which server this is."""
        (system, timeline, position, *_) = self._ask("IDENTIFY_SYSTEM", "identify the server")
        return ServerIdentity(system, int(timeline), parse_lsn(position))

    def switches(self, timeline: int) -> dict[int, int]:
        """The timelines before this one, and the position at which the server left each."""
        if timeline == 1:
            return {}
        _, history = self._ask(f"TIMELINE_HISTORY {timeline}", "read the history of its timeline")
        lines = [line.split() for line in history.splitlines() if line.strip() and not line.startswith("#")]
        return {int(line[0]): parse_lsn(line[1]) for line in lines}

    def start(self, slot: str, publication: str, position: int) -> None:
        """Ask for everything that is committed after the position."""
        options = f"proto_version '1', publication_names '{_quoted(publication)}', messages 'true'"
        command = f"START_REPLICATION SLOT {slot} LOGICAL {lsn_text(position)} ({options})"
        result = self._pgconn.exec_(command.encode())
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise self._server.problem(result_error(result), f"stream from slot {slot}")
        self._heard = self._told = time.monotonic()

    def batch(self, timeout_s: float) -> Sequence[bytes]:
        """The messages that have arrived, some hundred at most; waits for the first one up to `timeout_s`."""
        try:
            found = self._arrived()
            if not found and wait_readable(self._connection, timeout_s):
                found = self._arrived()
        except psycopg.errors.UndefinedObject as error:
            raise Halt(
                f"{self._server.address}: the publication was not there when something was changed: {error}",
                "Capture with `--from-scratch`: the publication is made anew, and every table is read again",
                "postgresql_publication",
            ) from None
        except psycopg.Error as error:
            raise self._server.problem(error, "stream changes") from None
        if found:
            self._heard = time.monotonic()
        return found

    def _arrived(self) -> list[bytes]:
        get = self._pgconn.get_copy_data
        found: list[bytes] = []
        count, data = get(1)
        if count == 0:
            self._pgconn.consume_input()
            count, data = get(1)
        while count > 0:
            found.append(bytes(data))
            if len(found) == _BATCH_MESSAGES:
                break
            count, data = get(1)
        if count < 0 and not found:
            self._ended()
        return found

    def _ended(self) -> None:
        result = self._pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise result_error(result)
        raise psycopg.OperationalError("the server has ended the stream, as it does when it shuts down")

    def keep_up(self, received: int, confirmed: int) -> None:
        """Tell how far we are when it is time, and make sure that the server is still there."""
        now = time.monotonic()
        if now - self._heard > _DEAD_AFTER_S:
            raise Retryable(f"{self._server.address}: nothing heard of the server for {now - self._heard:.0f} s")
        if now - self._told >= _ASK_AFTER_S:
            self.tell(received, confirmed, ask=True)

    def tell(self, received: int, confirmed: int, *, ask: bool = False) -> None:
        """Tell that everything up to `confirmed` is safe with us: the server may forget it."""
        try:
            self._pgconn.put_copy_data(standby_status(received, confirmed, time.time_ns() // 1000, ask=ask))
            wait_writable(self._connection, _SEND_WITHIN_S)
        except psycopg.Error as error:
            raise self._server.problem(error, "confirm the position") from None
        self._told = time.monotonic()

    def close(self) -> None:
        """Give the connection back; the server then frees the slot."""
        self._connection.close()

    def _ask(self, command: str, doing: str) -> list[Any]:
        """The first row of a replication command's answer."""
        try:
            result = self._pgconn.exec_(command.encode())
        except psycopg.Error as error:
            raise self._server.problem(error, doing) from None
        if result.status != pq.ExecStatus.TUPLES_OK or result.ntuples == 0:
            raise self._server.problem(result_error(result), doing)
        row = [result.get_value(0, column) for column in range(result.nfields)]
        return [None if value is None else value.decode(errors="replace") for value in row]


def _quoted(publication: str) -> str:
    """An identifier within a literal."""
    return '"' + publication.replace('"', '""').replace("'", "''") + '"'
