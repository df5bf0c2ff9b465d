"""Faults 15 to 20: what happens while a table is read for the first time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from random import Random
from typing import Any

import pytest

from catalog.keys import cdc_topic, raw
from streaming.capture.source import Chunk
from streaming.mysql.source import MysqlSource
from streaming.postgres.source import PostgresSource
from streaming.shop_database.connect import Conflict, Database
from streaming.sqlite_writer import SqliteWriter
from tests.faults.case import Case
from tests.faults.stand import wait_until

Seen = Callable[[str], None]
ROWS = 30_000
CHUNK_ROWS = 100


@contextmanager
def writing(case: Case, change: Callable[[Random], str]) -> Iterator[None]:
    """Two connections that change rows meanwhile."""
    stop = threading.Event()

    def write(seed: int) -> None:
        rng = Random(seed)
        with case.connect() as database:
            while not stop.is_set():
                try:
                    database.script(change(rng))
                except Conflict:
                    continue

    threads = [threading.Thread(target=write, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def any_change(rng: Random, table: str = "t", rows: int = ROWS) -> str:
    key = rng.randrange(rows)
    return rng.choice(
        (
            f"UPDATE {table} SET v = 'u{rng.random()}' WHERE id BETWEEN {key} AND {key + 20}",
            f"DELETE FROM {table} WHERE id = {key}",
            f"UPDATE {table} SET id = {rows + key + rng.randrange(1, 1 << 16) * rows} WHERE id = {key}",
        )
    )


@contextmanager
def around_each_chunk(case: Case, happens: Callable[[int], AbstractContextManager[None]]) -> Iterator[None]:
    """Something happens before the n-th chunk is read, and after it was read and before it may be emitted."""
    source: Any = PostgresSource if case.is_postgresql else MysqlSource
    read, known = source.read_chunk, set()

    def reading(self: object, table: str, cursor: tuple[Any, ...] | None, limit: int) -> Chunk:
        if cursor in known:  # once more, for what came in between
            return read(self, table, cursor, limit)  # type: ignore[no-any-return]
        with happens(len(known)):
            known.add(cursor)
            chunk: Chunk = read(self, table, cursor, limit)
        return chunk

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "read_chunk", reading)
        yield


def until_streamed(case: Case, database: Database, key: int) -> None:
    """Write a row, and wait until it, and so all before it, is in the log."""
    database.script(f"INSERT INTO t (id, v) VALUES ({key}, 'mark')")
    with closing(SqliteWriter(case.home.path / "log.db")) as log:

        def arrived() -> bool:
            return any(
                b":%d}" % key in (record.key or b"") for record in log.tails(cdc_topic("shop", "t"), 9).get(0, ())
            )

        wait_until(arrived, f"row {key} is in the log")


@pytest.mark.representative
def test_15_killed_in_a_chunk(case: Case, seen: Seen) -> None:
    """The connector kills itself when half of a chunk of a snapshot is in the log, twice; rows change in between."""
    case.make("t", 12_000)
    for number in (1, 2):
        case.dies("in_chunk", "capture", "shop", "--once")
        case.sql(f"UPDATE t SET v = 'after {number}' WHERE id < 100", f"DELETE FROM t WHERE id = {number}")
    case.sync()
    seen("the chunk is read again; what was read before and deleted since is gone, equals the source")


def test_16_changed_in_the_window(case: Case, seen: Seen) -> None:
    """Between the reading of each chunk and its place in the stream, rows of it are updated, deleted, given another
    key, deleted before and added again; and a transaction commits that was open as the chunk was read.
    """
    case.make("t", 4 * CHUNK_ROWS)
    left_out = {first + changed for first in range(0, 4 * CHUNK_ROWS, CHUNK_ROWS) for changed in (1, 3, 4, 5, 6)}

    @contextmanager
    def changed(number: int) -> Iterator[None]:
        first = number * CHUNK_ROWS
        if number >= 4:  # of rows that were given another key
            yield
            return
        with case.connect() as database, case.connect() as other:
            other.script("BEGIN")
            other.script(f"UPDATE t SET v = 'was open' WHERE id = {first + 1}")
            database.script(f"UPDATE t SET v = 'before' WHERE id = {first + 2}")
            database.script(f"DELETE FROM t WHERE id = {first + 3}")
            yield
            other.script("COMMIT")
            database.script(f"INSERT INTO t (id, v) VALUES ({first + 3}, 'again')")
            database.script(f"UPDATE t SET v = 'in it' WHERE id = {first + 4}")
            database.script(f"DELETE FROM t WHERE id = {first + 5}")
            database.script(f"UPDATE t SET id = {first + 6 + 10 * CHUNK_ROWS} WHERE id = {first + 6}")
            until_streamed(case, database, 100 * CHUNK_ROWS + number)

    with around_each_chunk(case, changed):
        case.sync(chunk_rows=CHUNK_ROWS - 1)  # one of them is deleted before
    read = {key: v for op, key, v in case.history("t") if op == "r"}
    assert not left_out & read.keys()
    assert [read[first + 2] for first in range(0, 4 * CHUNK_ROWS, CHUNK_ROWS)] == ["before"] * 4
    seen(f"{len(left_out)} old rows of four chunks are left out, their changes stand; equals the source")


def test_16_changed_at_random(case: Case, seen: Seen) -> None:
    """30,000 rows are read in 60 chunks while two connections update, delete and give other keys."""
    case.make("t", ROWS)
    with writing(case, any_change):
        assert case.capture(chunk_rows=500).code == 0
    case.sync()
    seen(f"{len(case.history('t'))} changes; equals the source")


def test_17_table_added_while_running(case: Case, seen: Seen) -> None:
    """Connector and lander run; a table with 5,000 rows, changed by two connections, is declared."""
    case.make("t", 3)
    case.sync()
    with case.running("capture", "shop"), case.running("land", "--every", "0.2"):
        case.insert("t", 10, 12)
        case.wait_for_same()
        case.sql("CREATE TABLE u (id int PRIMARY KEY, v varchar(200))")
        case.insert("u", 1, 5000)
        with writing(case, lambda rng: any_change(rng, "u", 5000)):
            case.declare("u")
            wait_until(lambda: case.lake.exists(raw("shop", "u")), "the new table lands")
            case.insert("t", 20, 22)
        case.wait_for_same()
    assert [op for op, _, _ in case.history("t")] == [*"rrrcccccc"]
    seen("the new table is read while both stream, the other one is not read again; both equal the source")


@pytest.mark.representative
def test_18_without_primary_key(case: Case, seen: Seen) -> None:
    """Rows that are there several times are read while two connections add, change and delete some of them."""
    case.sql("CREATE TABLE t (id int, v varchar(200))")
    if case.is_postgresql:
        case.sql("ALTER TABLE t REPLICA IDENTITY FULL")
    for _ in range(3):
        case.insert("t", 1, 3000)
    case.declare("t", key="")

    def change(rng: Random) -> str:
        key = rng.randrange(3000)
        return rng.choice(
            (
                f"INSERT INTO t VALUES ({key}, 'v{key}')",
                f"DELETE FROM t WHERE id = {key}",
                f"UPDATE t SET v = 'w{key}' WHERE id = {key}",
            )
        )

    with writing(case, change):
        assert case.capture().code == 0
    case.sync()
    seen("each row is in the lake as often as in the source")


KEYS = ["a", "A", "b", "B", "ä", "Ä", "z", "é", "e", "É", " x", "x ", "x", "ß", "ss", "_", "-", "0", "10", "9"]


@pytest.mark.parametrize("collation", ["default", "binary"])
def test_19_text_keys(case: Case, collation: str, seen: Seen) -> None:
    """A key of a text and a number whose order depends on the collation, more rows than a chunk, changed meanwhile."""
    kind = case.either("varchar(20)", "varchar(20) CHARACTER SET utf8mb4")
    binary = case.either(' COLLATE "C"', " COLLATE utf8mb4_nopad_bin")
    # Under MariaDB's default collation a and A are the same: they differ by the number beside them.
    case.sql(f"CREATE TABLE t (k {kind}{binary if collation == 'binary' else ''}, n int, v int, PRIMARY KEY (k, n))")
    series = case.either("generate_series(1, 600) AS s(seq)", "seq_1_to_600")
    for number, key in enumerate(KEYS):
        case.sql(f"INSERT INTO t SELECT '{key}', seq + {number * 1000}, 0 FROM {series}")
    case.declare("t", "k string, n int64, v int64", "k, n")
    with writing(case, lambda rng: f"UPDATE t SET v = v + 1 WHERE n = {rng.randrange(20_000)}"):
        assert case.capture().code == 0
    case.sync()
    seen("12,000 rows with case, accents and spaces, in chunks of 5,000: each once, equals the source")


DDL = {
    "columns": """
        ALTER TABLE t ADD w int DEFAULT 7; ALTER TABLE t DROP COLUMN x; {retype};
        UPDATE t SET w = id, v = 'after' WHERE id % 10 = 0; INSERT INTO t (id, v, w) VALUES (5000, 'new', 1)
    """,
    "truncate": "TRUNCATE TABLE t; INSERT INTO t (id, v) VALUES (1, 'new'), (150, 'new'), (5000, 'new')",
    "made again": """
        DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v varchar(200));
        INSERT INTO t (id, v) VALUES (1, 'new'), (150, 'new'), (5000, 'new')
    """,
}


@pytest.mark.parametrize("what", DDL)
def test_20_ddl_during_the_snapshot(case: Case, what: str, seen: Seen) -> None:
    """As the second of four chunks is on its way, columns are added, dropped and retyped; the table is truncated; it is
    dropped and made again. Rows that were read, are on their way, and are not read yet get new values.
    """
    case.sql("CREATE TABLE t (id int PRIMARY KEY, v varchar(200), x int)")
    case.declare("t", "id int64, v string, x int64")
    case.insert("t", 1, 4 * CHUNK_ROWS)
    retype = case.either("ALTER TABLE t ALTER v TYPE text", "ALTER TABLE t MODIFY v varchar(300)")
    statements = DDL[what].format(retype=retype).split(";")

    @contextmanager
    def altered(number: int) -> Iterator[None]:
        yield
        if number == 1:
            with case.connect() as database:
                for statement in statements:
                    database.script(statement)
                if what != "made again":  # PostgreSQL has to publish it first
                    until_streamed(case, database, 9000)

    with around_each_chunk(case, altered):
        assert case.capture(chunk_rows=CHUNK_ROWS, look_s=0.2).code == 0
    assert case.sql("SELECT v FROM t WHERE id = 5000") == [("new",)]
    case.sync()
    seen(f"{what}: equals the source")
