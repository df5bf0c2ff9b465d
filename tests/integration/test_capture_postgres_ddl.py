"""Tables altered, made again, renamed, partitioned, published anew: the log folds to what the database has."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from postgres_capture import QUICK, SETTINGS, Connector, Database, capturing, same, wait_until
from stack_servers import started

from headwater.stack.server import Server
from streaming.postgres.chunks import ChunkReader
from streaming.postgres.pgoutput import parse_lsn

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started("postgresql", tmp_path_factory.mktemp("postgresql"), settings=SETTINGS) as server:
        yield server


@pytest.fixture
def db(server: Server) -> Iterator[Database]:
    with Database(server, f"d{next(_NUMBERS)}") as database:
        yield database


def _make(db: Database, table: str) -> None:
    db(f"CREATE TABLE {table} (id int PRIMARY KEY, v text)")
    db(f"INSERT INTO {table} SELECT i, 'v' || i FROM generate_series(1, 500) i")


def _is_same(connector: Connector, db: Database, table: str) -> bool:
    """A column that a row of the log lacks is null."""
    named = f"SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0"
    columns = [name for (name,) in db(named)]
    found, wanted = connector.fold(table), db.rows(table)
    return same(*([{name: row.get(name) for name in columns} for row in rows] for rows in (found, wanted)))


def _comes_to(connector: Connector, db: Database, *tables: str) -> None:
    """What the stream does not tell is noticed a little later, and read anew."""
    different = list(tables)

    def none_is() -> bool:
        connector.caught_up()
        different[:] = [name for name in different if not _is_same(connector, db, name)]
        return not different

    try:
        wait_until(none_is, "all is as in the database")
    except AssertionError:
        pytest.fail(f"not as in the database: {different}; said {connector.said}")


ALTERATIONS = {
    "added": "ALTER TABLE t ADD COLUMN w int",
    "added_with_constant": "ALTER TABLE t ADD COLUMN w int NOT NULL DEFAULT 7",
    "added_with_former_default": "ALTER TABLE t ADD COLUMN w int DEFAULT 7; ALTER TABLE t ALTER w DROP DEFAULT",
    "added_with_values": "ALTER TABLE t ADD COLUMN w uuid DEFAULT gen_random_uuid()",
    "added_as_identity": "ALTER TABLE t ADD COLUMN w int GENERATED ALWAYS AS IDENTITY",
    "dropped": "ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN u int",
    "dropped_and_added": "ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN v text",
    "renamed": "ALTER TABLE t RENAME v TO w",
    "swapped": "ALTER TABLE t ADD w text; UPDATE t SET w = 'w' || id; ALTER TABLE t RENAME v TO x;"
    "ALTER TABLE t RENAME w TO v; ALTER TABLE t RENAME x TO w",
    "retyped": "ALTER TABLE t ALTER v TYPE int USING substr(v, 2)::int",
    "retyped_as_it_was": "ALTER TABLE t ALTER v TYPE text USING v || v",
    "not_generated": "ALTER TABLE t ADD g int GENERATED ALWAYS AS (id * 2) STORED;"
    "ALTER TABLE t ALTER g DROP EXPRESSION",
    "with_another_key": "ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (v)",
    "refilled": "TRUNCATE t; INSERT INTO t VALUES (1, 'new')",
    "made_again": "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (9, 9)",
    "away_and_back": "ALTER TABLE t RENAME TO t_away; UPDATE t_away SET v = 'away' WHERE id < 5;"
    "ALTER TABLE t_away RENAME TO t",
    "replaced": "CREATE TABLE t_new (id int PRIMARY KEY, v text); INSERT INTO t_new VALUES (1, 'n'), (2, 'n');"
    "ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t",
    "unpublished_for_a_while": "ALTER PUBLICATION headwater DROP TABLE t; UPDATE t SET v = 'unseen' WHERE id < 5;"
    "DELETE FROM t WHERE id > 490; ALTER PUBLICATION headwater ADD TABLE t",
    "only_vacuumed": "VACUUM FULL t; ANALYZE t",
}


def _alter(db: Database, connector: Connector) -> None:
    for table, statements in ALTERATIONS.items():
        for statement in statements.replace("headwater", f"headwater_{connector.system}").split(";"):
            db(re.sub(r"\bt(?=\b|_)", table, statement))


@pytest.mark.parametrize("when", ["while it streams", "while it is stopped"])
def test_a_table_that_was_altered(db: Database, when: str) -> None:
    for table in ALTERATIONS:
        _make(db, table)
    connector = Connector(db, list(ALTERATIONS)).start().caught_up()
    if when == "while it is stopped":
        connector.stop()
    _alter(db, connector)
    if when == "while it is stopped":
        connector = Connector(db, list(ALTERATIONS), connector.log).start()
    try:
        _comes_to(connector, db, *ALTERATIONS)
        changed = [table for table in ALTERATIONS if table != "with_another_key"]
        for table in changed:
            db(f"UPDATE {table} SET id = id + 1000 WHERE id = 1; DELETE FROM {table} WHERE id = 2")
        _comes_to(connector, db, *ALTERATIONS)
    finally:
        connector.stop()
    anew = {table for table in ALTERATIONS if any(f".{table}: " in said for said in connector.said)}
    assert not anew & {"added", "dropped", "refilled", "only_vacuumed"}, "the stream tells all of it"


def test_each_schema_is_recorded_with_what_changed(db: Database) -> None:
    _make(db, "t")
    with capturing(db, "t") as connector:
        connector.caught_up()
        for number, statement in enumerate(
            (
                "ALTER TABLE t ADD w numeric(12,2)",
                "ALTER TABLE t ALTER w TYPE numeric(14,2)",
                "ALTER TABLE t DROP v",
                "ALTER TABLE t RENAME w TO v",
                "ALTER TABLE t ADD w int; ALTER TABLE t RENAME v TO x; ALTER TABLE t RENAME w TO v",
            ),
            2,
        ):
            db(f"{statement}; INSERT INTO t VALUES ((SELECT max(id) + 1 FROM t))")
            connector.caught_up()
            wait_until(lambda: len(connector.schemas("t")) >= number, "its version")  # noqa: B023
    found = connector.schemas("t")
    assert [one["changed"] for one in found] == [
        ["first seen"],
        ["added column w numeric(12,2)"],
        ["column w from numeric(12,2) to numeric(14,2)"],
        ["dropped column v"],
        ["renamed column w to v"],
        ["renamed column v to x", "added column v integer"],
    ]
    assert [one["version"] for one in found] == [1, 2, 3, 4, 5, 6]
    inserted = sorted(
        (change["source"]["headwater"] for change in connector.changes("t") if change["op"] == "c"),
        key=lambda place: place["commit"],
    )
    assert [place["schema"] for place in inserted] == [2, 3, 4, 5, 6]
    assert [one["position"]["commit"] for one in found[1:]] == [place["commit"] for place in inserted]


def test_what_happened_while_it_was_stopped_is_recorded_in_its_order(db: Database) -> None:
    _make(db, "t")
    with capturing(db, "t") as connector:
        connector.caught_up()
    for statement in ("ADD w int", "ALTER w TYPE bigint", "DROP w"):
        db(f"ALTER TABLE t {statement}; INSERT INTO t VALUES ((SELECT max(id) + 1 FROM t))")
    db("ALTER TABLE t ADD y int")
    with capturing(db, "t", log=connector.log) as connector:
        wait_until(lambda: len(connector.schemas("t")) == 5, "the last look")
        connector.caught_up()
    assert [one["changed"] for one in connector.schemas("t")] == [
        ["first seen"],
        ["added column w integer"],
        ["column w from integer to bigint"],
        ["dropped column w"],
        ["added column y integer"],
    ]
    inserted = [change for change in connector.changes("t") if change["op"] == "c"]
    inserted.sort(key=lambda change: change["source"]["headwater"]["commit"])
    assert [change["source"]["headwater"]["schema"] for change in inserted] == [2, 3, 4]
    assert ["w" in change["after"] for change in inserted] == [True, True, False]


def test_the_look_of_now_is_recorded_whatever_was_streamed_before_it(db: Database) -> None:
    altered = {
        "idle": "ALTER TABLE t ADD y int",
        "with_a_row_before": "INSERT INTO t VALUES (1000); ALTER TABLE t ADD y int",
        "back": "ALTER TABLE t ADD y int; INSERT INTO t VALUES (1000); ALTER TABLE t DROP y",
        "unaltered": "INSERT INTO t VALUES (1000)",
    }
    for table in altered:
        _make(db, table)
    wanted = {table: ["first seen", "added column y integer"] for table in altered}
    wanted |= {"back": [*wanted["back"], "dropped column y"], "unaltered": ["first seen"]}
    with capturing(db, *altered) as connector:
        connector.caught_up()
    for table, statements in altered.items():
        db(statements.replace("TABLE t", f"TABLE {table}").replace("INTO t", f"INTO {table}"))
    for _ in range(2):  # started again it has nothing to add
        with capturing(db, *altered, log=connector.log) as connector:
            connector.caught_up()
            for table, phrases in wanted.items():
                wait_until(lambda: len(connector.schemas(table)) == len(phrases), f"the looks of {table}")  # noqa: B023
            source = connector.source
            wait_until(lambda: source._streaming and not source._opened.watch.waits, "all is told")  # noqa: B023
        assert {
            table: [phrase for one in connector.schemas(table) for phrase in one["changed"]] for table in altered
        } == wanted


def test_an_altered_table_is_known_without_a_row_of_it(db: Database) -> None:
    _make(db, "t")
    with capturing(db, "t") as connector:
        connector.caught_up()
        wait_until(lambda: not connector.source._opened.watch.waits, "what it was at the start is told")
        db("ALTER TABLE t ADD y int")
        wait_until(lambda: len(connector.schemas("t")) == 2, "its look")
    assert connector.schemas("t")[1]["changed"] == ["added column y integer"]


def test_a_look_that_a_chunk_found_is_not_told_after_a_newer_one(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ALTER that waited for the chunk's lock, and a row, come between the chunk's end and its watermark."""
    _make(db, "t")
    watermark, late = ChunkReader._watermark, ["ALTER TABLE t ADD c int; INSERT INTO t VALUES (1000, 'n', 7, 8)"]

    def altered(self: ChunkReader, connection: Any) -> Any:
        if armed and late:
            db(late.pop())
        return watermark(self, connection)

    armed: list[bool] = []
    monkeypatch.setattr(ChunkReader, "_watermark", altered)
    with capturing(db, "t") as connector:
        connector.caught_up()
        db("ALTER TABLE t ADD b int")
        armed.append(True)
        connector.capture.resnapshot("t")
        wait_until(lambda: not late, "a chunk")
        connector.caught_up()
        db("INSERT INTO t VALUES (1001, 'n', 7, 8)")
        connector.caught_up()
    columns = {one["version"]: {column["name"] for column in one["columns"]} for one in connector.schemas("t")}
    for change in connector.changes("t"):
        assert set(change["after"]) == columns[change["source"]["headwater"]["schema"]]
    assert connector.schemas("t")[-1]["changed"] != ["dropped column c"]


