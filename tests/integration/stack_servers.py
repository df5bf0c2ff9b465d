"""Servers of the local stack for a test: installed if need be, started, asked, removed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

from headwater.stack import kafka, mariadb, postgresql, redis
from headwater.stack.errors import MissingPrograms
from headwater.stack.packages import ensure
from headwater.stack.place import HOST
from headwater.stack.server import Server, remove

MODULES: dict[str, Any] = {"postgresql": postgresql, "mariadb": mariadb, "kafka": kafka, "redis": redis}


def need(*servers: str) -> None:
    """Install what they need if we may; where CI is set it has to be there."""
    try:
        ensure(*servers)
    except MissingPrograms as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))


@contextmanager
def started(name: str, directory: Path, **options: Any) -> Iterator[Server]:
    """A server that is removed at the end, with whatever runs in its directory by then."""
    need(name)
    server: Server = MODULES[name].start(directory, **options)
    try:
        yield server
    finally:
        remove(MODULES[name].start(directory))


def ask_postgresql(server: Server, statement: str, **options: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(server.admin_url, autocommit=True, **options) as connection:
        cursor = connection.execute(statement)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []


def ask_mariadb(server: Server, statement: str, **options: Any) -> list[tuple[Any, ...]]:
    arguments = {"host": HOST, "port": server.port, "user": "root", "password": server.password, **options}
    with pymysql.connect(**arguments, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def ask_redis(server: Server, command: str) -> str:
    with socket.create_connection((HOST, server.port), timeout=5) as connection:
        connection.sendall(f"{command}\r\n".encode())
        return connection.recv(1000).decode().strip()


def processes_below(*directories: Path) -> list[int]:
    """Processes that work in one of these directories or below."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                where = Path(os.readlink(process / "cwd"))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if any(where.is_relative_to(directory) for directory in directories):
                found.append(int(process.name))
    return found


def assert_captures_and_no_more(url: str, password: str) -> None:
    with psycopg.connect(url, password=password, autocommit=True) as connection:
        assert connection.execute("SELECT n FROM orders").fetchall() == [(1,)]
        published = "SELECT tablename FROM pg_publication_tables WHERE pubname = 'headwater_shop'"
        assert ("orders",) in connection.execute(published).fetchall()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM orders")
    with psycopg.connect(url, password=password, replication="database", autocommit=True) as connection:
        assert connection.execute("IDENTIFY_SYSTEM").fetchall()
