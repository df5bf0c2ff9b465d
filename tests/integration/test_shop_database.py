"""The shop on real databases: the replay leaves what the embedded replay leaves, and the living shop does what it says.

Every test runs on PostgreSQL and on MariaDB where it makes sense on both.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import duckdb
import pyarrow as pa
import pytest
from homes import BIN, RETAIL, wait_for
from stack_servers import ask_mariadb, ask_postgresql, started

from catalog.keys import raw
from catalog.load import load_catalog
from lake import Lake
from lake.tables import quoted
from streaming.landing import land
from streaming.replay import replay
from streaming.retail import LINE_SCHEMA, read_retail
from streaming.shop import order_lines, stage_changes
from streaming.shop_database.compare import content_hash, source_rows
from streaming.shop_database.connect import Conflict, Rejected, ShopDatabaseError, Unreachable, open_database
from streaming.shop_database.ddl import PROGRESS, SHOP, create_statements
from streaming.shop_database.durability import put_back, relaxed
from streaming.shop_database.replay import AnotherFile, NotEmpty, Options, Progress, replay_shop
from streaming.shop_database.trade import KINDS, CalledOff, Trader, open_shop
from streaming.shop_database.workload import Totals, Workload
from streaming.simulator import simulate
from streaming.sqlite_log import SqliteLog

CATALOG = Path(__file__).resolve().parents[2] / "catalog"
DATABASES = ("postgresql", "mariadb")
# Nothing here outlives the server's machine: its disk need not be waited for.
SETTINGS = {
    "postgresql": {"fsync": "off"},
    "mariadb": {"sync_binlog": "0", "innodb_flush_log_at_trx_commit": "0"},
}
Hashes = dict[str, str]


@dataclass
class Databases:
    """A server, and as many databases in it as tests need."""

    server: object
    name: str
    made: int = 0

    def new(self) -> str:
        self.made += 1
        ask = ask_postgresql if self.name == "postgresql" else ask_mariadb
        ask(self.server, f"CREATE DATABASE shop{self.made}")  # type: ignore[arg-type]
        url: str = self.server.admin_url  # type: ignore[attr-defined]
        return f"{url.rpartition('/')[0]}/shop{self.made}"


@pytest.fixture(scope="module", params=DATABASES)
def databases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    name: str = request.param
    with started(name, tmp_path_factory.mktemp(name), settings=SETTINGS[name]) as server:
        yield Databases(server, name)


@pytest.fixture
def url(databases: Databases) -> str:
    return databases.new()


@pytest.fixture(scope="module")
def lines() -> pa.Table:
    return simulate(seed=5, lines=6_000).lines


def hashes(url: str) -> Hashes:
    return {table.name: content_hash(source_rows(url, table.name)) for table in SHOP}


def embedded(lines: pa.Table, directory: Path) -> Hashes:
    """The latest state of each row after the embedded replay was landed."""
    lake, catalog = Lake(directory / "lake"), load_catalog(CATALOG)
    with SqliteLog(directory / "log.db") as log:
        replay(lines, log, directory / "replay.json")
        for table in SHOP:
            land(catalog.source(table.name), log, lake, 100_000)
    found = {}
    for table in SHOP:
        key = raw("shop", table.name)
        with lake.connect([key]) as connection:
            rows = connection.sql(
                f"SELECT {', '.join(table.names)} FROM {quoted(key)} QUALIFY row_number() OVER "
                f"(PARTITION BY {', '.join(table.key)} ORDER BY log_offset DESC) = 1"
            ).to_arrow_table()
        found[table.name] = content_hash(rows)
    return found


def staged(lines: pa.Table) -> Hashes:
    """The same without log and lake: for many lines."""
    found = {}
    with duckdb.connect() as connection:
        stage_changes(connection, order_lines(lines))
        for table in SHOP:
            columns = ", ".join(
                f"make_timestamp(after.{c.name}) AS {c.name}" if c.type == "timestamp" else f"after.{c.name}"
                for c in table.columns
            )
            rows = connection.sql(
                f"SELECT {columns} FROM {table.name} QUALIFY row_number() OVER (PARTITION BY key ORDER BY lsn DESC) = 1"
            ).to_arrow_table()
            found[table.name] = content_hash(rows)
    return found


def test_the_database_holds_what_the_embedded_replay_lands(url: str, lines: pa.Table, tmp_path: Path) -> None:
    shown: list[Progress] = []
    report = replay_shop(lines, url, on_progress=shown.append)
    assert hashes(url) == embedded(lines, tmp_path)
    assert (report.lines, report.input_lines, report.left_out) == (lines.num_rows, lines.num_rows, ())
    assert shown[-1] == Progress(report.lines, report.lines, report.rows)
    again = replay_shop(lines, url)
    assert (again.lines, again.rows, again.transactions) == (report.lines, 0, 0)


def test_a_lost_row_is_noticed(url: str, lines: pa.Table) -> None:
    replay_shop(lines.slice(0, 500), url)
    before = hashes(url)
    with open_database(url) as database:
        assert database.execute("UPDATE order_lines SET quantity = quantity + 1 WHERE line_no = 3") > 0
    after = hashes(url)
    assert [table for table in before if before[table] != after[table]] == ["order_lines"]


def test_the_real_file_is_the_same_in_both(url: str) -> None:
    if not RETAIL.exists():
        pytest.skip(f"the retail file is not at {RETAIL}")
    lines = read_retail(RETAIL)
    report = replay_shop(lines, url)
    assert (report.lines, report.left_out) == (541_909, ())
    assert hashes(url) == staged(lines)


def test_what_the_database_cannot_hold_is_what_landing_refuses(url: str, lines: pa.Table, tmp_path: Path) -> None:
    rows = lines.slice(0, 300).to_pylist()
    for place, values in {
        3: {"quantity": None, "unread": '{"quantity":"two"}'},
        40: {"customer_id": None, "unread": '{"customer_id":"17x"}'},
        80: {"invoice_no": None},
        120: {"stock_code": None},
        160: {"invoiced_at": None, "unread": '{"invoiced_at":"yesterday"}'},
        200: {"unit_price_gbp": None},
        299: {"quantity": None},
    }.items():
        rows[place] |= values
    broken = pa.Table.from_pylist(rows, LINE_SCHEMA)
    report = replay_shop(broken, url)
    assert hashes(url) == embedded(broken, tmp_path)
    assert sum(found.rows for found in report.left_out) == 7
    assert {found.table for found in report.left_out} == {"order_lines"}
    assert report.lines == 300  # also that of which nothing could be written
    assert replay_shop(broken, url).rows == 0


def test_codes_that_differ_in_case_accent_or_spaces_are_different(url: str, lines: pa.Table) -> None:
    rows = lines.slice(0, 4).to_pylist()
    for row, code in zip(rows, ("85123A", "85123a", "É", "E"), strict=True):
        row["stock_code"] = code
    replay_shop(pa.Table.from_pylist(rows, LINE_SCHEMA), url)
    assert source_rows(url, "products").num_rows == 4


def test_until_and_a_longer_file_go_on_where_the_replay_was(url: str, lines: pa.Table, databases: Databases) -> None:
    middle = order_lines(lines)["landed_at"][2_000].as_py()
    first = replay_shop(lines, url, Options(until=middle))
    assert 2_000 < first.lines < lines.num_rows
    assert first.last_event_at == middle
    assert replay_shop(lines, url, Options(until=middle)).rows == 0
    assert replay_shop(lines, url).lines == lines.num_rows
    in_one = databases.new()
    early = lines.filter(pa.compute.is_null(lines["landed_at"]))  # a file in order of landing, cut within an invoice
    cut = next(i for i, (one, two) in enumerate(pairwise(early["invoice_no"].to_pylist()), 1) if i > 999 and one == two)
    for part in (early.slice(0, cut), early):
        replay_shop(part, in_one)
    assert hashes(in_one) == staged(early)
    assert hashes(url) == staged(lines)


def test_another_file_is_refused_and_so_are_rows_of_somebody_else(
    url: str, lines: pa.Table, databases: Databases
) -> None:
    replay_shop(lines.slice(0, 200), url)
    before = hashes(url)
    for other in (lines.slice(1, 300), lines.slice(0, 100), simulate(seed=6, lines=2_000).lines):
        with pytest.raises(AnotherFile, match="do not continue"):
            replay_shop(other, url)
    assert hashes(url) == before
    used = databases.new()
    Workload(used, workers=1, rate=1e6).run(threading.Event(), seconds=0.1)
    with pytest.raises(NotEmpty, match="customers, products"):
        replay_shop(lines, used)


def test_a_row_that_somebody_else_wrote_stops_the_replay_in_one_line(url: str, lines: pa.Table) -> None:
    replay_shop(lines.slice(0, 500), url)
    invoice = lines["invoice_no"][3_000].as_py()
    with open_database(url) as database:
        copied = database.execute(
            "INSERT INTO orders SELECT %s, customer_id, country, kind, refund_status, refunded_gbp, ordered_at, "
            "updated_at FROM (SELECT * FROM orders LIMIT 1) AS one",
            [invoice],
        )
    assert copied == 1
    with pytest.raises(Rejected, match="somebody else") as refused:
        replay_shop(lines, url)
    assert "\n" not in str(refused.value)


def command(url: str, home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    place, _, host = url.rpartition("@")
    scheme, _, account = place.partition("://")
    user, _, password = account.partition(":")
    environment |= {"HEADWATER_HOME": str(home), "HEADWATER_SHOP_PASSWORD": password}
    return subprocess.Popen(
        [BIN / "headwater", "shop", *arguments, "--url", f"{scheme}://{user}@{host}"],
        env={**environment, "HEADWATER_SIMULATOR_LINES": "6000", "HEADWATER_SIMULATOR_SEED": "5"},
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_done(url: str) -> int:
    with open_database(url) as database:
        try:
            return int(sum(row[0] for row in database.query(f"SELECT lines_done FROM {PROGRESS}")))
        except Rejected:  # the table is not there yet
            return 0


def test_a_replay_that_is_killed_goes_on_exactly_where_it_was(url: str, lines: pa.Table, tmp_path: Path) -> None:
    places = [0]
    while len(places) < 3:
        with command(url, tmp_path, "replay", "--rate", "4000") as process:
            wait_for("progress", lambda: lines_done(url) > places[-1] + 500 or None, every_s=0.05)
            process.send_signal(signal.SIGKILL)
        places.append(lines_done(url))
    assert places[-1] < lines.num_rows
    assert len(set(places)) == 3
    with command(url, tmp_path, "replay") as process:
        said = process.communicate()[1]
    assert process.returncode == 0, said
    assert f"{lines.num_rows:,} of the source's {lines.num_rows:,} lines" in said
    assert hashes(url) == staged(lines)


def test_the_rate_is_kept(url: str, lines: pa.Table) -> None:
    """Processor time is little, so that the time it takes says something also on a busy machine: never faster."""
    started_at = time.monotonic()
    report = replay_shop(lines.slice(0, 200), url, Options(rate=400))
    assert (report.rows - 100) / (time.monotonic() - started_at) < 400


def test_only_one_replay_writes_at_a_time(
    url: str, lines: pa.Table, monkeypatch: pytest.MonkeyPatch, databases: Databases
) -> None:
    monkeypatch.setattr("streaming.shop_database.replay._LOCK_WAIT_S", 1)
    failures: list[BaseException] = []

    def late(_: Progress) -> None:
        try:
            replay_shop(lines, url)
        except ShopDatabaseError as error:
            failures.append(error)

    replay_shop(lines.slice(0, 300), url, on_progress=late)
    assert [type(error).__name__ for error in failures] == ["Busy"]
    assert replay_shop(lines, url).lines == lines.num_rows


def test_each_transaction_says_first_when_it_happened(lines: pa.Table, databases: Databases, url: str) -> None:
    """The stream that a connector reads: the clock first, then the changes in the embedded replay's own order."""
    lines = lines.slice(0, 1_000)
    if databases.name == "mariadb":
        before = ask_mariadb(databases.server, "SHOW MASTER STATUS")[0]  # type: ignore[arg-type]
        report = replay_shop(lines, url)
        events = ask_mariadb(databases.server, f"SHOW BINLOG EVENTS IN '{before[0]}' FROM {before[1]}")  # type: ignore[arg-type]
        firsts = [
            re.search(r"\.(\w+)\)", str(following[5]))
            for begin, following in pairwise([e for e in events if e[2] in ("Gtid", "Table_map")])
            if begin[2] == "Gtid" and following[2] == "Table_map"
        ]
        names = [found[1] for found in firsts if found]
        assert names.count("headwater_clock") == report.transactions
        assert set(names) <= {"headwater_clock", "headwater_replay"}
        return
    with open_database(url) as database:
        database.query("SELECT pg_create_logical_replication_slot('watch', 'test_decoding')")
    report = replay_shop(lines, url)
    with open_database(url) as database:
        stream = [row[0] for row in database.query("SELECT data FROM pg_logical_slot_get_changes('watch', NULL, NULL)")]
        database.query("SELECT pg_drop_replication_slot('watch')")
    shape = re.compile(r"table public\.(\w+): (\w+): (.*)", re.DOTALL)
    changes = [found.groups() for text in stream if (found := shape.match(text))]
    clocks = [rest for table, _, rest in changes if table == "headwater_clock"]
    assert len(clocks) == report.transactions
    after_begin = [two for one, two in pairwise(stream) if one.startswith("BEGIN")]
    assert sum("headwater_clock" in text for text in after_begin) == report.transactions
    seen = [(table, op[0], rest) for table, op, rest in changes if not table.startswith("headwater")]
    expected = staged_changes(lines)
    assert [(table, op) for table, op, _ in seen] == [(table, {"c": "I", "u": "U"}[op]) for table, op, _ in expected]
    for (_, _, rest), (_, _, key) in zip(seen, expected, strict=True):
        assert all(re.search(rf"(^| ){name}\[[^]]*\]:'?{re.escape(str(value))}'?( |$)", rest) for name, value in key)


