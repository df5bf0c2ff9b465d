"""The living shop on real databases: it does what it says, holds together, and goes on after a crash.

Every test runs on PostgreSQL and on MariaDB.
"""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from shop_databases import DATABASES, Databases, Hashes, command, running
from stack_servers import started

from headwater.stack.server import kill, restart
from streaming.shop_database.compare import content_hash, source_rows
from streaming.shop_database.connect import Conflict, Rejected, Unreachable, open_database
from streaming.shop_database.ddl import SHOP, create_statements
from streaming.shop_database.trade import KINDS, CalledOff, Trader, open_shop
from streaming.shop_database.workload import Totals, Workload


@pytest.fixture(scope="module", params=DATABASES)
def databases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    with running(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest.fixture
def url(databases: Databases) -> str:
    return databases.new()


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
    with running(databases.name, tmp_path / "server") as own:
        url, stop = own.new(), threading.Event()
        after_restart: list[int] = []

        def crash(totals: Totals) -> None:
            if totals.transactions and not after_restart:
                kill(own.server)
                restart(own.server)
                after_restart.append(totals.transactions)
            elif after_restart and totals.transactions > after_restart[0] + 50:
                stop.set()

        totals = Workload(url, seed=2, workers=3, rate=1e6).run(stop, seconds=120, on_second=crash)
        assert totals.reconnects > 0
        assert totals.transactions > after_restart[0]
        assert_it_holds_together(url)


def test_who_waits_too_long_for_another_transaction_meets_a_conflict(url: str) -> None:
    Workload(url, workers=1).run(threading.Event(), seconds=0.1)
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