def test_partitions_come_and_go_with_their_rows(db: Database) -> None:
    db("CREATE TABLE t (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)")
    for year in (2001, 2002):
        db(f"CREATE TABLE t{year} PARTITION OF t FOR VALUES FROM ('{year}-01-01') TO ('{year + 1}-01-01')")
        db(f"INSERT INTO t SELECT i, '{year}-05-05' FROM generate_series(1, 300) i")
    db("CREATE TABLE t2003 (LIKE t INCLUDING ALL); INSERT INTO t2003 VALUES (1, '2003-01-01'), (2, '2003-01-01')")
    with capturing(db, "t") as connector:
        connector.caught_up()
        db("CREATE TABLE t2004 PARTITION OF t FOR VALUES FROM ('2004-01-01') TO ('2005-01-01')")
        db("INSERT INTO t VALUES (7, '2004-02-02'); UPDATE t SET day = '2004-03-03' WHERE id = 3 AND day < '2002-1-1'")
        _comes(connector, db)
        assert not connector.heard("read anew"), "what was born a partition is in the stream"
        db("ALTER TABLE t ATTACH PARTITION t2003 FOR VALUES FROM ('2003-01-01') TO ('2004-01-01')")
        _comes(connector, db)
        db("UPDATE t SET id = id + 50 WHERE day = '2003-01-01'; ALTER TABLE t DETACH PARTITION t2001")
        _comes(connector, db)
        db("DROP TABLE t2002; TRUNCATE t2004; INSERT INTO t VALUES (8, '2004-02-02')")
        _comes(connector, db)
        db("TRUNCATE t2003")
        db("INSERT INTO t VALUES (9, '2003-02-02')")
        _comes(connector, db)
        assert connector.heard("a partition was truncated or rewritten: it is emptied and read anew")
    db("TRUNCATE t2004")
    with capturing(db, "t", log=connector.log) as connector:
        _comes(connector, db)


