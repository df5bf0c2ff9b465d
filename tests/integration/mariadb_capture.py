"""A MariaDB server under capture, for tests: its statements, the connector run once or in a thread, what it logged."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pymysql
import pytest
from memory_writer import Log, MemoryWriter, bag, fold, places

from headwater.stack.place import HOST
from headwater.stack.server import Server
from streaming.capture.credentials import Address, parse_address
from streaming.capture.engine import Capture, Options
from streaming.log_writer import LogWriter
from streaming.mysql.source import MysqlSource

FAST = Options(flush_s=0.02, checkpoint_s=0.05, poll_s=0.02, chunk_rows=200)
# Nothing here outlives the server's machine: its disk need not be waited for.
RELAXED = {"sync_binlog": "0", "innodb_flush_log_at_trx_commit": "0"}
# A test that has not got there by then never will: it fails and says what it was waiting for.
PATIENCE_S = 40


def topic(name: str) -> str:
    """The topic of `shop.orders`."""
    return f"cdc.shop.{name.partition('.')[2]}"


def address(server: Server, user: str = "root", password: str = "", **options: str) -> Address:
    """The shop on that server, as its administrator unless another user is named."""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    url = f"mysql://{user}@{HOST}:{server.port}/shop?{query}"
    return parse_address(url, password=password or server.password)


def capture(
    server: Server,
    log: Log,
    *tables: str,
    options: Options = FAST,
    writer: Callable[[], LogWriter] | None = None,
    said: list[str] | None = None,
    at: Address | None = None,
) -> Capture:
    """The engine over these tables, into the log."""
    heard: list[str] = [] if said is None else said
    source = MysqlSource("shop", at or address(server), tables, say=heard.append)
    return Capture(source, writer or (lambda: MemoryWriter(log)), options, topic=topic, database="", say=heard.append)


def capture_once(server: Server, log: Log, *tables: str, options: Options = FAST) -> list[str]:
    """Capture what there is by now. Returns what was said."""
    said: list[str] = []
    run_once(capture(server, log, *tables, options=options, said=said), said)
    return said


def run_once(running: Capture, said: list[str]) -> None:
    """To the end that it finds; fails when it does not get there."""
    stop, late = threading.Event(), threading.Event()

    def give_up() -> None:
        late.set()
        stop.set()

    timer = threading.Timer(PATIENCE_S, give_up)
    timer.start()
    try:
        running.run(stop, once=True)
    finally:
        timer.cancel()
    if late.is_set():
        pytest.fail(f"the capture had not reached the log's end after {PATIENCE_S} s; it said: {said}")


@contextmanager
def capturing(
    server: Server, log: Log, *tables: str, options: Options = FAST, said: list[str] | None = None
) -> Iterator[Capture]:
    """Capture in a thread while the block runs; what it raises is raised at the end."""
    said = [] if said is None else said
    running, stop = capture(server, log, *tables, options=options, said=said), threading.Event()
    thread = _Thread(lambda: running.run(stop))
    thread.start()
    try:
        yield running
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    thread.check(f"the capture did not stop; it said: {said}")


class _Thread(threading.Thread):
    """Keeps what it raises for whoever waits for it."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._raised: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  # raised again by check
            self._raised = error

    def check(self, unfinished: str) -> None:
        if self.is_alive():
            pytest.fail(f"after {PATIENCE_S} s {unfinished}")
        if self._raised is not None:
            raise self._raised


@contextmanager
def writers(server: Server, count: int, work: Callable[[Shop, random.Random], None], *, rounds: int) -> Iterator[None]:
    """Threads, each with a connection to the shop, that work while the block runs, and to the end of their rounds."""

    def run(shop: Shop, number: int) -> None:
        rng = random.Random(number)
        with shop:  # closed at the end: whoever fails must not keep the others from what he has locked
            for _ in range(rounds):
                with suppress(pymysql.OperationalError):  # a deadlock, a lock timeout
                    work(shop, rng)
                shop.connection.rollback()  # after a timeout, the transaction is still open and holds its locks

    threads = [_Thread(partial(run, Shop(server, database="shop"), number)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(PATIENCE_S)
    for thread in threads:
        thread.check("a writer was still at work")


class Shop:
    """A connection to the server, in the database `shop`."""

    def __init__(self, server: Server, **options: Any) -> None:
        """Waits for no lock and no answer for ever."""
        arguments = {"host": HOST, "port": server.port, "user": "root", "password": server.password, **options}
        waits = "SET lock_wait_timeout = 20, innodb_lock_wait_timeout = 10"
        self.connection = pymysql.connect(
            **arguments, autocommit=True, charset="utf8mb4", read_timeout=PATIENCE_S, init_command=waits
        )

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


def assert_same_as_the_source(server: Server, log: Log, *tables: str) -> None:
    """What a fresh capture reads of each table is what this log folds to."""
    again: Log = {}
    capture_once(server, again, *tables)
    for table in tables:
        name = topic(f"shop.{table}")
        assert fold(log, name) == fold(again, name)
        if not fold(again, name):  # without a key, rows can only be counted
            assert bag(log, name) == bag(again, name)


def assert_no_place_twice(log: Log, *tables: str) -> None:
    """Every partition has its changes in order, and each once."""
    for table in tables:
        found = places(log, topic(f"shop.{table}"))
        for partition in {place[0] for place in found}:
            mine = [place for where, place in found if where == partition]
            assert mine == sorted(set(mine))
