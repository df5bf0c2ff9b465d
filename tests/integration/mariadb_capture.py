"""A MariaDB server under capture, for tests: its statements, the connector run once or in a thread, what it logged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pymysql
from memory_writer import Log, MemoryWriter

from headwater.stack.place import HOST
from headwater.stack.server import Server
from streaming.capture.credentials import Address, parse_address
from streaming.capture.engine import Capture, Options
from streaming.capture.errors import CaptureError
from streaming.log_writer import LogWriter
from streaming.mysql.source import MysqlSource

FAST = Options(flush_s=0.02, checkpoint_s=0.05, poll_s=0.02, chunk_rows=200)


def topic(name: str) -> str:
    """The topic of `shop.orders`."""
    return f"cdc.shop.{name.partition('.')[2]}"


def address(server: Server, **options: str) -> Address:
    """The shop on that server, as its administrator."""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return parse_address(f"mysql://root@{HOST}:{server.port}/shop?{query}", password=server.password)


def capture(
    server: Server,
    log: Log,
    *tables: str,
    options: Options = FAST,
    writer: Callable[[], LogWriter] | None = None,
    said: list[str] | None = None,
) -> Capture:
    """The engine over these tables, into the log."""
    heard: list[str] = [] if said is None else said
    source = MysqlSource("shop", address(server), tables, say=heard.append)
    return Capture(source, writer or (lambda: MemoryWriter(log)), options, topic=topic, database="", say=heard.append)


def capture_once(server: Server, log: Log, *tables: str, options: Options = FAST) -> list[str]:
    """Capture what there is by now. Returns what was said."""
    said: list[str] = []
    capture(server, log, *tables, options=options, said=said).run(threading.Event(), once=True)
    return said


@contextmanager
def capturing(server: Server, log: Log, *tables: str, options: Options = FAST) -> Iterator[Capture]:
    """Capture in a thread while the block runs; what it raises is raised at the end."""
    running, stop, raised = capture(server, log, *tables, options=options), threading.Event(), list[Exception]()

    def run() -> None:
        try:
            running.run(stop)
        except (CaptureError, RuntimeError, AssertionError, ValueError, LookupError, TypeError) as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield running
    finally:
        stop.set()
        thread.join(60)
    if raised:
        raise raised[0]


class Shop:
    """A connection to the server, in the database `shop`."""

    def __init__(self, server: Server, **options: Any) -> None:
        arguments = {"host": HOST, "port": server.port, "user": "root", "password": server.password, **options}
        self.connection = pymysql.connect(**arguments, autocommit=True, charset="utf8mb4")

    def __enter__(self) -> Shop:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Carry out statements; the rows of the last one."""
        with self.connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def one(self, statement: str) -> Any:
        """The first value of the first row."""
        return self.run(statement)[0][0]


def fresh_database(shop: Shop, statements: Sequence[str]) -> None:
    """An empty database `shop`, and then these statements in it."""
    shop.run("DROP DATABASE IF EXISTS shop", "CREATE DATABASE shop CHARACTER SET utf8mb4", "USE shop", *statements)