def test_labels_of_an_enum_that_are_renamed(db: Database) -> None:
    """In a column, an array and a key; one that is only added changes no row."""
    db("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE size AS ENUM ('s', 'm'); CREATE DOMAIN fit AS size")
    db("CREATE TABLE t (id int PRIMARY KEY, v mood[]); INSERT INTO t SELECT i, '{sad,ok}' FROM generate_series(1, 9) i")
    db("CREATE TABLE u (id size PRIMARY KEY, v mood); INSERT INTO u VALUES ('s', 'sad'), ('m', 'ok')")
    db("CREATE TABLE w (id int PRIMARY KEY, v fit); INSERT INTO w VALUES (1, 's')")
    with capturing(db, "t", "u", "w") as connector:
        connector.caught_up()
        db("ALTER TYPE mood ADD VALUE 'glad'")
        db("UPDATE t SET v = '{glad}' WHERE id = 1")
        time.sleep(3 * QUICK.look_s)
        connector.caught_up()
        assert not connector.heard("read anew")
        db("ALTER TYPE mood RENAME VALUE 'sad' TO 'low'")
        _comes_to(connector, db, "t", "u")
    assert not connector.heard("emptied")
    db("ALTER TYPE size RENAME VALUE 's' TO 'small'")
    with capturing(db, "t", "u", "w", log=connector.log) as connector:
        _comes_to(connector, db, "t", "u", "w")
    assert connector.heard("labels of column id of its key were renamed: it is emptied and read anew")


