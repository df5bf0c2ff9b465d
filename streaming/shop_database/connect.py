"""One way to talk to the shop's database, whichever of the two it is. Statements are the caller's.

Errors: ShopDatabaseError
          ├─ Unreachable   no connection, or it was lost: the same may succeed later
          ├─ Conflict      somebody else's transaction was in the way (deadlock, lock timeout): roll back, try again
          └─ Rejected      the database does not take the statement (a constraint, a privilege, a missing table)
(a URL that names no database: streaming.capture.credentials.AddressError)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, Self

from streaming.capture.credentials import Address, AddressError, parse_address
from streaming.shop_database.ddl import Dialect

__all__ = ["Conflict", "Database", "Rejected", "ShopDatabaseError", "Unreachable", "open_database"]

_CONNECT_TIMEOUT_S = 10
# PostgreSQL's codes: serialization failure, deadlock, lock not available, statement cancelled by a timeout.
_CONFLICTS = ("40001", "40P01", "55P03", "57014")
_AWAY = ("08", "57P", "53")  # connection lost, shutting down or starting up, out of connections
# MariaDB's: lock wait timeout, deadlock, record changed since last read.
_MARIADB_CONFLICTS = (1205, 1213, 1020)
# Too many connections, shutting down, killed, no connection (2002 to 2055 are the client's).
_MARIADB_AWAY = (0, 1040, 1053, 1152, 1159, 1160, 1161, 1184, 1203, 1317, 1927, 2002, 2003, 2006, 2013, 2014, 2055)
_TLS_MODES = ("disabled", "preferred", "required", "verify_ca", "verify_identity")
_SQL_MODE = "STRICT_ALL_TABLES,NO_BACKSLASH_ESCAPES,NO_ENGINE_SUBSTITUTION"


class ShopDatabaseError(RuntimeError):
    """The shop's database could not do what was asked."""


class Unreachable(ShopDatabaseError):
    """No connection, or it was lost: the same may succeed later."""


class Conflict(ShopDatabaseError):
    """Somebody else's transaction was in the way: roll back, try again."""


class Rejected(ShopDatabaseError):
    """The database does not take the statement."""


class Database(Protocol):
    """A connection in autocommit mode: transactions are begun and ended by statements. Belongs to one thread.

    Every method raises Unreachable, Conflict, Rejected.
    """

    dialect: Dialect

    def script(self, statements: str) -> None:
        """Carry out several statements, parted by semicolons, in one round trip; the first that fails ends it."""

    def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Carry out one statement with %s for each value. Returns how many rows it affected."""

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows that a statement returns."""

    def cursor(self) -> AbstractContextManager[Any]:
        """A cursor of the driver's own, for reading a large table."""

    def close(self) -> None:
        """Give the connection back; never raises."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_database(place: str | Address) -> Database:
    """Connect to a URL or an address. Raises Unreachable, Rejected, AddressError."""
    address = parse_address(place) if isinstance(place, str) else place
    if address.scheme in ("postgresql", "postgres"):
        return _PostgreSQL(address)
    if address.scheme in ("mysql", "mariadb"):
        return _MariaDB(address)
    raise AddressError(
        f"found a database URL that begins with {address.scheme!r}, allowed are postgresql://user@host:port/database "
        "and mysql://user@host:port/database"
    )


class _Connected:
    """What both have in common: leaving a `with` block closes."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _PostgreSQL(_Connected):
    dialect: Dialect = "postgresql"

    def __init__(self, address: Address) -> None:
        import psycopg

        with _postgresql_errors():
            self._connection = psycopg.connect(autocommit=True, **_postgresql_place(address))
            self._connection.execute(
                "SET client_encoding = 'UTF8'; SET standard_conforming_strings = on; SET TimeZone = 'UTC'; "
                "SET DateStyle = 'ISO'; SET extra_float_digits = 1"
            )

    def script(self, statements: str) -> None:
        with _postgresql_errors():
            self._connection.execute(statements.encode(), prepare=False)

    def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        with _postgresql_errors():
            return self._connection.execute(statement.encode(), values or None).rowcount

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with _postgresql_errors():
            return self._connection.execute(statement.encode(), values or None).fetchall()

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        with _postgresql_errors(), self._connection.cursor() as cursor:
            yield cursor

    def close(self) -> None:
        self._connection.close()


