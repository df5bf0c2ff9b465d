"""Debezium and our connector on one database, beside each other: one workload, two sets of topics, read back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from bench.debezium import engine
from bench.debezium.cases import TYPES, WORKLOADS, Case, Workload
from headwater.stack.place import HOST
from headwater.stack.server import Server
from streaming.capture.credentials import Address, parse_address
from streaming.capture.engine import Capture, Options
from streaming.capture.source import Source
from streaming.kafka_config import TopicShape, parse_log_url
from streaming.kafka_writer import KafkaWriter

if TYPE_CHECKING:
    from confluent_kafka import Consumer

__all__ = ["Captured", "Database", "Peers", "Record", "connect", "run_both"]

DATABASE = "peers"
_LAST_ID = 1_000_000
_WITHIN_S = 120.0


@dataclass(frozen=True)
class Record:
    """A record as a consumer finds it."""

    partition: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True)
class Captured:
    """What one of the two wrote: records by table, in the order of each partition, and those of transactions."""

    tables: Mapping[str, Sequence[Record]]
    transactions: Sequence[Record]


@dataclass(frozen=True)
class Peers:
    """What both made of the same workload; `rows`: the case that each id of the table of types has, and its op."""

    workload: Workload
    debezium: Captured
    ours: Captured
    rows: Mapping[int, tuple[Case, str]]


def run_both(kind: str, server: Server, kafka: Server, directory: Path) -> Peers:
    """Run the workload of `postgresql` or `mariadb` on a fresh database of that server, captured by both."""
    workload = WORKLOADS[kind]
    tables = {TYPES: 1, **workload.operations.tables}
    system = f"peer_{kind}"  # also Debezium's topic.prefix, so that source.name is the same
    names = {
        "debezium": {table: f"{system}.{_schema(kind)}.{table}" for table in tables},
        "ours": {table: f"cdc.{system}.{table}" for table in tables},
    }
    transactions = {"debezium": f"{system}.transaction", "ours": f"cdc.{system}.transactions"}
    bootstrap = f"{HOST}:{kafka.port}"
    _make_topics(bootstrap, {topics[table]: count for topics in names.values() for table, count in tables.items()})
    # Debezium also writes logical messages (op m), such as those by which our snapshots find their place in the stream.
    _make_topics(bootstrap, dict.fromkeys((*transactions.values(), f"{system}.message"), 1))
    with closing(connect(kind, server, None)) as admin:
        admin.run(f"CREATE DATABASE {DATABASE}")
    with closing(connect(kind, server, DATABASE)) as database:
        rows = _fill(database, workload)
        with (
            _debezium(kind, server, bootstrap, directory, system, tables),
            _ours(kind, server, bootstrap, system, tables),
        ):
            at_rest = len(rows)
            for topics in names.values():
                _wait_for(bootstrap, topics[TYPES], lambda found: len(found) >= at_rest)
                _wait_for(bootstrap, topics["whole"], lambda found: len(found) >= 1)
            rows |= _change(database, workload)
            last = b'{"id":%d}' % _LAST_ID
            for topics in names.values():
                _wait_for(bootstrap, topics[TYPES], lambda found: any(record.key == last for record in found))
    captured = [
        Captured(
            {table: list(_read(bootstrap, topic)) for table, topic in topics.items()},
            list(_read(bootstrap, transactions[who])),
        )
        for who, topics in names.items()
    ]
    return Peers(workload, captured[0], captured[1], rows)


def _schema(kind: str) -> str:
    return "public" if kind == "postgresql" else DATABASE


def _fill(database: Database, workload: Workload) -> dict[int, tuple[Case, str]]:
    for statement in (*workload.before, workload.create_types(), *workload.operations.before):
        database.run(statement)
    found = {}
    with database.transaction():
        for row, case, statement in workload.statements(1, at_rest=True):
            database.run(statement)
            found[row] = (case, "r")
    return found


def _change(database: Database, workload: Workload) -> dict[int, tuple[Case, str]]:
    found = {}
    with database.transaction():
        for row, case, statement in workload.statements(1001, at_rest=False):
            database.run(statement)
            found[row] = (case, "c")
    for statements in workload.operations.transactions:
        if len(statements) == 1:
            database.run(statements[0])
        else:
            with database.transaction():
                for statement in statements:
                    database.run(statement)
    database.run(f"INSERT INTO {TYPES} (id) VALUES ({_LAST_ID})")
    return found


class Database:
    """A connection in autocommit mode, the same for both servers."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def run(self, statement: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)

    def ask(self, statement: str) -> list[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.run("BEGIN")
        yield
        self.run("COMMIT")

    def close(self) -> None:
        self._connection.close()


def connect(kind: str, server: Server, database: str | None) -> Database:
    """As the administrator, in UTC; on MariaDB with dates of zero allowed."""
    if kind == "postgresql":
        import psycopg

        connection: Any = psycopg.connect(_url(kind, server, database or "postgres"), autocommit=True)
        made = Database(connection)
        made.run("SET timezone = 'UTC'")
        return made
    import pymysql

    connection = pymysql.connect(
        host=HOST, port=server.port, user="root", password=server.password, database=database, autocommit=True
    )
    made = Database(connection)
    made.run("SET time_zone = '+00:00', sql_mode = 'ALLOW_INVALID_DATES'")
    return made


def _url(kind: str, server: Server, database: str) -> str:
    return urlunsplit(urlsplit(server.admin_url)._replace(path=f"/{database}"))


@contextmanager
def _debezium(
    kind: str, server: Server, bootstrap: str, directory: Path, system: str, tables: Mapping[str, int]
) -> Iterator[engine.Engine]:
    settings_for = engine.postgresql_settings if kind == "postgresql" else engine.mariadb_settings
    settings = settings_for(server, DATABASE, [f"{_schema(kind)}.{table}" for table in tables]) | {
        "topic.prefix": system,
        "skipped.operations": "none",
        "enable.time.adjuster": "false",
        "poll.interval.ms": "10",
    }
    running = engine.start(directory, settings, bootstrap)
    try:
        running.wait_until_polling()
        yield running
    finally:
        running.stop()


@contextmanager
def _ours(kind: str, server: Server, bootstrap: str, system: str, tables: Mapping[str, int]) -> Iterator[None]:
    address = parse_address(_url(kind, server, DATABASE))
    stop, ended = Event(), list[BaseException]()
    capture = Capture(
        _source(kind, system, address, list(tables)),
        lambda: KafkaWriter(parse_log_url(f"kafka://{bootstrap}"), TopicShape(partitions=2)),
        # What the stream does not tell is read anew when it is noticed: at no certain place among the records.
        Options(look_s=3600),
        topic=lambda name: f"cdc.{system}.{name.rpartition('.')[2]}",
        database=DATABASE if kind == "postgresql" else "",
        say=lambda line: None,
    )
    thread = Thread(target=_run, args=(capture, stop, ended))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if ended:
        raise ended[0]


def _source(kind: str, system: str, address: Address, tables: Sequence[str]) -> Source:
    if kind == "postgresql":
        from streaming.postgres.source import PostgresSource

        return PostgresSource(system, address, tables)
    from streaming.mysql.source import MysqlSource

    return MysqlSource(system, address, tables)


def _run(capture: Capture, stop: Event, ended: list[BaseException]) -> None:
    """In a thread: an error is kept for who waits for it."""
    try:
        capture.run(stop)
    except (RuntimeError, OSError) as error:
        ended.append(error)


def _make_topics(bootstrap: str, partitions: Mapping[str, int]) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": bootstrap})
    made = admin.create_topics([NewTopic(topic, count, 1) for topic, count in partitions.items()])
    for each in made.values():
        each.result()


def _wait_for(bootstrap: str, topic: str, is_enough: Callable[[Sequence[Record]], bool]) -> None:
    """Until the records of the topic are enough. Raises TimeoutError."""
    deadline, found = time.monotonic() + _WITHIN_S, list[Record]()
    with _consumer(bootstrap, topic) as (consumer, _):
        while not is_enough(found):
            message = consumer.poll(0.1)
            if message is not None and message.error() is None:
                found.append(Record(message.partition(), message.key(), message.value()))
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: {len(found)} records within {_WITHIN_S:g} s, not enough; {found[-1:]}")


def _read(bootstrap: str, topic: str) -> Iterator[Record]:
    """Every record that the topic has."""
    with _consumer(bootstrap, topic) as (consumer, ends):
        left = sum(ends.values())
        while left:
            message = consumer.poll(1)
            if message is not None and message.error() is None:
                left -= 1
                yield Record(message.partition(), message.key(), message.value())


@contextmanager
def _consumer(bootstrap: str, topic: str) -> Iterator[tuple[Consumer, Mapping[int, int]]]:
    """A consumer at the beginning of each partition, and where they end; retention deletes nothing here."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "peers", "enable.auto.commit": False})
    try:
        numbers = consumer.list_topics(topic, 10).topics[topic].partitions
        places = [TopicPartition(topic, number, 0) for number in numbers]
        ends = {place.partition: consumer.get_watermark_offsets(place, 10)[1] for place in places}
        consumer.assign(places)
        yield consumer, ends
    finally:
        consumer.close()
