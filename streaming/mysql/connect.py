"""Connections to the server: TLS as the URL asks, sessions that read without changing a value, typed errors.

Errors: PyMySQL's become
          ├─ Retryable   the server is away, shuts down, has no connection left, or broke off
          └─ Halt        it does not let us in, or do what capturing takes, or its certificate is not the expected one
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from streaming.capture.credentials import Address, AddressError
from streaming.capture.errors import CaptureError, Halt, Retryable

if TYPE_CHECKING:
    import pymysql

__all__ = ["Database"]

_MODES = ("disabled", "preferred", "required", "verify_ca", "verify_identity")
_OPTIONS = ("ssl", "ssl_ca", "ssl_cert", "ssl_key", "server_id", "connect_timeout_s")
_PORT = 3306
# Access denied (to the server, by name or by host), an unknown database or plugin.
_REFUSED = (1044, 1045, 1049, 1130, 1251, 1275, 1524, 1698, 2026, 2054, 2059, 3118, 4151)
# A table, a column, a command that the user may not use.
_NO_RIGHT = (1142, 1143, 1227)
# UTC; zero dates and text as they are, whatever the server's mode; no limit on how long a query may run; a client that
# reads slowly is not cut off.
_SESSION = (
    "SET time_zone = '+00:00', sql_mode = '', wait_timeout = 86400, net_write_timeout = 3600, net_read_timeout = 300"
)
_READ_TIMEOUT_S = 300


class Database:
    """Opens connections to the server at an address, the first of several that answers."""

    def __init__(self, address: Address) -> None:
        """Raises Halt that names what is wrong with the URL, never the password."""
        self.address = address
        options = address.options
        if address.scheme not in ("mysql", "mariadb"):
            raise _misread(f"found {address.scheme}://, allowed are mysql:// and mariadb://")
        if unknown := sorted(options.keys() - set(_OPTIONS)):
            raise _misread(f"found option {', '.join(unknown)}, allowed are {', '.join(_OPTIONS)}")
        self._mode = options.get("ssl", "verify_identity" if "ssl_ca" in options else "preferred")
        if self._mode not in _MODES:
            raise _misread(f"found ssl={self._mode}, allowed are {', '.join(_MODES)}")
        try:
            self.server_id = int(options["server_id"]) if "server_id" in options else None
            self._connect_timeout_s = float(options.get("connect_timeout_s", 10))
        except ValueError as error:
            raise _misread(f"a number cannot be read ({error})") from None

    def connect(self, *, raw: bool = False, within_s: float | None = None) -> pymysql.Connection:
        """A connection in autocommit mode, in UTC. `raw`: text comes in its column's own character set, as bytes.

        `within_s`: how long to wait for each answer, where the usual time is too long.

        Raises Retryable, Halt.
        """
        *others, last = self.address.hosts
        for host, port in others:
            try:
                return self._connect(host, port or _PORT, raw, within_s)
            except Retryable:
                continue
        return self._connect(last[0], last[1] or _PORT, raw, within_s)

    def _connect(self, host: str, port: int, raw: bool, within_s: float | None) -> pymysql.Connection:
        import pymysql

        with self.errors():
            connection = pymysql.connect(
                host=host,
                port=port,
                user=self.address.user,
                password=self.address.password() or "",
                database=self.address.database,
                charset="utf8mb4",
                autocommit=True,
                use_unicode=not raw,
                connect_timeout=within_s or self._connect_timeout_s,
                read_timeout=within_s or _READ_TIMEOUT_S,
                write_timeout=within_s or _READ_TIMEOUT_S,
                program_name="headwater-capture",
                **self._tls(),
            )
            with connection.cursor() as cursor:
                cursor.execute(_SESSION + (", character_set_results = NULL" if raw else ""))
        return connection

    def _tls(self) -> Mapping[str, Any]:
        if self._mode == "disabled":
            return {"ssl_disabled": True}
        if self._mode == "preferred":
            return {}
        options = self.address.options
        context = ssl.create_default_context(cafile=options.get("ssl_ca"))
        context.check_hostname = self._mode == "verify_identity"
        if self._mode == "required":
            context.verify_mode = ssl.CERT_NONE
        if "ssl_cert" in options:
            context.load_cert_chain(options["ssl_cert"], options.get("ssl_key"))
        return {"ssl": context}

    def query(self, connection: pymysql.Connection, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """The rows that a statement returns. Raises Retryable, Halt."""
        with self.errors(), connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return list(cursor.fetchall())

    @contextmanager
    def errors(self) -> Iterator[None]:
        """What goes wrong with the database inside is a Retryable or a Halt; no text of either has the password."""
        import pymysql

        try:
            yield
        except pymysql.Error as error:
            raise self._typed(error) from None
        except (OSError, AddressError) as error:  # a file of the certificate or of the password that is not there
            raise self.refused(str(error)) from None

    def _typed(self, error: Any) -> CaptureError:
        code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
        said = " ".join(str(error.args[-1]).split()) if error.args else type(error).__name__
        if code in _REFUSED or isinstance(getattr(error, "original_exception", None), ssl.SSLError):
            return self.refused(said)
        if code in _NO_RIGHT:
            return self.no_right(said)
        return Retryable(self.address.hide(f"{self.address}: {said} (error {code})"))

    def refused(self, said: str) -> Halt:
        """The server does not let us in."""
        return Halt(
            self.address.hide(f"{self.address}: the database does not let us in: {said}"),
            "Check user, password and database, and the certificate where the URL asks for one",
            "mariadb_connection",
        )

    def no_right(self, said: str) -> Halt:
        """The server does not let us do what capturing takes."""
        user = self.address.user
        return Halt(
            self.address.hide(f"{self.address}: {user} lacks a privilege: {said}"),
            f"GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO {user}; GRANT SELECT ON {self.address.database}.* TO "
            f"{user} (MySQL: REPLICATION SLAVE, REPLICATION CLIENT)",
            "mariadb_privileges",
        )


def _misread(found: str) -> Halt:
    return Halt(
        f"the shop's URL cannot be used: {found}",
        "Set HEADWATER_SHOP_URL to mysql://user@host:port/database, with the password in HEADWATER_SHOP_PASSWORD or "
        "HEADWATER_SHOP_PASSWORD_FILE",
        "mariadb_connection",
    )
