"""Faults 21 to 33: what rows may hold, and what transactions may do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from streaming.change import UNAVAILABLE
from tests.faults.case import Case

Seen = Callable[[str], None]
ON_POSTGRESQL = pytest.mark.parametrize("case", ["postgresql"], indirect=True)
ON_MARIADB = pytest.mark.parametrize("case", ["mariadb"], indirect=True)


def arrive(case: Case, column: str, declared: str, values: Sequence[tuple[str, str]]) -> None:
    """Rows with these values (as SQL, and as DuckDB shows them) arrive exactly, read by a snapshot and streamed."""
    case.sql(f"CREATE TABLE t (id int PRIMARY KEY, v {column})")
    case.declare("t", f"id int64, v {declared}")
    for start in (0, 100):
        rows = ", ".join(f"({start + number}, {value})" for number, (value, _) in enumerate(values))
        case.sql(f"INSERT INTO t VALUES {rows}")
        assert case.capture().code == 0
    assert case.land().code == 0
    found = dict(case.history("t", "id, v::VARCHAR"))
    wanted = {start + number: shown for start in (0, 100) for number, (_, shown) in enumerate(values)}
    assert (found, case.quarantined("t")) == (wanted, [])


def quarantined(case: Case, column: str, declared: str, values: Sequence[tuple[str, str]]) -> None:
    """Rows with these values (as SQL, and what the reason names) land in quarantine, with the database's own text.

    One that was changed to such a value, and they, are gone once they are deleted, though deletions have these values.
    """
    case.sql(f"CREATE TABLE t (id int PRIMARY KEY, v {column})")
    if case.is_postgresql:
        case.sql("ALTER TABLE t REPLICA IDENTITY FULL")
    case.declare("t", f"id int64, v {declared}")
    case.sql("INSERT INTO t VALUES (0, NULL)")
    assert case.capture().code == 0
    for number, (value, _) in enumerate(values, 1):
        case.sql(f"INSERT INTO t VALUES ({number}, {value})")
    for done in (case.capture(), case.land()):
        assert done.code == 0, done
    reasons = case.quarantined("t")
    assert len(reasons) == len(values), reasons
    assert [text for _, text in values if not any(text in reason for reason in reasons)] == []
    assert [number for (number,) in case.history("t", "id")] == [0]
    assert any(f"{len(values)} records could not land and wait" in problem for problem in case.problems())
    case.sql(f"UPDATE t SET v = {values[0][0]} WHERE id = 0", "DELETE FROM t")
    for done in (case.capture(), case.land()):
        assert done.code == 0, done
    (found,) = case.verdicts()
    assert (found.missing, found.surplus) == (0, 0)
    assert len(case.quarantined("t")) == len(values) + 1
    assert not any("quarantine" in problem for problem in case.problems())


@ON_POSTGRESQL
def test_21_unchanged_toast(case: Case, seen: Seen) -> None:
    """A row with 30,000 characters is updated in another column, across restarts of lander and connector."""
    case.sql("CREATE TABLE t (id int PRIMARY KEY, v text, n int)", "ALTER TABLE t ALTER v SET STORAGE EXTERNAL")
    case.sql("INSERT INTO t VALUES (1, repeat('x', 30000), 0), (2, repeat('y', 30000), 0)")
    case.declare("t", "id int64, v string, n int64")
    case.sync()
    for number in (1, 2, 3):
        case.sql(f"UPDATE t SET n = {number} WHERE id = 1")
        case.sync()
    case.sql("UPDATE t SET v = repeat('z', 30000) WHERE id = 2", "UPDATE t SET n = 9")
    case.sync()
    assert not any(UNAVAILABLE in value for (value,) in case.history("t", "v") if value)
    seen("the value of before is kept in every version; the placeholder lands nowhere")


@ON_POSTGRESQL
def test_21_unchanged_toast_of_a_changed_key(case: Case, seen: Seen) -> None:
    """The keys of rows with 30,000 characters are updated, which are not sent: while it is captured, and one of them
    once more before it is.
    """
    case.sql("CREATE TABLE t (id int PRIMARY KEY, v text, n int)", "ALTER TABLE t ALTER v SET STORAGE EXTERNAL")
    case.sql("INSERT INTO t SELECT n, repeat('x', 30000), n FROM generate_series(1, 5) n")
    case.declare("t", "id int64, v string, n int64")
    case.sync()
    case.sql("UPDATE t SET id = 12 WHERE id = 2", "UPDATE t SET id = 13 WHERE id = 3")
    case.sync()
    assert case.quarantined("t") == []
    case.sql("UPDATE t SET id = 14 WHERE id = 4", "UPDATE t SET n = 0 WHERE id = 14")
    for done in (case.capture(), case.land()):
        assert done.code == 0, done
    (found,) = case.verdicts()
    assert (found.missing, found.surplus) == (0, 0)
    assert not any("quarantine" in problem for problem in case.problems())
    seen(
        "the row with its new key has what it had; where another transaction has touched it since, the table is read "
        "again; equals the source"
    )


@ON_POSTGRESQL
def test_21_the_placeholder_as_a_value(case: Case, seen: Seen) -> None:
    """A text is updated to the very words that stand for what was not sent."""
    case.make("t", 2)
    case.sync()
    case.sql(f"UPDATE t SET v = '{UNAVAILABLE}' WHERE id = 1")
    case.sync()
    assert [value for (value,) in case.history("t", "v")].count(UNAVAILABLE) == 1
    seen("it lands as the text that it is; equals the source")


def test_22_primary_key_updated(case: Case, seen: Seen) -> None:
    """Keys are updated to new ones, in a chain and by swapping two rows' keys in one transaction."""
    case.make("t", 10)
    case.sync()
    case.sql("UPDATE t SET id = 100 WHERE id = 1", "UPDATE t SET id = 101 WHERE id = 100")
    swap = (
        "BEGIN; UPDATE t SET id = -1 WHERE id = 2; UPDATE t SET id = 2 WHERE id = 3; UPDATE t SET id = 3 WHERE id = -1"
    )
    case.sql(*swap.split("; "), "COMMIT")
    case.sync()
    assert [op for op, key, _ in case.history("t") if key == 100] == ["c", "d"]
    seen("a deletion of the old key and a creation of the new one, in that order")