def staged_changes(lines: pa.Table) -> list[tuple[str, str, list[tuple[str, object]]]]:
    """Table, op and key of each change of the embedded replay, in its order."""
    with duckdb.connect() as connection:
        stage_changes(connection, order_lines(lines))
        parts = " UNION ALL ".join(
            f"SELECT lsn, '{table.name}', op, to_json(key)::VARCHAR FROM {table.name}" for table in SHOP
        )
        rows = connection.sql(f"{parts} ORDER BY lsn").fetchall()
    return [(table, op, list(json.loads(key).items())) for _, table, op, key in rows]


def test_a_relaxed_server_gets_its_settings_back(url: str, lines: pa.Table, databases: Databases) -> None:
    if databases.name == "postgresql":
        replay_shop(lines.slice(0, 100), url)
        with open_database(url) as database, relaxed(database, server=False):
            assert database.query("SHOW synchronous_commit") == [("off",)]
        return
    asked = "SELECT @@global.sync_binlog, @@global.innodb_flush_log_at_trx_commit"
    with open_database(url) as database:
        database.script("SET GLOBAL sync_binlog = 7; SET GLOBAL innodb_flush_log_at_trx_commit = 2")
        seen = []
        replay_shop(
            lines.slice(0, 300), url, Options(relax_server=True), lambda _: seen.append(database.query(asked)[0])
        )
        assert seen == [(0, 0)]
        assert database.query(asked) == [(7, 2)]
        # A run that was killed has left this behind.
        database.script("SET GLOBAL sync_binlog = 0; SET GLOBAL innodb_flush_log_at_trx_commit = 0")
        kept = json.dumps({"sync_binlog": 7, "innodb_flush_log_at_trx_commit": 2})
        database.execute(f"UPDATE {PROGRESS} SET server_settings = %s", [kept])
        replay_shop(lines.slice(0, 300), url)
        assert database.query(asked) == [(7, 2)]
        put_back(database)
        assert database.query(asked) == [(7, 2)]
        database.script("SET GLOBAL sync_binlog = 0; SET GLOBAL innodb_flush_log_at_trx_commit = 0")


