"""The replay into real databases: what the embedded replay leaves, killed, resumed, refused.

Every test runs on PostgreSQL and on MariaDB where it makes sense on both.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from homes import RETAIL, wait_for
from shop_databases import DATABASES, Databases, Hashes, command, hashes, running
from stack_servers import ask_mariadb

from catalog.keys import raw
from catalog.load import load_catalog
from lake import Lake
from lake.tables import quoted
from streaming.landing import land
from streaming.replay import replay
from streaming.retail import LINE_SCHEMA, read_retail
from streaming.shop import order_lines, stage_changes
from streaming.shop_database.compare import content_hash, source_rows
from streaming.shop_database.connect import Rejected, ShopDatabaseError, open_database
from streaming.shop_database.ddl import PROGRESS, SHOP
from streaming.shop_database.durability import put_back, relaxed
from streaming.shop_database.replay import AnotherFile, NotEmpty, Options, Progress, replay_shop
from streaming.shop_database.workload import Workload
from streaming.simulator import simulate
from streaming.sqlite_log import SqliteLog

CATALOG = Path(__file__).resolve().parents[2] / "catalog"


@pytest.fixture(scope="module", params=DATABASES)
def databases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    with running(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest.fixture
def url(databases: Databases) -> str:
    return databases.new()


@pytest.fixture(scope="module")
def lines() -> pa.Table:
    return simulate(seed=5, lines=6_000).lines


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


def test_each_transaction_says_first_when_it_happened_and_last_how_far_it_got(
    lines: pa.Table, databases: Databases, url: str
) -> None:
    """Also where one follows the other within the same instant: MariaDB does not log an update that changes nothing."""
    days = pa.compute.floor_temporal(lines["invoiced_at"], unit="day")
    lines = lines.set_column(lines.column_names.index("invoiced_at"), "invoiced_at", days).slice(0, 1_000)
    if databases.name == "mariadb":
        (file, start, *_), *_ = ask_mariadb(databases.server, "SHOW MASTER STATUS")
        report = replay_shop(lines, url)
        events = ask_mariadb(databases.server, f"SHOW BINLOG EVENTS IN '{file}' FROM {start}")
        logged = [logged_table(event) for event in events if event[2] in ("Gtid", "Table_map", "Xid")]
        stream = [list(filter(None, tables)) for is_row, tables in groupby(logged, bool) if is_row]
    else:
        with open_database(url) as database:
            database.query("SELECT pg_create_logical_replication_slot('watch', 'test_decoding')")
            report = replay_shop(lines, url)
            decoded = database.query("SELECT data FROM pg_logical_slot_get_changes('watch', NULL, NULL)")
            database.query("SELECT pg_drop_replication_slot('watch')")
        found = [CHANGE.match(text) for (text,) in decoded]
        stream = [[m[1] for m in matches if m] for is_row, matches in groupby(found, bool) if is_row]
        assert_in_order([m for m in found if m and not m[1].startswith("headwater")], lines)
    replayed = [tables for tables in stream if len(tables) > 1]
    assert len(replayed) == report.transactions
    assert {(tables[0], tables[-1]) for tables in replayed} == {("headwater_clock", "headwater_replay")}
    assert all(tables.count("headwater_clock") == 1 for tables in replayed)


CHANGE = re.compile(r"table public\.(\w+): (\w+): (.*)", re.DOTALL)


def logged_table(event: tuple[Any, ...]) -> str | None:
    """The table that an event of the binary log is about; None for one that begins or ends a transaction."""
    found = re.search(r"\.(\w+)\)", str(event[5])) if event[2] == "Table_map" else None
    return found[1] if found else None


def assert_in_order(changes: list[re.Match[str]], lines: pa.Table) -> None:
    """The embedded replay's changes: table, kind and key, in its order."""
    expected = staged_changes(lines)
    kinds = {"c": "INSERT", "u": "UPDATE"}
    assert [(m[1], m[2]) for m in changes] == [(table, kinds[op]) for table, op, _ in expected]
    for change, (_, _, key) in zip(changes, expected, strict=True):
        for name, value in key:
            assert re.search(rf"(^| ){name}\[[^]]*\]:'?{re.escape(str(value))}'?( |$)", change[3])


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
