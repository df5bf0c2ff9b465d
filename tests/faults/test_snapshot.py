"""Faults 15 to 20: what happens while a table is read for the first time."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from random import Random

import pytest

from catalog.keys import cdc_topic
from streaming.shop_database.connect import Conflict
from streaming.sqlite_writer import SqliteWriter
from tests.faults.case import Case
from tests.integration.memory_writer import bag

Seen = Callable[[str], None]
ROWS = 30_000


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


def any_change(rng: Random) -> str:
    key = rng.randrange(ROWS)
    return rng.choice(
        (
            f"UPDATE t SET v = 'u{rng.random()}' WHERE id BETWEEN {key} AND {key + 20}",
            f"DELETE FROM t WHERE id = {key}",
            f"UPDATE t SET id = {ROWS + key + rng.randrange(1, 1 << 20) * ROWS} WHERE id = {key}",
        )
    )


@pytest.mark.representative
def test_15_killed_in_a_chunk(case: Case, seen: Seen) -> None:
    """The connector kills itself when half of a chunk of a snapshot is in the log, twice; rows change in between."""
    case.make("t", 12_000)
    for number in (1, 2):
        case.dies("in_chunk", "capture", "shop", "--once")
        case.sql(f"UPDATE t SET v = 'after {number}' WHERE id < 100", f"DELETE FROM t WHERE id = {number}")
    case.sync()
    seen("the chunk is read again; what was read before and deleted since is gone, equals the source")


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
    for done in (case.capture(), case.land()):
        assert done.code == 0, done
    topic = cdc_topic("shop", "t")
    with closing(SqliteWriter(case.home.path / "log.db")) as writer:
        kept = list(writer.tails(topic, 1_000_000)[0])
    source = Counter(json.dumps({"id": key, "v": v}, sort_keys=True) for key, v in case.sql("SELECT id, v FROM t"))
    assert bag({(topic, 0): kept}, topic) == source
    assert len(case.history("t")) == sum(record.value is not None for record in kept)
    seen(f"{source.total()} rows, as often each as in the source; every change is in the raw table")


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