# The living shop


def traded(url: str) -> Totals:
    """A shop that has done each kind at least three times, unless it takes too long for that."""
    stop = threading.Event()

    def enough(totals: Totals) -> None:
        if all(totals.kinds.get(kind, 0) >= 3 for kind in KINDS):
            stop.set()

    return Workload(url, seed=3, rate=1e6).run(stop, seconds=120, on_second=enough)


def assert_it_holds_together(url: str) -> None:
    """What the shop's own rules promise, and what no rolled back transaction may have left."""
    with open_database(url) as database:
        for wrong in (
            "SELECT invoice_no FROM order_lines WHERE invoice_no NOT IN (SELECT invoice_no FROM orders)",
            "SELECT invoice_no FROM orders WHERE invoice_no NOT IN (SELECT invoice_no FROM order_lines)",
            "SELECT invoice_no FROM orders WHERE customer_id NOT IN (SELECT customer_id FROM customers)",
            "SELECT o.invoice_no FROM orders o JOIN order_lines l ON l.invoice_no = o.invoice_no "
            "WHERE coalesce(o.customer_id, -1) <> coalesce(l.customer_id, -1)",
            "SELECT invoice_no FROM orders WHERE (refund_status = 'none') <> (refunded_gbp = 0)",
            "SELECT invoice_no FROM orders WHERE (kind = 'refund') <> (invoice_no LIKE 'C%%')",
            "SELECT invoice_no FROM order_lines WHERE (quantity < 0) <> (invoice_no LIKE 'C%%')",
            "SELECT invoice_no FROM order_lines WHERE line_no > 8",
        ):
            assert (wrong, database.query(f"{wrong} LIMIT 1")) == (wrong, [])


