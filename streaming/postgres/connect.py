"""Connections to one server, with the session settings that `values` relies on; what their errors mean.

An error that time mends (a server that restarts, a lost connection) is Retryable, one that needs a person (a password,
a privilege, a slot that is gone) a Halt that names the remedy. No text of either has the password.
"""

from __future__ import annotations

import select
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import pq

from streaming.capture.credentials import Address, AddressError
from streaming.capture.errors import CaptureError, Halt, Retryable

__all__ = ["Server", "result_error", "wait_readable", "wait_writable"]

_SESSION: Mapping[str, str] = {
    "datestyle": "ISO",
    "intervalstyle": "iso_8601",
    "timezone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    # Types outside pg_catalog are then always written with their schema.
    "search_path": "pg_catalog",
    # Our watermarks have to be in the log before they are streamed, and need wait for no standby.
    "synchronous_commit": "local",
    "standard_conforming_strings": "on",
    # Rows that a policy hides from us are an error, not a smaller table.
    "row_security": "off",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
# A peer that vanished without a word is noticed within half a minute; the URL's own settings win.
_CONNECTION: Mapping[str, str | int] = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
# SQLSTATE -> (remedy, runbook) of what a person must mend; `{user}`, `{database}` are filled in.
_HALTS: Mapping[str, tuple[str, str]] = {
    "28000": (
        "Let {user} in by pg_hba.conf, for its database and (entry `replication` excluded) this machine",
        "postgresql_login",
    ),
    "28P01": ("Set HEADWATER_SHOP_PASSWORD or HEADWATER_SHOP_PASSWORD_FILE to {user}'s password", "postgresql_login"),
    "3D000": ("Point HEADWATER_SHOP_URL at the database that has the tables", "postgresql_login"),
    "42501": ("Grant what is missing to {user}", "postgresql_privileges"),
    "42704": (
        "See whether its publication and slot are there: the log cannot be read without them",
        "postgresql_publication",
    ),
    "53400": (
        "Raise max_replication_slots, or drop a slot that nobody reads (pg_replication_slots)",
        "postgresql_settings",
    ),
}
# Before a session exists there is no SQLSTATE, only text.
_HALTS_BY_TEXT: Sequence[tuple[str, str]] = (
    ("password authentication failed", "28P01"),
    ("no password supplied", "28P01"),
    ("no pg_hba.conf entry", "28000"),
    ("pg_hba.conf rejects", "28000"),
    ("is not permitted to log in", "28000"),
    ('role "', "28000"),
    ("does not exist", "3D000"),
    ("to start WAL sender", "42501"),
    ("to start walsender", "42501"),
)
_TLS_TEXTS = (
    "certificate verify failed",
    "server does not support SSL",
    "does not match host name",
    "root certificate",
)


class Server:
    """Opens connections to the database of `address`; `name` is what the server calls us."""

    def __init__(self, address: Address, name: str) -> None:
        self.address, self._name = address, name

    def session(self, *, statement_timeout_s: int, lock_timeout_s: int = 30) -> psycopg.Connection[tuple[Any, ...]]:
        """An ordinary connection in autocommit mode. Raises Retryable, Halt."""
        limits = {
            "statement_timeout": f"{statement_timeout_s * 1000}",
            "lock_timeout": f"{lock_timeout_s * 1000}",
        }
        return self._connect({}, limits)

    def walsender(self, *, encoding: str) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection that speaks the replication protocol. Raises Retryable, Halt."""
        return self._connect({"replication": "database", "client_encoding": encoding}, {"statement_timeout": "0"})

    def _connect(self, more: Mapping[str, str], settings: Mapping[str, str]) -> psycopg.Connection[tuple[Any, ...]]:
        try:
            return psycopg.connect(**self._parameters(more, settings), autocommit=True)
        except psycopg.Error as error:
            raise self.problem(error, "connect") from None
        except AddressError as error:
            raise Halt(str(error), "Put the password there", "postgresql_login") from None

    def _parameters(self, more: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, Any]:
        address = self.address
        given = dict(address.options)
        session = " ".join(f"-c {name}={value}" for name, value in {**_SESSION, **settings}.items())
        parameters: dict[str, Any] = {
            **_CONNECTION,
            "client_encoding": "UTF8",
            "host": ",".join(host for host, _ in address.hosts),
            "port": ",".join(str(port or "") for _, port in address.hosts),
            "user": address.user,
            "dbname": address.database,
            "application_name": self._name,
            **given,
            **more,
            "options": f"{given.get('options', '')} {session}".strip(),
        }
        password = address.password()
        return {**parameters, "password": password} if password is not None else parameters

    def problem(self, error: psycopg.Error, doing: str) -> CaptureError:
        """What follows from an error that happened while `doing` something."""
        text = self.address.hide(" ".join(str(error).split()))
        found = f"{self.address}: cannot {doing}: {text}"
        code = error.sqlstate or next((code for part, code in _HALTS_BY_TEXT if part in text), "")
        if "invalid connection option" in text or "invalid sslmode" in text:
            return Halt(found, "Correct the options in HEADWATER_SHOP_URL: they are libpq's", "postgresql_login")
        if any(part in text for part in _TLS_TEXTS):
            return Halt(
                found, "Set sslmode and sslrootcert in HEADWATER_SHOP_URL as the server needs them", "postgresql_login"
            )
        if code in _HALTS:
            remedy, runbook = _HALTS[code]
            return Halt(found, remedy.format(user=self.address.user, database=self.address.database), runbook)
        if isinstance(error, psycopg.OperationalError) or code[:2] in ("08", "40", "53", "55", "57", "58", "XX"):
            return Retryable(found)
        return Halt(found, "Read the server's log; this is no state that passes by itself", "postgresql_settings")


def result_error(result: pq.abc.PGresult) -> psycopg.Error:
    """The error that the server answered with, as psycopg's own class for its SQLSTATE."""
    code = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    text = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message or b"").decode(
        errors="replace"
    )
    try:
        kind = psycopg.errors.lookup(code)
    except KeyError:
        kind = psycopg.OperationalError
    return kind(text)


def wait_readable(connection: psycopg.Connection[Any], timeout_s: float) -> bool:
    """Wait for the server to say something. Returns whether it did."""
    return _wait(connection, select.POLLIN, timeout_s)


def wait_writable(connection: psycopg.Connection[Any], within_s: float) -> None:
    """Send what is queued. Raises OperationalError when the server takes none of it for so long."""
    deadline = time.monotonic() + within_s
    while connection.pgconn.flush():
        if time.monotonic() > deadline:
            raise psycopg.OperationalError(f"the server has not taken anything for {within_s:.0f} s")
        if _wait(connection, select.POLLIN | select.POLLOUT, 1.0):
            connection.pgconn.consume_input()


def _wait(connection: psycopg.Connection[Any], events: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(connection.pgconn.socket, events)
    with suppress(InterruptedError):
        return bool(poll.poll(timeout_s * 1000))
    return False