def test_23_truncate(case: Case, seen: Seen) -> None:
    """TRUNCATE between inserts, in a table that was landed, and once more before anything is captured."""
    case.make("t", 10)
    case.sync()
    case.sql("TRUNCATE TABLE t")
    case.insert("t", 5, 7)
    case.sync()
    case.sql("TRUNCATE TABLE t", "TRUNCATE TABLE t")
    case.sync()
    seen("one change t in every partition; the current state is empty after it")


@ON_POSTGRESQL
@pytest.mark.parametrize("identity", ["FULL", "USING INDEX t_v"])
def test_24_replica_identity(case: Case, identity: str, seen: Seen) -> None:
    """The captured table's replica identity is changed to FULL; to another unique index."""
    case.sql("CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL)", "CREATE UNIQUE INDEX t_v ON t (v)")
    case.insert("t", 1, 10)
    case.declare("t", key="v" if "INDEX" in identity else "id")
    case.sql(f"ALTER TABLE t REPLICA IDENTITY {identity}")
    case.sync()
    case.sql("UPDATE t SET v = 'new' WHERE id = 1", "DELETE FROM t WHERE id = 2", "UPDATE t SET id = 50 WHERE id = 3")
    case.sync()
    seen("updates and deletions arrive by the identity's key; equals the source")


