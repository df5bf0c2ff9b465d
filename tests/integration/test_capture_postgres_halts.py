"""What the connector stops for: the cause and the runbook are named, and the remedy that it names works."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from memory_writer import MemoryWriter
from postgres_capture import QUICK, SETTINGS, Connector, Database, capturing, same, wait_until
from stack_servers import started

from catalog.settings import load_settings
from headwater.stack.server import Server, restart
from streaming.capture.credentials import parse_address
from streaming.capture.engine import Options
from streaming.capture.errors import AnotherServer, Halt
from streaming.capture.service import status_path
from streaming.log_writer import UnknownTopicError
from streaming.stream_status import StreamStatus, source_state

_NUMBERS = itertools.count()
_PAGES = Path(__file__).resolve().parents[2] / "docs"
_SCRATCH = Options(**{**vars(QUICK), "from_scratch": True})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {**SETTINGS, "max_slot_wal_keep_size": "32MB", "max_wal_size": "64MB"}
    with started("postgresql", tmp_path_factory.mktemp("postgresql"), settings=settings) as server:
        yield server


@pytest.fixture
def db(server: Server) -> Iterator[Database]:
    with Database(server, f"d{next(_NUMBERS)}") as database:
        database("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')")
        yield database


def _halts(connector: Connector, runbook: str) -> Halt:
    halted = connector.start().until_halted()
    assert isinstance(halted, Halt), repr(halted)
    assert halted.runbook == runbook
    assert (_PAGES / "runbooks" / f"{runbook}.md").exists()
    return halted


def _captured(db: Database, *tables: str) -> Connector:
    """A connector that ran and was stopped; its log is what the next one goes on with."""
    stopped = Connector(db, tables or ("t",)).start().caught_up().stop()
    active = f"SELECT active FROM pg_replication_slots WHERE slot_name = 'headwater_{db.name}'"
    wait_until(lambda: db(active) == [(False,)], "the walsender has noticed that its client left")
    return stopped


def _goes_on(db: Database, before: Connector, options: Options = QUICK) -> None:
    with capturing(db, "t", log=before.log, options=options) as connector:
        db("INSERT INTO t SELECT max(id) + 1, 'after' FROM t")
        wait_until(lambda: same(connector.caught_up().fold("t"), db.rows("t")), "it is as in the database")


def _as(db: Database, role: str, password: str = "secret") -> str:
    return db.url.replace(re.search(r"//(.*)@", db.url)[1], f"{role}:{password}")  # type: ignore[index]


def _churn(db: Database, mb: int) -> None:
    for _ in range(mb):
        db("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000))")


def test_each_missing_privilege_is_named_and_its_statement_mends_it(db: Database) -> None:
    role = f"r_{db.name}"
    db(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; CREATE SCHEMA s; CREATE TABLE s.u (id int PRIMARY KEY)")
    address = parse_address(_as(db, role))
    for wanted in ("REPLICATION", "USAGE ON SCHEMA"):
        halted = _halts(Connector(db, ["t", "s.u"], address=address), "postgresql_privileges")
        assert wanted in halted.remedy
        db(halted.remedy.removeprefix("As a superuser: "))
    with capturing(db, "t", "s.u", address=address) as connector:
        assert same(connector.caught_up().fold("t"), db.rows("t"))
        db("GRANT USAGE ON SCHEMA public TO public")
        assert "secret" not in f"{connector.said}"


def test_the_how_tos_role_and_publication_suffice(db: Database) -> None:
    text = (_PAGES / "how_to" / "capture_postgresql.md").read_text()
    section = text.partition("## Make a role and a publication")[2]
    statements = re.search(r"```sql\n(.*?)```", section, re.DOTALL)
    assert statements is not None
    system = f"headwater_{db.name}"
    db(statements[1].replace("headwater_shop", system))
    db("SELECT slot_name, active, wal_status, pg_size_pretty(safe_wal_size) FROM pg_replication_slots")
    try:
        with capturing(db, "t", address=parse_address(_as(db, "headwater", "a-long-secret"))) as connector:
            connector.caught_up()
            db("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO t VALUES (3, 'c')")
            assert same(connector.caught_up().fold("t"), db.rows("t"))
    finally:
        db("DROP OWNED BY headwater; DROP ROLE headwater")


@pytest.mark.parametrize(
    ("role", "password", "database", "wanted"),
    [
        ("postgres", "wrong", None, "HEADWATER_SHOP_PASSWORD"),
        ("nobody", "x", None, "HEADWATER_SHOP_PASSWORD"),
        ("postgres", None, "no_such_database", "HEADWATER_SHOP_URL"),
    ],
)
def test_a_login_that_is_refused(
    db: Database, role: str, password: str | None, database: str | None, wanted: str
) -> None:
    url = db.url if password is None else _as(db, role, password)
    address = parse_address(url if database is None else url.replace(f"/{db.name}", f"/{database}"))
    halted = _halts(Connector(db, ["t"], address=address), "postgresql_login")
    assert wanted in halted.remedy
    assert (password or "\0") not in f"{halted}".replace("password", "")


def test_what_is_no_table(db: Database) -> None:
    db("CREATE VIEW seen AS SELECT * FROM t; CREATE UNLOGGED TABLE quick (id int PRIMARY KEY)")
    assert "there is public.t" in f"{_halts(Connector(db, ['tt']), 'postgresql_tables')}"
    halted = _halts(Connector(db, ["seen", "quick"]), "postgresql_tables")
    assert "public.seen is a view, public.quick is unlogged" in halted.found


def test_a_table_without_identity_is_refused_before_it_is_published(db: Database) -> None:
    db("CREATE TABLE bare (id int); INSERT INTO bare VALUES (1)")
    halted = _halts(Connector(db, ["bare"]), "postgresql_replica_identity")
    assert db("UPDATE bare SET id = 2") == [], "it is still the shop's own"
    db(halted.remedy.partition("or: ")[2])
    with capturing(db, "bare") as connector:
        connector.caught_up()


def test_the_others_go_on_without_a_table_that_is_unfit_until_it_is_mended(db: Database) -> None:
    db("CREATE TABLE bare (id int); INSERT INTO bare VALUES (1); CREATE VIEW seen AS SELECT * FROM t")
    with capturing(db, "t", "bare", "seen", "later") as connector:
        assert same(connector.caught_up().fold("t"), db.rows("t"))
        refused = connector.source.refused
        assert {name: error.runbook for name, error in refused.items()} == {
            "public.bare": "postgresql_replica_identity",
            "public.seen": "postgresql_tables",
            "public.later": "postgresql_tables",
        }
        assert connector.heard("public.bare is not captured, the other tables are")
        assert db("UPDATE bare SET id = 2") == [], "it is not published"
        db(refused["public.bare"].remedy.partition("or: ")[2])
        db("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (5)")
        wait_until(lambda: set(connector.source.refused) == {"public.seen"}, "what was mended is taken in")
        db("INSERT INTO t VALUES (3, 'c')")
        assert same(connector.caught_up().fold("t"), db.rows("t"))
        assert [change["after"] for change in connector.changes("bare") if change["op"] == "r"] == [{"id": 2}]
        assert same(connector.fold("later"), [{"id": 5}])


def test_a_captured_table_that_is_left_out_for_a_while_is_read_anew(db: Database) -> None:
    db("CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1), (2)")
    before = Connector(db, ["t", "u"]).start().caught_up().stop()
    db("ALTER TABLE u REPLICA IDENTITY NOTHING; INSERT INTO t VALUES (3, 'c')")
    left_out = Connector(db, ["t", "u"], before.log).start().caught_up().stop()
    assert same(left_out.fold("t"), db.rows("t"))
    assert set(left_out.source.refused) == {"public.u"}
    db("TRUNCATE u; ALTER TABLE u REPLICA IDENTITY DEFAULT; INSERT INTO u VALUES (3)")
    with capturing(db, "t", "u", log=before.log) as connector:
        assert same(connector.caught_up().fold("u"), [{"id": 3}])


def test_a_publication_that_hides_changes(db: Database) -> None:
    connector = Connector(db, ["t"]).start().caught_up()
    publication = f"headwater_{db.name}"
    db(f"ALTER PUBLICATION {publication} SET (publish = 'insert'); DELETE FROM t WHERE id = 1")
    halted = connector.until_halted()
    assert (type(halted), halted.runbook) == (Halt, "postgresql_publication")
    db(halted.remedy)
    _goes_on(db, connector)
    db(f"ALTER PUBLICATION {publication} SET TABLE t WHERE (id > 2)")
    halted = _halts(Connector(db, ["t"], connector.log), "postgresql_publication")
    db(halted.remedy.partition(":")[0])
    _goes_on(db, connector)


def test_a_publication_that_is_not_ours_is_altered_by_its_owner(db: Database) -> None:
    """Who may not alter it gains nothing by owning the table too."""
    role = f"r_{db.name}"
    db(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'secret'; CREATE TABLE u (id int PRIMARY KEY)")
    db(f"GRANT SELECT ON t, u TO {role}; CREATE PUBLICATION headwater_{db.name} FOR TABLE t")
    address = parse_address(_as(db, role))
    halted = _halts(Connector(db, ["u"], address=address), "postgresql_publication")
    assert halted.remedy == f'As postgres: ALTER PUBLICATION "headwater_{db.name}" ADD TABLE ONLY "public"."u"'
    with capturing(db, "t", "u", address=address) as connector:
        assert same(connector.caught_up().fold("t"), db.rows("t")), "the others go on"
        db(halted.remedy.removeprefix("As postgres: "))
        db("INSERT INTO u VALUES (1)")
        wait_until(lambda: same(connector.fold("u"), db.rows("u")), "it is taken in")


class _Gone(MemoryWriter):
    """A log whose topics were deleted."""

    def flush(self) -> None:
        if any(topic.startswith("cdc.") for (topic, _), *_ in self._sent):
            raise UnknownTopicError("topic cdc.t: Unknown partition")
        super().flush()


def test_a_topic_that_was_deleted_is_a_halt_with_its_page(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("postgres_capture.MemoryWriter", _Gone)
    halted = _halts(Connector(db, ["t"]), "landing_lost_log")
    assert "the topic was deleted" in halted.found
    assert "Started again the connector makes it anew" in halted.remedy


def test_a_publication_that_was_dropped_while_something_changed(db: Database) -> None:
    before = _captured(db)
    db(f"DROP PUBLICATION headwater_{db.name}; UPDATE t SET v = 'unseen'")
    halted = _halts(Connector(db, ["t"], before.log), "postgresql_publication")
    assert "--from-scratch" in halted.remedy
    _goes_on(db, before, _SCRATCH)


def test_a_slot_that_was_dropped(db: Database) -> None:
    before = _captured(db)
    db(f"SELECT pg_drop_replication_slot('headwater_{db.name}'); DELETE FROM t WHERE id = 1")
    assert "--from-scratch" in _halts(Connector(db, ["t"], before.log), "postgresql_slot_missing").remedy
    _goes_on(db, before, _SCRATCH)
    assert {c["source"]["headwater"]["epoch"] for c in before.changes("t")} == {1, 2}


def test_a_slot_that_somebody_else_read(db: Database) -> None:
    before = _captured(db)
    db("INSERT INTO t VALUES (3, 'c')")
    db(f"SELECT pg_replication_slot_advance('headwater_{db.name}', pg_current_wal_lsn())")
    _halts(Connector(db, ["t"], before.log), "postgresql_slot_ahead")
    _goes_on(db, before, _SCRATCH)


def test_a_slot_of_another_kind(db: Database) -> None:
    db(f"SELECT pg_create_logical_replication_slot('headwater_{db.name}', 'test_decoding')")
    halted = _halts(Connector(db, ["t"]), "postgresql_slot_missing")
    db(halted.remedy.rpartition(": ")[2])
    with capturing(db, "t") as connector:
        connector.caught_up()


def test_two_connectors_on_one_slot(db: Database) -> None:
    with capturing(db, "t") as first:
        first.caught_up()
        _halts(Connector(db, ["t"]), "postgresql_slot_in_use")
        assert first.halted is None


def test_a_slot_that_the_server_gave_up(db: Database) -> None:
    before = _captured(db)
    for _ in range(4):
        _churn(db, 16)
        db("SELECT pg_switch_wal(); CHECKPOINT")
    assert db(f"SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'headwater_{db.name}'") == [("lost",)]
    halted = _halts(Connector(db, ["t"], before.log), "postgresql_slot_invalidated")
    db(halted.remedy.partition(",")[0])
    _goes_on(db, before, _SCRATCH)


def test_the_alarm_comes_before_the_bound(db: Database) -> None:
    with capturing(db, "t") as connector, db.connect() as other:
        connector.caught_up()
        other.execute("BEGIN")
        other.execute("INSERT INTO t VALUES (3, 'long')")

        kept, left = 0, 1
        while kept < 0.85 * (kept + left):
            _churn(db, 1)
            ((kept, left),) = db(
                "SELECT (pg_current_wal_lsn() - restart_lsn)::int8, safe_wal_size FROM pg_replication_slots "
                f"WHERE slot_name = 'headwater_{db.name}'"
            )
        assert left > 0
        wait_until(lambda: connector.heard("ALARM: the server keeps"), "the alarm")
        other.execute("ROLLBACK")
        assert connector.halted is None


def test_what_is_kept_for_a_connector_that_is_away_is_asked_of_the_server(db: Database, tmp_path: Path) -> None:
    settings = load_settings({"HEADWATER_HOME": str(tmp_path), "HEADWATER_SHOP_URL": db.url})
    told = {
        "state": "streaming", "resume": _captured(db).saved["resume"], "epoch": 1, "rows": 2, "last_event_us": 1,
        "tables": {}, "retained": None, "problem": None, "at_us": 1_700_000_000_000_000, "pid": 1,
    }  # fmt: skip
    settings.capture_dir.mkdir(parents=True)
    status_path(settings, db.name).write_text(json.dumps(told))
    slot = f"FROM pg_replication_slots WHERE slot_name = 'headwater_{db.name}'"
    while not db(f"SELECT safe_wal_size < 5 * 2^20 {slot}")[0][0]:
        _churn(db, 1)
    state = source_state(settings, db.name)
    assert (state.running, state.bounded) == (False, True)
    assert (state.retained_bytes or 0) > 0.8 * (state.limit_bytes or 0) > 0
    assert "no connector is running" in (state.problem or "")
    assert "gives up at" in (state.problem or "")
    _reset(db, "-1")
    state = source_state(settings, db.name)
    assert (state.bounded, state.limit_bytes) == (False, None)
    assert "max_slot_wal_keep_size" in "".join(StreamStatus(datetime.now(), [state], [], [], []).warnings)
    _reset(db, "16MB")
    for _ in range(2):
        _churn(db, 16)
        db("SELECT pg_switch_wal(); CHECKPOINT")
    state = source_state(settings, db.name)
    assert "was given up by the server" in (state.problem or "")
    assert "--from-scratch" in (state.remedy or "")
    _reset(db, "32MB")
    db(f"SELECT pg_drop_replication_slot('headwater_{db.name}')")
    state = source_state(settings, db.name)
    assert f"slot headwater_{db.name} was dropped" in (state.problem or "")
    assert "--from-scratch" in (state.remedy or "")


def _reset(db: Database, bound: str) -> None:
    db(f"ALTER SYSTEM SET max_slot_wal_keep_size = '{bound}'")
    db("SELECT pg_reload_conf()")
    wait_until(lambda: db("SHOW max_slot_wal_keep_size") == [(bound,)], "the new bound")


def test_an_idle_tables_slot_moves_with_its_busy_neighbours(db: Database, server: Server) -> None:
    db("CREATE TABLE busy (id int, v text)")
    with capturing(db, "t") as connector, Database(server, f"{db.name}_sibling") as sibling:
        connector.caught_up()
        sibling("CREATE TABLE busy (id int, v text)")
        for database in (db, sibling):
            database("INSERT INTO busy SELECT i, repeat('x', 1000) FROM generate_series(1, 3000) i")
        end = db.end()
        slot = f"FROM pg_replication_slots WHERE slot_name = 'headwater_{db.name}'"
        wait_until(lambda: db(f"SELECT confirmed_flush_lsn - '0/0' >= {end} {slot}") == [(True,)], "confirmed")
        db("CHECKPOINT")  # it writes what the slot needs to move on, as the server does by itself now and then
        wait_until(lambda: db(f"SELECT restart_lsn - '0/0' >= {end} {slot}") == [(True,)], "nothing is kept")
        assert connector.changes("busy") == []


def test_a_server_that_logs_too_little(tmp_path: Path) -> None:
    with started("postgresql", tmp_path, settings={**SETTINGS, "wal_level": "replica"}) as server:
        db = Database(server, "shop")
        db("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
        halted = _halts(Connector(db, ["t"]), "postgresql_settings")
        db.connection.close()
        setting, value = re.findall(r"ALTER SYSTEM SET (\w+) = '(\w+)'", halted.remedy)[0]
        restart(server, {**SETTINGS, setting: value})
        db.connection = db.connect()
        assert same(_captured(db).fold("t"), db.rows("t"))
        db.connection.close()


def test_another_cluster_is_accepted_only_when_told(server: Server, tmp_path: Path) -> None:
    with Database(server, "shop") as db:
        db("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
        before = _captured(db)
    with started("postgresql", tmp_path, settings=SETTINGS) as other, Database(other, "shop") as db:
        db("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (7, 'another')")
        assert isinstance(_halts(Connector(db, ["t"], before.log), "another_server"), AnotherServer)
        _goes_on(db, before, Options(**{**vars(QUICK), "accept_identity": True}))