def test_the_living_shop_does_everything_it_says(url: str) -> None:
    totals = traded(url)
    assert set(totals.kinds) == set(KINDS)
    assert totals.rollbacks == totals.kinds["called_off_order"]
    assert totals.transactions == sum(totals.kinds.values()) - totals.rollbacks
    assert (totals.rejected, totals.unknown, totals.reconnects) == (0, 0, 0)
    assert_it_holds_together(url)
    with open_database(url) as database:
        orders = database.query("SELECT kind, refund_status, count(*) FROM orders GROUP BY 1, 2")
        assert {(kind, status) for kind, status, _ in orders} >= {
            ("sale", "none"),
            ("sale", "partial"),
            ("sale", "full"),
            ("refund", "none"),
        }
        for recoded in (
            "SELECT count(*) FROM customers WHERE customer_id > 1000000000",
            "SELECT count(*) FROM products WHERE stock_code LIKE 'N%%'",
        ):
            assert database.query(recoded)[0][0] > 0
    again = Workload(url, seed=4, rate=1e6).run(threading.Event(), seconds=1)  # goes on with numbers that are not taken
    assert (again.rejected, again.transactions > 0) == (0, True)
    assert_it_holds_together(url)


def test_the_same_seed_makes_the_same_choices(databases: Databases) -> None:
    def chosen(seed: int) -> Hashes:
        url = databases.new()
        with open_database(url) as database:
            for statement in create_statements(database.dialect, replay=False):
                database.script(statement)
            open_shop(database)
            trader = Trader(database, Random(seed), 0, lambda _: None)
            for kind in KINDS * 3:
                database.script("BEGIN")
                try:
                    trader.deal(kind)
                except CalledOff:
                    database.script("ROLLBACK")
                else:
                    database.script("COMMIT")
        return {
            table.name: content_hash(
                source_rows(url, table.name), [c.name for c in table.columns if c.type != "timestamp"]
            )
            for table in SHOP
        }

    one, two, other = chosen(9), chosen(9), chosen(10)
    assert one == two
    assert all(one[table] != other[table] for table in one)