@ON_POSTGRESQL
def test_24_replica_identity_nothing(case: Case, seen: Seen) -> None:
    """A table whose replica identity is NOTHING is to be captured."""
    case.make("t", 3)
    case.sql("ALTER TABLE t REPLICA IDENTITY NOTHING")
    said = case.halts("postgresql_replica_identity")
    case.sql("ALTER TABLE t REPLICA IDENTITY DEFAULT")
    case.sync()
    assert "REPLICA IDENTITY" in said
    seen("refused before it is published, with the statement that mends it; then equals the source")


@ON_MARIADB
def test_24_row_image_minimal(case: Case, seen: Seen) -> None:
    """MariaDB's counterpart: binlog_row_image is MINIMAL."""
    case.make("t", 3)
    case.sql("SET GLOBAL binlog_row_image = 'MINIMAL'")
    try:
        case.halts("mariadb_settings")
    finally:
        case.sql("SET GLOBAL binlog_row_image = 'FULL'")
    case.sync()
    seen("refused with runbook mariadb_settings and the statement that mends it; then equals the source")


def test_25_decimals(case: Case, seen: Seen) -> None:
    """numeric(38,18) with all its digits, both signs, from snapshot and stream."""
    digits = ["12345678901234567890.123456789012345678", "-99999999999999999999.999999999999999999"]
    small = "0.000000000000000001"
    arrive(case, "numeric(38,18)", "decimal(38,18)", [(value, value) for value in (*digits, small)])
    seen("every digit arrives, read by the snapshot and streamed")


@ON_POSTGRESQL
def test_25_not_a_number(case: Case, seen: Seen) -> None:
    """NaN, infinities and minus zero as double precision."""
    values = [("'-0'", "-0.0"), ("'NaN'", "nan"), ("'Infinity'", "inf"), ("'-Infinity'", "-inf"), ("1e-300", "1e-300")]
    arrive(case, "double precision", "float64", values)
    seen("NaN, infinities and the sign of zero arrive as such")


@ON_POSTGRESQL
def test_25_decimal_not_a_number(case: Case, seen: Seen) -> None:
    """NaN as numeric(38,18), which no decimal of the lake is."""
    quarantined(case, "numeric(38,18)", "decimal(38,18)", [("'NaN'", "NaN")])
    seen("in quarantine with the reason, never changed silently")


@ON_MARIADB
def test_26_unsigned(case: Case, seen: Seen) -> None:
    """18446744073709551615 and 2^63 as bigint unsigned."""
    values = [(str(n), str(n)) for n in (2**64 - 1, 2**63, 0)]
    arrive(case, "bigint unsigned", "decimal(20,0)", values)
    seen("every digit arrives, as decimal(20,0)")


def test_27_microseconds(case: Case, seen: Seen) -> None:
    """Microseconds, before 1970, and the year 0001."""
    texts = ["2011-12-09 12:50:00.000001", "1969-12-31 23:59:59.999999", "0001-01-01 00:00:00", "9999-12-31 23:59:59.5"]
    arrive(case, case.either("timestamp", "datetime(6)"), "timestamp", [(f"'{text}'", text) for text in texts])
    seen("each microsecond arrives, read by the snapshot and streamed")


@ON_POSTGRESQL
def test_27_beyond_the_calendar(case: Case, seen: Seen) -> None:
    """Infinities, and years BC."""
    values = [("'infinity'", "infinity"), ("'-infinity'", "-infinity"), ("'0044-03-15 BC'", "-63517")]
    quarantined(case, "timestamp", "timestamp", values)
    seen("in quarantine with the database's text, never changed silently")


@ON_MARIADB
def test_28_zero_dates(case: Case, seen: Seen) -> None:
    """Dates 0000-00-00 and 2011-00-00, as the server takes them without strict mode."""
    case.sql("SET SESSION sql_mode = ''")
    quarantined(case, "date", "date", [("'0000-00-00'", "0000-00-00"), ("'2011-00-00'", "2011-00-00")])
    seen("in quarantine with the database's text, never changed silently")