def test_a_table_that_is_unlogged_for_a_while(db: Database) -> None:
    _make(db, "t")
    _make(db, "u")
    db(f"CREATE PUBLICATION headwater_{db.name} FOR ALL TABLES")
    with capturing(db, "t", "u") as connector:
        connector.caught_up()
        db("ALTER TABLE t SET UNLOGGED; UPDATE t SET v = 'unseen'; DELETE FROM t WHERE id > 7")
        wait_until(lambda: connector.heard("public.t is not captured, the other tables are"), "it is noticed")
        db("UPDATE u SET v = 'seen' WHERE id = 1; ALTER TABLE t SET LOGGED")
        _comes_to(connector, db, "t", "u")


def _comes(connector: Connector, db: Database) -> None:
    wait_until(lambda: same(_days(connector.caught_up().fold("t")), db.rows("t", "id, day - '1970-01-01' AS day")), "t")


def _days(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": row["id"], "day": row["day"]} for row in rows]


def test_a_column_that_comes_back_long_after_it_was_dropped(db: Database) -> None:
    _make(db, "t")
    _make(db, "u")
    with capturing(db, "t", "u") as connector:
        connector.caught_up()
        db("ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN w int")

        def noticed() -> bool:
            db("UPDATE u SET v = v || 'x' WHERE id = 1")  # what was noticed goes into the next checkpoint
            return bool(connector.caught_up().saved["resume"]["tables"]["public.t"]["last_number"] == 3)

        wait_until(noticed, "a look that finds the table without the column")
        db("ALTER TABLE t ADD COLUMN v text")
        _comes_to(connector, db, "t", "u")


def test_a_table_that_is_gone_leaves_the_others(db: Database) -> None:
    _make(db, "t")
    _make(db, "u")
    with capturing(db, "t", "u") as connector:
        connector.caught_up()
        db("DROP TABLE u; INSERT INTO t VALUES (1000, 'on')")
        wait_until(lambda: connector.heard("public.u was dropped or renamed: captured are the others"), "it is said")
        _comes_to(connector, db, "t")
        db("ALTER TABLE t RENAME TO t2; UPDATE t2 SET v = 'elsewhere'")
        wait_until(lambda: connector.heard("public.t was"), "it is said")
        assert connector.halted is None


def test_a_lost_replica_identity_is_said_with_its_remedy(db: Database) -> None:
    _make(db, "t")
    with capturing(db, "t") as connector:
        connector.caught_up()
        db("ALTER TABLE t DROP CONSTRAINT t_pkey")
        wait_until(lambda: connector.heard('ALTER TABLE "public"."t" REPLICA IDENTITY FULL'), "it is said")
        db("ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET v = 'x' WHERE id < 4; ALTER TABLE t ADD PRIMARY KEY (id)")
        _comes_to(connector, db, "t")


def test_a_capture_that_runs_once_ends_where_a_page_of_the_log_does(db: Database) -> None:
    """The next record would be inserted behind the next page's header, where no record ends."""
    _make(db, "t")
    connector = Connector(db, ["t"])
    connector.capture.run(threading.Event(), once=True)
    own = 48  # bytes of the record that a connector leaves when it asks for a transaction's id
    while (left := -_end(db) % 8192 - own) != 0:
        room = left if left >= 56 else 200
        text = min(room, 200) - 52  # the least that a message takes, and all of these lengths are multiples of eight
        db(f"SELECT pg_logical_emit_message(false, 'h', repeat('x', {text}))")
    again = Connector(db, ["t"], connector.log)
    run = threading.Thread(target=lambda: again.capture.run(threading.Event(), once=True), daemon=True)
    run.start()
    run.join(8)  # PostgreSQL writes something by itself every 15 s
    assert not run.is_alive()
    assert _end(db) % 8192 == 24, "the log's end is elsewhere: this has shown nothing"


def _end(db: Database) -> int:
    return parse_lsn(db("SELECT pg_current_wal_insert_lsn()")[0][0])
