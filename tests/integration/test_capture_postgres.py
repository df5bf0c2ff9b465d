"""PostgreSQL captured for real: what lies in the log folds to what the database has, whatever happened in between."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Iterator

import psycopg
import pytest
from memory_writer import UNAVAILABLE, bag, places
from postgres_capture import SETTINGS, Connector, Database, capturing, same, wait_until
from stack_servers import started

from headwater.stack.server import Server

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started("postgresql", tmp_path_factory.mktemp("postgresql"), settings=SETTINGS) as server:
        yield server


@pytest.fixture
def db(server: Server) -> Iterator[Database]:
    with Database(server, f"d{next(_NUMBERS)}") as database:
        yield database


def test_a_snapshot_under_concurrent_writes_folds_to_the_tables_rows(db: Database) -> None:
    db("CREATE TABLE t (region text, id int, n int, PRIMARY KEY (region, id))")
    db("INSERT INTO t SELECT chr(65 + i % 26), i, 0 FROM generate_series(1, 8000) i")
    db("CREATE TABLE bare (id int, n int); ALTER TABLE bare REPLICA IDENTITY FULL")
    db("INSERT INTO bare SELECT i % 50, i % 3 FROM generate_series(1, 6000) i")
    stop = threading.Event()
    writers = [threading.Thread(target=_write, args=(db, seed, stop)) for seed in range(3)]
    for writer in writers:
        writer.start()
    try:
        with capturing(db, "t", "bare") as connector:
            wait_until(lambda: connector.heard("snapshot of public.bare is complete"), "the snapshots")
            stop.set()
            for writer in writers:
                writer.join()
            connector.caught_up()
    finally:
        stop.set()
    assert same(connector.fold("t"), db.rows("t"))
    found = bag(connector.log, connector.topic("bare"))
    wanted = db("SELECT json_build_object('id', id, 'n', n), count(*) FROM bare GROUP BY id, n")
    assert sum(found.values()) == sum(count for _, count in wanted)
    assert all(found[_sorted(row)] == count for row, count in wanted)
    streamed = sum(change["op"] != "r" for change in connector.changes("t"))
    assert streamed > 100, "the writers were too slow for this to show anything"
    _in_order(connector, "t")


def _sorted(row: dict[str, int]) -> str:
    return f'{{"id": {row["id"]}, "n": {row["n"]}}}'


def _write(db: Database, seed: int, stop: threading.Event) -> None:
    """Transactions of all kinds: some last, some are rolled back, some change keys."""
    rng = random.Random(seed)
    with db.connect() as connection:
        while not stop.is_set():
            try:
                with connection.transaction():
                    for _ in range(rng.randrange(1, 6)):
                        connection.execute(_change(rng).encode())
                    if rng.random() < 0.2:
                        raise psycopg.Rollback
            except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
                continue


def _change(rng: random.Random) -> str:
    key, n = rng.randrange(9000), rng.randrange(1000)
    region = chr(65 + key % 26)
    return rng.choice(
        (
            f"INSERT INTO t VALUES ('{region}', {key}, {n}) ON CONFLICT (region, id) DO UPDATE SET n = excluded.n",
            f"UPDATE t SET n = {n} WHERE region = '{region}' AND id BETWEEN {key} AND {key + 60}",
            f"DELETE FROM t WHERE region = '{region}' AND id = {key}",
            f"UPDATE t SET id = {key + 20000 + n} WHERE region = '{region}' AND id = {key}",
            f"INSERT INTO bare VALUES ({key % 50}, {n % 3})",
            f"DELETE FROM bare WHERE ctid IN (SELECT ctid FROM bare WHERE id = {key % 50} LIMIT 2)",
            f"UPDATE bare SET n = {n % 3} WHERE ctid IN (SELECT ctid FROM bare WHERE id = {key % 50} LIMIT 2)",
        )
    )


def _in_order(connector: Connector, table: str) -> None:
    """Each partition's changes lie in commit order, and none twice."""
    found = places(connector.log, connector.topic(table))
    for partition in {partition for partition, _ in found}:
        mine = [place for where, place in found if where == partition]
        assert mine == sorted(set(mine))