def test_a_long_transaction_is_open_while_others_commit(url: str) -> None:
    """An order of the patient worker appears later than orders that were begun after it."""
    stop, seen = threading.Event(), []

    def look(_: Totals) -> None:
        with open_database(url) as database:
            seen.append(
                database.query(
                    "SELECT count(*) FROM orders early JOIN orders late ON late.ordered_at > early.ordered_at "
                    "WHERE early.invoice_no LIKE 'R002-%%' AND late.invoice_no NOT LIKE 'R002-%%' AND late.ordered_at "
                    "< (SELECT max(invoiced_at) FROM order_lines l WHERE l.invoice_no = early.invoice_no)"
                )[0][0]
            )
        if seen[-1]:
            stop.set()

    Workload(url, workers=2, rate=500).run(stop, seconds=60, on_second=look)
    assert seen[-1] > 0


def test_the_shop_process_stops_cleanly_when_asked(url: str, tmp_path: Path) -> None:
    with command(url, tmp_path, "run", "--rate", "2000", "--seed", "5") as process:
        assert process.stderr
        first = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 0
    assert re.match(r" +\d+ s  [\d,]+ transactions  [\d,]+ rows  [\d,]+ rolled back\n", first)
    assert "the shop has closed" in said
    assert re.search(r"\n  order +\d+\n", said)
    assert_it_holds_together(url)