def _postgresql_place(address: Address) -> dict[str, Any]:
    """libpq's parameters; all of a URL's options are its own."""
    place: dict[str, Any] = {
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "application_name": "headwater-shop",
        **address.options,
        "host": ",".join(host for host, _ in address.hosts),
        "port": ",".join(str(port or "") for _, port in address.hosts),
        "user": address.user,
        "dbname": address.database,
    }
    password = address.password()
    return place if password is None else {**place, "password": password}


@contextmanager
def _postgresql_errors() -> Iterator[None]:
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        raise _postgresql_kind(error)(f"postgresql: {_line(error)}") from error


def _postgresql_kind(error: Any) -> type[ShopDatabaseError]:
    import psycopg

    if error.sqlstate in _CONFLICTS:
        return Conflict
    lost = error.sqlstate is None and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return Unreachable if lost or (error.sqlstate or "").startswith(_AWAY) else Rejected


class _MariaDB(_Connected):
    dialect: Dialect = "mariadb"

    def __init__(self, address: Address) -> None:
        import pymysql
        from pymysql.constants import CLIENT

        with _mariadb_errors():
            self._connection = pymysql.connect(
                **_mariadb_place(address),
                charset="utf8mb4",
                autocommit=True,
                sql_mode=_SQL_MODE,
                init_command="SET time_zone = '+00:00'",
                connect_timeout=_CONNECT_TIMEOUT_S,
                client_flag=CLIENT.MULTI_STATEMENTS | CLIENT.FOUND_ROWS,
            )

    def script(self, statements: str) -> None:
        with _mariadb_errors(), self._connection.cursor() as cursor:
            cursor.execute(statements)
            while cursor.nextset():
                pass

    def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        with _mariadb_errors(), self._connection.cursor() as cursor:
            return int(cursor.execute(statement, values or None))

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with _mariadb_errors(), self._connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return list(cursor.fetchall())

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        from pymysql.cursors import SSCursor

        with _mariadb_errors(), self._connection.cursor(SSCursor) as cursor:
            yield cursor

    def close(self) -> None:
        self._connection._force_close()  # close() would first ask a server that may be away


def _mariadb_place(address: Address) -> dict[str, Any]:
    """The client's parameters, with TLS as the URL's options `ssl` (a mode) and `ssl_ca` (a file) ask for it."""
    options = address.options
    mode = options.get("ssl", "verify_identity" if "ssl_ca" in options else "preferred")
    if mode not in _TLS_MODES or options.keys() - {"ssl", "ssl_ca"}:
        raise AddressError(
            f"{address}: found options {dict(options)}, allowed are ssl={'|'.join(_TLS_MODES)} and ssl_ca=FILE"
        )
    return {
        "host": address.host,
        "port": address.port or 3306,
        "user": address.user,
        "password": address.password() or "",
        "database": address.database,
        **_tls(mode, options.get("ssl_ca")),
    }


def _tls(mode: str, authority: str | None) -> dict[str, Any]:
    import ssl

    if mode in ("disabled", "preferred"):
        return {"ssl_disabled": True} if mode == "disabled" else {}
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise AddressError(f"the certificate {authority} cannot be read: {error}; set ssl_ca to one that can") from None
    context.check_hostname = mode == "verify_identity"
    if mode == "required":
        context.verify_mode = ssl.CERT_NONE
    return {"ssl": context}


@contextmanager
def _mariadb_errors() -> Iterator[None]:
    import pymysql

    try:
        yield
    except pymysql.Error as error:
        raise _mariadb_kind(error)(f"mariadb: {_line(error)}") from error


def _mariadb_kind(error: Any) -> type[ShopDatabaseError]:
    import pymysql

    code = error.args[0] if error.args else 0
    if code in _MARIADB_CONFLICTS:
        return Conflict
    lost = isinstance(error, pymysql.InterfaceError) or "Packet sequence" in str(error) or code in _MARIADB_AWAY
    return Unreachable if lost else Rejected


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
