"""Fault 31: a transaction that is larger than the memory of whoever captures it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from catalog.keys import raw
from headwater.stack.server import Server
from tests.faults.case import Case
from tests.faults.stand import wait_until

Seen = Callable[[str], None]
# Of the connector: what it has, whatever the transaction, beside what it has without one. The writer's queue is 32 MiB.
MORE_MIB = 100
MOST_MIB = 200
LANDER_MOST_MIB = 1500
WITHIN_S = 1000
VALUE = "{} * 7919 % 1000003"


def peak_mib(pid: int) -> int:
    """The most memory that a process that still runs has had."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) >> 10


@pytest.mark.timeout(2 * WITHIN_S)
def test_31_large_transaction(case: Case, broker: Server, request: pytest.FixtureRequest, seen: Seen) -> None:
    """Narrow rows are inserted in one transaction, captured and landed, so many as --rows says (ten million)."""
    rows: int = request.config.getoption("--rows")
    case.log_to(broker)
    case.sql("CREATE TABLE t (id bigint PRIMARY KEY, v bigint)")
    case.declare("t", "id int64, v int64")
    with case.running("capture", "shop") as connector, case.running("land", "--every", "0.2") as lander:
        case.sql("INSERT INTO t VALUES (0, 0)")
        case.wait_for_same()
        empty = peak_mib(connector.pid)
        began = time.monotonic()
        series = case.either(f"FROM generate_series(1::bigint, {rows}) s", f"FROM seq_1_to_{rows}")
        number = case.either("s", "seq")
        case.sql(f"INSERT INTO t SELECT {number}, {VALUE.format(number)} {series}")
        written = time.monotonic()
        wait_until(lambda: case.lake.rows(raw("shop", "t")) >= rows + 1, "all of it has landed", WITHIN_S, every_s=1)
        landed = time.monotonic()
        full, of_lander = peak_mib(connector.pid), peak_mib(lander.pid)
    counted = f"SELECT count(*), min(id), max(id), sum(CASE WHEN v = {VALUE.format('id')} THEN 0 ELSE 1 END)"
    assert case.sql(f"{counted} FROM t") == [(rows + 1, 0, rows, 0)]
    with case.lake.connect([raw("shop", "t")]) as db:
        assert db.sql(f"{counted} FROM raw.shop.t").fetchall() == [(rows + 1, 0, rows, 0)]
        places = "count(DISTINCT id), count(DISTINCT source_position), count(DISTINCT source_order), max(source_order)"
        assert db.sql(f"SELECT {places} FROM raw.shop.t WHERE id > 0").fetchall() == [(rows, 1, rows, rows)]
    assert full <= min(MOST_MIB, empty + MORE_MIB), (empty, full)
    assert of_lander <= LANDER_MOST_MIB
    seen(
        f"{rows:,} rows in one transaction, written in {written - began:.0f} s, landed {landed - written:.0f} s later; "
        f"the connector's peak is {full} MiB of memory, {empty} before it (bound: {MORE_MIB} more, {MOST_MIB} in all), "
        f"the lander's {of_lander} (bound: {LANDER_MOST_MIB}); each row is there once, as in the source"
    )