@ON_MARIADB
def test_28_times_of_more_than_a_day(case: Case, seen: Seen) -> None:
    """TIME of plus and minus 838:59:59.999999."""
    most = (838 * 3600 + 59 * 60 + 59) * 1_000_000 + 999_999
    values = [("'838:59:59.999999'", str(most)), ("'-838:59:59.999999'", str(-most)), ("'-00:00:00.000001'", "-1")]
    arrive(case, "time(6)", "time", values)
    seen("as microseconds, sign and all")


def test_29_time_zones(case: Case, seen: Seen) -> None:
    """Instants around daylight saving's gap and its repeated hour, written by sessions in several zones."""
    zone = case.either("SET TIME ZONE '{}'", "SET time_zone = '{}'")
    kind = case.either("timestamptz(6)", "timestamp(6)")
    case.sql(f"CREATE TABLE t (id int PRIMARY KEY, v {kind} NULL)")
    case.declare("t", "id int64, v timestamp")
    # Berlin's summer began 2011-03-27 01:00 UTC and ended 2011-10-30 01:00 UTC: written with the offset of each side.
    written = [
        ("+01:00", "2011-03-27 01:59:59.999999", "2011-03-27 00:59:59.999999"),
        ("+02:00", "2011-03-27 03:00:00", "2011-03-27 01:00:00"),
        ("+02:00", "2011-10-30 02:30:00", "2011-10-30 00:30:00"),
        ("+01:00", "2011-10-30 02:30:00", "2011-10-30 01:30:00"),
    ]
    for number, (offset, text, _) in enumerate(written):
        value = case.either(f"'{text}{offset}'", f"'{text}'")
        case.sql(
            zone.format("Europe/Berlin" if case.is_postgresql else offset), f"INSERT INTO t VALUES ({number}, {value})"
        )
    assert case.capture().code == 0
    case.sql(zone.format("America/New_York" if case.is_postgresql else "-05:00"), "UPDATE t SET id = id + 100")
    for done in (case.capture(), case.land()):
        assert done.code == 0, done
    found = {key: value for op, key, value in case.history("t", "change_op, id, v::VARCHAR") if op in "cr"}
    assert found == {start + n: utc for start in (0, 100) for n, (_, _, utc) in enumerate(written)}
    seen("each is the same instant in UTC, whichever zone wrote or read it; the repeated hour's two are apart")


def test_30_enum_value_added(case: Case, seen: Seen) -> None:
    """An enum gets a value while it is captured."""
    if case.is_postgresql:
        case.sql("CREATE TYPE mood AS ENUM ('so so', 'ok')")
    kind = case.either("mood", "enum('so so', 'ok')")
    case.sql(f"CREATE TABLE t (id int PRIMARY KEY, v {kind})", "INSERT INTO t VALUES (1, 'ok')")
    case.declare("t")
    case.sync()
    new = case.either("ALTER TYPE mood ADD VALUE 'best'", "ALTER TABLE t MODIFY v enum('so so', 'ok', 'best')")
    case.sql(new, "INSERT INTO t VALUES (2, 'best')")
    case.sync()
    seen("arrives as its text; equals the source")


@ON_POSTGRESQL
def test_30_arrays(case: Case, seen: Seen) -> None:
    """Arrays with nulls, and empty ones."""
    arrive(case, "int[]", "list<int64>", [("'{1,NULL,3}'", "[1, NULL, 3]"), ("'{}'", "[]")])
    seen("arrive as lists, nulls in their places")


