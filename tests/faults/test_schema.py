"""Faults 35, 37 and 38: tables that change while they are captured."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.case import Case

Seen = Callable[[str], None]


def test_35_type_changed(case: Case, seen: Seen) -> None:
    """A column of int becomes bigint, and gets a value that int could not hold."""
    case.sql("CREATE TABLE t (id int PRIMARY KEY, v int)", "INSERT INTO t VALUES (1, 1), (2, 2)")
    case.declare("t", "id int64, v int64")
    case.sync()
    alter = case.either("ALTER TABLE t ALTER v TYPE bigint", "ALTER TABLE t MODIFY v bigint")
    case.sql(alter, "INSERT INTO t VALUES (3, 3000000000)", "UPDATE t SET v = 4000000000 WHERE id = 1")
    case.sync()
    seen("a new version of the schema, the same column of the lake; equals the source")


def test_37_partitions(case: Case, seen: Seen) -> None:
    """A partition with rows is attached, another one detached (MariaDB: exchanged, dropped), and rows change."""
    if case.is_postgresql:
        case.sql("CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)")
        case.sql("CREATE TABLE a PARTITION OF t FOR VALUES FROM (0) TO (100)")
        case.sql("CREATE TABLE b PARTITION OF t FOR VALUES FROM (100) TO (200)")
        case.sql("CREATE TABLE c (LIKE t INCLUDING ALL)", "INSERT INTO c VALUES (205, 'was there')")
    else:
        ranges = ", ".join(
            f"PARTITION {name} VALUES LESS THAN ({end})" for name, end in (("a", 100), ("b", 200), ("c", 300))
        )
        case.sql(f"CREATE TABLE t (id int PRIMARY KEY, v varchar(200)) PARTITION BY RANGE (id) ({ranges})")
        case.sql(
            "CREATE TABLE spare (id int PRIMARY KEY, v varchar(200))", "INSERT INTO spare VALUES (205, 'was there')"
        )
    case.declare("t")
    case.insert("t", 90, 120)
    case.sync()
    with case.running("capture", "shop"), case.running("land", "--every", "0.2"):
        if case.is_postgresql:
            case.sql("ALTER TABLE t ATTACH PARTITION c FOR VALUES FROM (200) TO (300)")
            case.wait_for_same()
            case.sql("ALTER TABLE t DETACH PARTITION b")
        else:
            case.sql("ALTER TABLE t EXCHANGE PARTITION c WITH TABLE spare")
            case.wait_for_same()
            case.sql("ALTER TABLE t DROP PARTITION b")
        case.sql("UPDATE t SET v = 'changed' WHERE id IN (95, 205)")
        case.wait_for_same()
    seen("rows come and go with their partitions; equals the source")


def test_38_incompatible_change(case: Case, seen: Seen) -> None:
    """A declared number becomes text with words in it, while another table goes on."""
    case.sql("CREATE TABLE t (id int PRIMARY KEY, v int)", "INSERT INTO t VALUES (1, 1)")
    case.declare("t", "id int64, v int64")
    case.make("u", 3)
    case.sync()
    alter = case.either("ALTER TABLE t ALTER v TYPE text USING v::text", "ALTER TABLE t MODIFY v varchar(20)")
    case.sql(alter, "INSERT INTO t VALUES (2, 'two')", "INSERT INTO u VALUES (10, 'goes on')")
    for done in (case.capture(), case.land()):
        assert done.code == 0, done
    (other,) = [found for found in case.verdicts() if found.table == "u"]
    assert other.is_right
    reasons = case.quarantined("t")
    assert any("v" in reason for reason in reasons)
    assert ("c", 2, "two") not in case.history("t", "change_op, id, v::VARCHAR")
    seen(f"{len(reasons)} rows of that table in quarantine with the reason; the other table equals the source")
