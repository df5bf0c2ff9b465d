"""Where a database is and who we are there, from one URL; its password, which nothing ever shows.

The password is looked for in the URL, then in HEADWATER_SHOP_PASSWORD, then in the file that
HEADWATER_SHOP_PASSWORD_FILE names; without any, the client library looks where it always does (PGPASSFILE, ~/.pgpass).
A file is read at each connection, so that a secret may be rotated while a connector runs.

Errors: AddressError   the URL names no database, or the password's file cannot be read
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

__all__ = ["Address", "AddressError", "parse_address", "shown"]

_HIDDEN = "********"


class AddressError(ValueError):
    """The URL names no database, or the password's file cannot be read."""


@dataclass(frozen=True)
class Address:
    """A database and the account to use there. `hosts`: (name, port), tried in order; `options`: the URL's query."""

    scheme: str
    user: str
    hosts: tuple[tuple[str, int | None], ...]
    database: str
    options: Mapping[str, str] = field(default_factory=dict)
    given: str = field(default="", repr=False)
    password_file: Path | None = None

    def __str__(self) -> str:
        hosts = ",".join(f"{host}:{port}" if port else host for host, port in self.hosts)
        return f"{self.scheme}://{self.user}@{hosts}/{self.database}"

    @property
    def host(self) -> str:
        return self.hosts[0][0]

    @property
    def port(self) -> int | None:
        return self.hosts[0][1]

    def password(self) -> str | None:
        """The password as it is now; None when none was given. Raises AddressError when its file cannot be read."""
        if self.given or self.password_file is None:
            return self.given or None
        try:
            return self.password_file.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise AddressError(
                f"the password's file {self.password_file} cannot be read: {why}; set HEADWATER_SHOP_PASSWORD_FILE to "
                "a file that can"
            ) from None

    def hide(self, text: str) -> str:
        """The text without the password, however it was written there."""
        try:
            secret = self.password()
        except AddressError:
            return text
        for written in {secret, quote(secret, safe="")} if secret else ():
            text = text.replace(written, _HIDDEN)
        return text


def parse_address(url: str, *, password: str = "", password_file: Path | None = None) -> Address:
    """Read `scheme://user[:password]@host[:port][,host[:port]]/database[?options]`. Raises AddressError.

    `password` and `password_file` count when the URL has no password.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may show what stands before the @
        raise AddressError(
            "the database URL cannot be read: percent-encode what is neither letter nor digit in user and password"
        ) from None
    account, _, hosts = parts.netloc.rpartition("@")
    user, _, inside = account.partition(":")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    inside = unquote(inside) or options.pop("password", "")
    database = unquote(parts.path.removeprefix("/"))
    if not (parts.scheme and user and database):
        raise AddressError(
            f"database URL {shown(url)}: allowed is scheme://user@host:port/database, with a user and a database"
        )
    return Address(
        parts.scheme, unquote(user), _hosts(hosts, url), database, options, inside or password, password_file
    )


def shown(url: str) -> str:
    """The URL as it may be shown: with stars for its password, and all stars when it cannot be read."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return _HIDDEN
    account, at, hosts = parts.netloc.rpartition("@")
    user, colon, inside = account.partition(":")
    netloc = f"{user}{colon}{_HIDDEN if inside else ''}{at}{hosts}"
    query = "&".join(
        f"password={_HIDDEN}" if one.startswith("password=") else one for one in parts.query.split("&") if one
    )
    return parts._replace(netloc=netloc, query=query).geturl()


def _hosts(text: str, url: str) -> tuple[tuple[str, int | None], ...]:
    found: list[tuple[str, int | None]] = []
    for one in text.split(","):
        host, colon, port = one.rpartition(":")
        if not colon or one.endswith("]"):
            host, port = one, ""
        if port and not (port.isdigit() and 0 < int(port) < 65536):
            raise AddressError(f"database URL {shown(url)}: found a port that is none, allowed is 1 to 65535")
        found.append((host.strip("[]"), int(port) if port else None))
    return tuple(found)