def test_the_shop_goes_on_after_the_database_was_killed(tmp_path: Path, databases: Databases) -> None:
    from headwater.stack.server import kill, restart

    with started(databases.name, tmp_path / "server", settings=SETTINGS[databases.name]) as server:
        url, stop = Databases(server, databases.name).new(), threading.Event()
        after_restart: list[int] = []

        def crash(totals: Totals) -> None:
            if totals.transactions and not after_restart:
                kill(server)
                restart(server)
                after_restart.append(totals.transactions)
            elif after_restart and totals.transactions > after_restart[0] + 50:
                stop.set()

        totals = Workload(url, seed=2, workers=3, rate=1e6).run(stop, seconds=120, on_second=crash)
        assert totals.reconnects > 0
        assert totals.transactions > after_restart[0]
        assert_it_holds_together(url)


def test_who_waits_too_long_for_another_transaction_meets_a_conflict(url: str, lines: pa.Table) -> None:
    replay_shop(lines.slice(0, 10), url)
    with open_database(url) as one, open_database(url) as other:
        wait = "lock_timeout = '100ms'" if one.dialect == "postgresql" else "innodb_lock_wait_timeout = 1"
        other.script(f"SET {wait}")
        for database in (one, other):
            database.script("BEGIN")
        one.execute("UPDATE customers SET country = 'here'")
        with pytest.raises(Conflict):
            other.execute("UPDATE customers SET country = 'there'")
        other.script("ROLLBACK")
        one.script("COMMIT")
        with pytest.raises(Rejected):
            one.execute("INSERT INTO customers SELECT * FROM customers")


def test_tls_is_verified_when_asked(tmp_path: Path, databases: Databases) -> None:
    with started(databases.name, tmp_path, settings={"ssl": "on"}) as server:
        url, other = server.admin_url, tmp_path / "other.crt"
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        files = ["-keyout", str(tmp_path / "other.key"), "-out", str(other)]
        subprocess.run([*make, "-subj", "/CN=localhost", *files], check=True, capture_output=True)
        verify = ("sslmode=verify-full&sslrootcert=", "ssl=verify_identity&ssl_ca=")[databases.name == "mariadb"]
        with open_database(f"{url}?{verify}{server.certificate}") as database:
            assert database.query("SELECT 1") == [(1,)]
        with pytest.raises(Unreachable, match=r"(?i)certificate"):
            open_database(f"{url}?{verify}{other}")


def test_a_shop_that_cannot_open_says_so_at_once(databases: Databases) -> None:
    url = databases.new()
    with pytest.raises(Unreachable):
        Workload(f"{url.partition('://')[0]}://me@127.0.0.1:1/shop").run(threading.Event())
    with open_database(url) as database:
        database.script("CREATE TABLE orders (invoice_no int)")
    with pytest.raises(Rejected):
        Workload(url, workers=2).run(threading.Event(), seconds=60)