def test_30_bytes_and_json(case: Case, seen: Seen) -> None:
    """Bytes of every value in one column; json beside it."""
    every = bytes(range(256)).hex()
    case.sql(f"CREATE TABLE t (id int PRIMARY KEY, b {case.either('bytea', 'blob')}, j {case.either('jsonb', 'json')})")
    case.declare("t", "id int64, b binary, j json")
    given = case.either(f"decode('{every}', 'hex')", f"x'{every}'")
    text = '{"a": [1, null], "b": "é"}'
    case.sql(f"INSERT INTO t VALUES (1, {given}, '{text}')")
    assert case.capture().code == 0
    case.sql(f"INSERT INTO t VALUES (2, {given}, '{text}')")
    for done in (case.capture(), case.land()):
        assert done.code == 0, done
    rows = case.history("t", "hex(b), j")
    assert rows == [(every.upper(), text)] * 2
    seen("every byte arrives, json as its text")


@ON_POSTGRESQL
def test_30_invalid_utf8(case: Case, seen: Seen) -> None:
    """A database that does not check its encoding (SQL_ASCII) has texts that are not UTF-8, at rest and streamed."""
    with case.admin() as admin:
        admin.script("DROP DATABASE shop")
        admin.script("CREATE DATABASE shop ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    invalid = r"convert_from('\x61ff62', 'SQL_ASCII')"
    case.sql("CREATE TABLE t (id int PRIMARY KEY, v text)", f"INSERT INTO t VALUES (1, {invalid}), (2, 'at rest')")
    case.declare("t")
    assert case.capture().code == 0
    case.sql(f"INSERT INTO t VALUES (3, {invalid})", "INSERT INTO t VALUES (4, 'streamed')")
    for done in (case.capture(), case.land()):
        assert done.code == 0, done
    assert case.history("t") == [("r", 2, "at rest"), ("c", 4, "streamed")]
    reasons = case.quarantined("t")
    assert len(reasons) == 2
    seen(f"both in quarantine ({reasons[0]}), with their bytes; the others land")


@ON_MARIADB
def test_30_nul_in_text(case: Case, seen: Seen) -> None:
    """A text with a NUL."""
    arrive(case, "varchar(20)", "string", [("concat('a', char(0 USING utf8mb4), 'b')", "a\0b")])
    seen("arrives as it is")


def test_32_rollbacks_and_savepoints(case: Case, seen: Seen) -> None:
    """Transactions that are rolled back wholly, and to savepoints, between ones that are not."""
    case.make("t", 10)
    case.sync()
    case.sql(
        "BEGIN", "DELETE FROM t", "ROLLBACK",
        "BEGIN", "UPDATE t SET v = 'kept' WHERE id = 1", "SAVEPOINT a", "DELETE FROM t WHERE id < 6",
        "SAVEPOINT b", "INSERT INTO t VALUES (77, 'undone')", "ROLLBACK TO SAVEPOINT b", "ROLLBACK TO SAVEPOINT a",
        "INSERT INTO t VALUES (78, 'kept')", "COMMIT",
    )  # fmt: skip
    case.sync()
    assert [change for change in case.history("t") if change[0] != "r"] == [("u", 1, "kept"), ("c", 78, "kept")]
    seen("nothing that was undone is in the history")


def test_33_interleaved_transactions(case: Case, seen: Seen) -> None:
    """Two transactions stay open while others commit; the one that wrote first commits last, after a restart."""
    case.make("t", 3)
    case.sync()
    with case.connect() as one, case.connect() as two:
        one.script("BEGIN")
        one.script("INSERT INTO t VALUES (101, 'first to write')")
        two.script("BEGIN")
        two.script("INSERT INTO t VALUES (102, 'second to write')")
        case.sql("INSERT INTO t VALUES (103, 'between')")
        assert case.capture().code == 0
        two.script("COMMIT")
        case.sql("INSERT INTO t VALUES (104, 'later')")
        assert case.capture().code == 0
        one.script("UPDATE t SET v = 'changed' WHERE id = 102")
        one.script("COMMIT")
    case.sync()
    streamed = [key for op, key, _ in case.history("t") if op != "r"]
    assert streamed == [103, 102, 104, 101, 102]
    seen("in the order of commits, across restarts of the connector; nothing of an open transaction before its end")