def test_envelopes_say_where_and_when(db: Database) -> None:
    db("CREATE TABLE t (id int PRIMARY KEY, v text)")
    with capturing(db, "t") as connector:
        connector.caught_up()
        db("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
        db("UPDATE t SET v = 'c' WHERE id = 1")
        connector.caught_up()
        ((xid,),) = db("SELECT xmin::text::int8 FROM t WHERE id = 1")
    one, two, three = sorted(connector.changes("t"), key=lambda c: c["source"]["lsn"])
    assert [c["op"] for c in (one, two, three)] == ["c", "c", "u"]
    source = three["source"]
    assert (source["txId"], source["schema"], source["table"], source["db"]) == (xid, "public", "t", db.name)
    assert (source["connector"], source["snapshot"], source["xmin"]) == ("postgresql", "false", None)
    before, here = (int(text) for text in json.loads(source["sequence"]))
    assert _commit(two) < before <= here == source["lsn"]
    assert three["before"] is None
    assert three["after"] == {"id": 1, "v": "c"}
    assert one["transaction"]["id"] == two["transaction"]["id"] == f"{one['source']['txId']}:{_commit(one)}"
    assert [c["transaction"]["total_order"] for c in (one, two)] == [1, 2]
    assert _commit(one) < _commit(three)
    assert abs(source["ts_us"] - three["ts_us"]) < 30_000_000


def _commit(change: dict[str, dict[str, dict[str, int]]]) -> int:
    return change["source"]["headwater"]["commit"]


def test_a_changed_primary_key_deletes_one_row_and_makes_another(db: Database) -> None:
    db("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    with capturing(db, "t", partitions=1) as connector:
        connector.caught_up()
        db("UPDATE t SET id = 7 WHERE id = 1")
        connector.caught_up()
    records = [(record.key, record.value is None) for record in connector.log[connector.topic("t"), 0]]
    assert records == [(b'{"id":1}', False), (b'{"id":1}', False), (b'{"id":1}', True), (b'{"id":7}', False)]
    _, deleted, made = connector.changes("t")
    assert (deleted["op"], deleted["before"]) == ("d", {"id": 1, "v": None})
    assert (made["op"], made["after"]) == ("c", {"id": 7, "v": "a"})


def test_truncate_of_several_tables_empties_each(db: Database) -> None:
    db("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE other (id int)")
    db("INSERT INTO t VALUES (1); INSERT INTO u VALUES (1), (2)")
    with capturing(db, "t", "u") as connector:
        connector.caught_up()
        db("TRUNCATE t, u, other; INSERT INTO t VALUES (5)")
        connector.caught_up()
    assert connector.fold("t") == [{"id": 5}]
    assert connector.fold("u") == []
    said = [change for change in connector.changes("u") if change["op"] == "t"]
    assert len(said) == 3, "one for each partition"


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL", "USING INDEX t_code"])
def test_replica_identities(db: Database, identity: str) -> None:
    db("CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL, v int); CREATE UNIQUE INDEX t_code ON t (code)")
    db(f"ALTER TABLE t REPLICA IDENTITY {identity}; INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 1), (3, 'c', 1)")
    with capturing(db, "t", partitions=1) as connector:
        connector.caught_up()
        db("UPDATE t SET v = 2 WHERE id = 1; DELETE FROM t WHERE id = 2; UPDATE t SET code = 'd' WHERE id = 3")
        db("UPDATE t SET id = 9 WHERE id = 1")
        connector.caught_up()
    assert same(connector.fold("t"), db.rows("t"))
    updated = next(change for change in connector.changes("t") if change["op"] == "u")
    deleted = next(change for change in connector.changes("t") if change["op"] == "d")
    whole = {"id": 2, "code": "b", "v": 1}
    kept = {"DEFAULT": ("id",), "FULL": tuple(whole), "USING INDEX t_code": ("code",)}[identity]
    assert deleted["before"] == {name: value if name in kept else None for name, value in whole.items()}
    assert updated["before"] == ({"id": 1, "code": "a", "v": 1} if identity == "FULL" else None)
    # The key is what PostgreSQL can always tell: the columns of the identity's index.
    key = b'{"code":"d"}' if "INDEX" in identity else b'{"id":3}'
    assert key in {record.key for record in connector.log[connector.topic("t"), 0]}


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_an_unchanged_toast_column_is_never_lost(db: Database, identity: str) -> None:
    db("CREATE TABLE t (id int PRIMARY KEY, v int, long text); ALTER TABLE t ALTER long SET STORAGE EXTERNAL")
    db(f"ALTER TABLE t REPLICA IDENTITY {identity}; INSERT INTO t VALUES (1, 0, repeat('x', 30000)), (2, 0, 'short')")
    with capturing(db, "t") as connector:
        connector.caught_up()
        db("INSERT INTO t VALUES (3, 0, repeat('y', 30000))")
        db("UPDATE t SET v = 1")
        db("UPDATE t SET id = 4 WHERE id = 3")
        connector.caught_up()
    updated = {
        change["after"]["id"]: change["after"]["long"] for change in connector.changes("t") if change["op"] == "u"
    }
    assert updated[1] == (UNAVAILABLE if identity == "DEFAULT" else "x" * 30000)
    assert updated[2] == "short"
    assert same(connector.fold("t"), db.rows("t"))


def test_a_row_keeps_its_unchanged_toast_columns_under_its_new_key(db: Database) -> None:
    """As long as nobody else has touched the row since; else the table is read again, and nothing is made up."""
    db("CREATE EXTENSION citext; CREATE TABLE t (k citext, id int, v int, long text, more text, PRIMARY KEY (k, id))")
    db("ALTER TABLE t ALTER long SET STORAGE EXTERNAL, ALTER more SET STORAGE EXTERNAL")
    db("INSERT INTO t SELECT 'it''s ' || v, v, v FROM generate_series(1, 9) v")
    db(r"UPDATE t SET long = repeat(v || E'\t\\N\n''ä', 5000), more = repeat('m' || v, 5000)")

    def read() -> int:
        return sum(change["op"] == "r" for change in connector.changes("t"))

    with capturing(db, "t", partitions=1) as connector:
        connector.caught_up()
        db("UPDATE t SET id = 10 WHERE v = 1")
        db("UPDATE t SET k = 'Ab' WHERE v = 2")
        db("UPDATE t SET k = '' WHERE v = 7")
        connector.caught_up()
        db("UPDATE t SET v = 0 WHERE v IN (1, 2)")
        connector.caught_up()
    assert read() == 9
    assert [c["after"]["more"][:2] for c in connector.changes("t") if c["op"] == "c"] == ["m1", "m2", "m7"]
    assert same(connector.fold("t"), db.rows("t"))
    db("UPDATE t SET k = 'w' WHERE v = 5; DELETE FROM t WHERE k = 'w'")
    db("UPDATE t SET k = 'x' WHERE v = 3; UPDATE t SET v = 30, more = NULL WHERE k = 'x'")
    with capturing(db, "t", partitions=1, log=connector.log) as connector:
        connector.caught_up()
    assert read() == 9
    assert same(connector.fold("t"), db.rows("t"))
    db("UPDATE t SET k = 'y' WHERE v = 4")
    db("UPDATE t SET v = 40 WHERE k = 'y'")
    db("UPDATE t SET k = 'z' WHERE v = 6")
    db("ALTER TABLE t DROP more")
    with capturing(db, "t", partitions=1, log=connector.log) as connector:
        connector.caught_up()
    assert read() == 9 + 8
    assert same(connector.fold("t"), db.rows("t"))


def test_only_what_is_committed_comes_in_the_order_of_commits(db: Database) -> None:
    db("CREATE TABLE t (id int PRIMARY KEY, v text)")
    one, two = db.connect(), db.connect()
    with capturing(db, "t", partitions=1) as connector:
        connector.caught_up()
        for connection in (one, two):
            connection.execute("BEGIN")
        one.execute("INSERT INTO t VALUES (1, 'first to write')")
        two.execute("INSERT INTO t VALUES (2, 'kept')")
        two.execute("SAVEPOINT a; INSERT INTO t VALUES (3, 'undone'); ROLLBACK TO a; INSERT INTO t VALUES (4, 'kept')")
        one.execute("SAVEPOINT b; UPDATE t SET v = 'again' WHERE id = 1; RELEASE b")
        db("BEGIN; INSERT INTO t VALUES (5, 'undone'); ROLLBACK")
        two.execute("COMMIT")
        db("INSERT INTO t VALUES (6, 'between')")
        one.execute("COMMIT")
        connector.caught_up()
    seen = [(change["op"], change["after"]["id"]) for change in connector.changes("t")]
    assert seen == [("c", 2), ("c", 4), ("c", 6), ("c", 1), ("u", 1)]
    _in_order(connector, "t")
    one.close()
    two.close()


def test_a_prepared_transaction_counts_from_its_second_commit(db: Database) -> None:
    db("CREATE TABLE t (id int PRIMARY KEY, v text)")
    with capturing(db, "t", partitions=1) as connector:
        connector.caught_up()
        db("BEGIN; INSERT INTO t VALUES (1, 'prepared'); PREPARE TRANSACTION 'p'")
        db("INSERT INTO t VALUES (2, 'later')")
        connector.caught_up()
        assert [change["after"]["id"] for change in connector.changes("t")] == [2]
        db("COMMIT PREPARED 'p'")
        connector.caught_up()
    assert [change["after"]["id"] for change in connector.changes("t")] == [2, 1]


def test_a_replays_clock_is_applied_and_not_emitted(db: Database) -> None:
    db("CREATE TABLE headwater_clock (id int PRIMARY KEY, event_at timestamp, landed_at timestamptz)")
    db("CREATE TABLE t (id int PRIMARY KEY)")
    with capturing(db, "t", partitions=1) as connector:
        connector.caught_up()
        for n, day in ((1, "2010-12-01"), (2, "2010-12-02")):
            with db.connection.transaction():
                db(
                    f"INSERT INTO headwater_clock VALUES (1, '{day} 08:26:00.5', '{day} 09:00:00+00') "
                    "ON CONFLICT (id) DO UPDATE SET event_at = excluded.event_at, landed_at = excluded.landed_at"
                )
                db(f"INSERT INTO t VALUES ({n})")
        db("INSERT INTO t VALUES (3)")
        connector.caught_up()
    one, two, three = connector.changes("t")
    assert (one["source"]["ts_us"], one["ts_us"]) == (1_291_191_960_500_000, 1_291_194_000_000_000)
    assert two["ts_us"] - one["ts_us"] == 86_400_000_000
    assert three["ts_us"] > 1_700_000_000_000_000
    assert not [topic for topic, _ in connector.log if "clock" in topic]
