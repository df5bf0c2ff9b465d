"""Faults 34 to 38: tables that change while they are captured."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from headwater.stack.server import kill, restart
from tests.faults.case import Case
from tests.faults.stand import wait_until

Seen = Callable[[str], None]
ALTERATIONS = {
    "added column w": "ALTER TABLE t ADD COLUMN w int DEFAULT 7",
    "dropped column v": "ALTER TABLE t DROP COLUMN v",
    "renamed column w to x": "ALTER TABLE t RENAME COLUMN w TO x",
}


def test_34_columns_under_load(case: Case, seen: Seen) -> None:
    """A column is added, another dropped, the first renamed, while two connections change rows and all is captured."""

    def change(rng: Random) -> str:
        key = rng.randrange(1, 3000)
        return rng.choice(
            (
                f"UPDATE t SET id = -id WHERE id BETWEEN {key} AND {key + 5}",
                f"UPDATE t SET {rng.choice('vwx')} = {rng.randrange(10_000)} WHERE id BETWEEN {key} AND {key + 5}",
                f"DELETE FROM t WHERE id = {key}",
                f"INSERT INTO t (id) VALUES ({rng.randrange(3001, 1 << 30)})",
            )
        )

    case.make("t", 3000)
    case.sync()
    with case.running("capture", "shop"), case.running("land", "--every", "0.2"):
        with case.writing(change) as written:
            for said, alteration in ALTERATIONS.items():
                before = written()
                wait_until(lambda: written() > before + 100, "rows change")  # noqa: B023
                case.sql(alteration)
                wait_until(lambda: said in case.said, "the lander has said so")  # noqa: B023
        case.wait_for_same()
    seen("each is a version of the schema, said when it lands; the columns come and go in the lake; equals the source")


def test_36_ddl_and_dml_then_a_crash(case: Case, seen: Seen) -> None:
    """Rows and columns change in one transaction (MariaDB: its DDL commits by itself), and the connector gets kill -9.

    It gets it when all is in the log and no checkpoint says so, twice. The server gets it while another one is open.
    """
    begin, commit = [["BEGIN"], ["COMMIT"]] if case.is_postgresql else [[], []]
    case.make("t", 10)
    case.sync()
    case.sql(
        *begin, "UPDATE t SET v = 'old' WHERE id = 1", "ALTER TABLE t ADD COLUMN w int",
        "INSERT INTO t VALUES (100, 'a', 1)", "UPDATE t SET w = 2 WHERE id <= 2", "ALTER TABLE t DROP COLUMN v",
        "INSERT INTO t VALUES (101, 3)", *commit,
    )  # fmt: skip
    for key in (102, 103):
        case.dies("before_checkpoint", "capture", "shop", "--once")
        case.sql(f"INSERT INTO t VALUES ({key}, 3)")
    case.sync()
    with case.running("capture", "shop"), case.running("land", "--every", "0.2"), case.connect() as altered:
        for statement in (
            *begin,
            "INSERT INTO t VALUES (200, 4)",
            "ALTER TABLE t ADD COLUMN x int",
            case.either("SELECT", "BEGIN"),
            "DELETE FROM t WHERE id = 3",
        ):
            altered.script(statement)
        kill(case.server)
        case.forget_connection()
        restart(case.server)
        case.sql("UPDATE t SET w = 9 WHERE id = 5")
        case.wait_for_same()
    case.same()
    seen("read again and told apart from what was sent already; of the open one there is nothing; equals the source")


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
    assert "'refused': 'schema 2: column v is" in done.err, done
    assert "'position': 0" not in done.err, done
    other, refused = sorted(case.verdicts(), key=lambda found: found.table == "t")
    assert other.is_right
    reasons = case.quarantined("t")
    assert refused.quarantined == len(reasons) > 0
    assert all("column v is" in reason for reason in reasons)
    assert ("c", 2, "two") not in case.history("t", "change_op, id, v::VARCHAR")
    case.sql("UPDATE t SET v = '2' WHERE id = 2")
    case.sql(case.either("ALTER TABLE t ALTER v TYPE int USING v::int", "ALTER TABLE t MODIFY v int"))
    for done in (case.capture(resnapshot=("t",)), case.land()):
        assert done.code == 0, done
    assert [(found.lost, found.duplicates) for found in case.verdicts()] == [(0, 0), (0, 0)]
    seen(
        f"{len(reasons)} rows of that table in quarantine, the lander says why; the other table equals the source; "
        "when the column is a number again, `--resnapshot t` makes this one equal, too"
    )
