"""Chunks and the stream: each test holds PostgreSQL in the very moment that would lose a row or revive one."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from memory_writer import changes
from postgres_capture import QUICK, SETTINGS, Connector, Database, capturing, same, wait_until
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


@contextmanager
def _commits_hang(db: Database) -> Iterator[None]:
    """Commits are in the log, and streamed, but wait to be visible: for a synchronous standby that is away."""
    for value in ("nobody", ""):
        db(f"ALTER SYSTEM SET synchronous_standby_names = '{value}'")
        db("SELECT pg_reload_conf()")
        wait_until(lambda value=value: db("SHOW synchronous_standby_names") == [(value,)], "reloaded")
        if value:
            yield


def test_a_commit_that_is_streamed_and_not_yet_visible_wins_over_the_snapshot(db: Database) -> None:
    db("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'old' FROM generate_series(1, 5) i")
    with capturing(db, "t") as connector:
        connector.caught_up()
        with db.connect() as writer:
            db.connection.execute("SET synchronous_commit = local")
            with _commits_hang(db):
                update = threading.Thread(target=writer.execute, args=("UPDATE t SET v = 'new' WHERE id = 3",))
                update.start()
                wait_until(lambda: _values(connector, 3)[-1] == "new", "the update is streamed")
                assert db("SELECT v FROM t WHERE id = 3") == [("old",)], "nothing hangs: this would show nothing"
                connector.capture.resnapshot("t")
                wait_until(lambda: len(connector.said) >= 3, "the table is read again")
            update.join()
        connector.caught_up()
    assert _values(connector, 3)[-1] == "new"
    assert same(connector.fold("t"), db.rows("t"))


def _values(connector: Connector, key: int) -> list[str]:
    found = changes(connector.log, connector.topic("t"))
    return [change["after"]["v"] for _, _, change in found if change["after"] and change["after"]["id"] == key]


def test_a_transaction_that_wrote_before_the_table_was_published_is_waited_for(db: Database) -> None:
    db("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE later (id int PRIMARY KEY)")
    with capturing(db, "t") as first:
        first.caught_up()
    with db.connect() as writer:
        writer.execute("BEGIN; INSERT INTO later VALUES (1)")
        with capturing(db, "t", "later", log=first.log) as connector:
            wait_until(lambda: connector.heard("snapshot of public.later begins"), "the snapshot begins")
            db("INSERT INTO t VALUES (1)")
            wait_until(lambda: connector.fold("t"), "streaming goes on meanwhile")
            assert not connector.heard("later is complete")
            writer.execute("COMMIT")
            connector.caught_up()
    assert connector.fold("later") == [{"id": 1}]


def test_capturing_stops_at_once_while_a_chunk_waits(db: Database) -> None:
    db("CREATE TABLE t (id int PRIMARY KEY)")
    with db.connect() as other:
        with capturing(db, "t") as first:
            first.caught_up()
            other.execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            first.capture.resnapshot("t")
            wait_until(lambda: first.said.count("snapshot of public.t begins") == 2, "the table is read again")
        other.execute("ROLLBACK; BEGIN; INSERT INTO t VALUES (1)")
        with capturing(db, "t", log={}) as second:
            wait_until(lambda: second.heard("snapshot of public.t begins"), "the snapshot begins")
        other.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ('text COLLATE "en_US.utf8"', ["a", "B", "b", "A", "ä", "-a", "a-", "a b", "ab", "", " ", "Z", "é", "e"]),
        ('text COLLATE "de-x-icu"', ["a", "B", "b", "A", "ä", "ae", "ß", "ss", "", "Ö", "o", "z"]),
        ("text COLLATE ci", ["a", "b", "C", "d", "E"]),
        ("char(3)", ["a", "a b", "b", "''"]),
        ("citext", ["a", "B", "c"]),
        ("numeric", ["1", "1.50", "-2", "NaN", "1e30", "Infinity"]),
        ("timestamptz", ["2020-01-01", "infinity", "0044-03-15 BC", "2020-01-01 00:00:00.000001"]),
        ("uuid", ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"]),
        ("bytea", [r"\x00", r"\xff", r"\x"]),
        ("bit(4)", ["0001", "1000", "0100"]),
        ("double precision", ["0.1", "NaN", "-Infinity", "1e-300"]),
        ("interval", ["1 day", "23:00:00", "1 mon", "-1 day"]),
        ("mood", ["sad", "ok", "happy"]),
        ("int[]", ["{1,2}", "{1}", "{}"]),
        ("price", ["2", "10"]),
        ('"char"', ["b", "a"]),
    ],
)
def test_keys_of_any_type_and_collation_are_read_once_each(db: Database, column: str, values: list[str]) -> None:
    db("CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy'); CREATE DOMAIN price AS numeric(10,2)")
    db("CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    db("CREATE COLLATION IF NOT EXISTS \"en_US.utf8\" (provider = icu, locale = 'en-US')")
    db(f"CREATE TABLE t (k {column}, n int, PRIMARY KEY (k, n))")
    for n, value in enumerate(3 * values):
        db.connection.execute("INSERT INTO t VALUES (%s, %s)", (value, n))
    with capturing(db, "t", options=replace(QUICK, chunk_rows=1), partitions=1) as connector:
        connector.caught_up()
    keys = [key for _, key, _ in changes(connector.log, connector.topic("t"))]
    assert len(keys) == len(set(keys)) == 3 * len(values)


def test_each_chunk_costs_its_rows_and_not_the_table(db: Database) -> None:
    db("CREATE TABLE t (k text, n int, PRIMARY KEY (k, n))")
    db("INSERT INTO t SELECT 'k' || i, i FROM generate_series(1, 5000) i; ANALYZE t")
    db("SELECT pg_stat_force_next_flush()")  # building the key's index was a scan, too, and is else told of later
    counts = "SELECT seq_scan, coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = 't'"
    ((scans, fetched),) = db(counts)
    with capturing(db, "t", options=replace(QUICK, chunk_rows=500)) as connector:
        connector.caught_up()
    assert len(connector.fold("t")) == 5000
    wait_until(lambda: db(counts)[0][1] >= fetched + 5000, "the reader's statistics")
    ((scans_after, fetched_after),) = db(counts)
    assert (scans_after - scans, (fetched_after - fetched) // 100) == (0, 50)


def test_a_snapshot_goes_on_where_it_was_stopped(db: Database) -> None:
    db("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 19990)")
    log: dict = {}
    runs = 0
    while runs < 50:
        runs += 1
        with capturing(db, "t", log=log, options=replace(QUICK, chunk_rows=1000)) as connector:
            before = _rows_read(connector)
            wait_until(lambda before=before, c=connector: _rows_read(c) > before, "more rows")
        if connector.saved["tables"]["public.t"]["state"] == "done":
            break
    assert runs > 2, "it was done before it could be stopped"
    read = [key for _, key, change in changes(log, connector.topic("t")) if change["op"] == "r"]
    assert len(set(read)) == 19990
    assert len(read) <= 19990 + 1000 * runs, "a restart reads its last chunk again, and no more"


def _rows_read(connector: Connector) -> int:
    return int(connector.saved.get("tables", {}).get("public.t", {}).get("rows", 0))


def test_columns_and_keys_changed_during_a_snapshot(db: Database) -> None:
    db("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 8000) i")
    with capturing(db, "t", options=replace(QUICK, chunk_rows=100)) as connector:
        wait_until(lambda: _rows_read(connector) > 300, "some chunks")
        db("ALTER TABLE t ADD extra int DEFAULT 7; UPDATE t SET extra = 8 WHERE id % 10 = 0")
        db("ALTER TABLE t ALTER v TYPE varchar(40); ALTER TABLE t RENAME v TO w; DELETE FROM t WHERE id % 7 = 0")
        db("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (w, id)")
        db("UPDATE t SET extra = 9 WHERE id % 11 = 0")
        wait_until(lambda: connector.heard("its key is another one"), "the new key is noticed")
        wait_until(lambda: not connector.source._opened.watch.waits, "it is read anew")
        connector.caught_up()
    assert same(connector.fold("t"), db.rows("t"))


def test_a_snapshot_is_begun_again_when_the_collation_orders_anew(db: Database) -> None:
    db("CREATE TABLE t (id text PRIMARY KEY); INSERT INTO t SELECT 'k' || i FROM generate_series(100, 999) i")
    with capturing(db, "t") as connector:
        connector.caught_up()
        read = connector.source.read_chunk
        version, last = read("public.t", None, 500).cursor
        assert read("public.t", (version, last), 10).rows[0][0] > b'{"id":"%b"}' % last.encode()
        assert read("public.t", ("id=another version", last), 10).rows[0][0] == b'{"id":"k100"}'
