"""How dbt's macros make state of a history of changes: by place in the source's history, tables emptied in between."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import duckdb
import jinja2
import pytest

from lake.schema import DBT_PROJECT_DIR

MACROS = (DBT_PROJECT_DIR / "macros" / "changes.sql").read_text(encoding="utf-8")
T0 = datetime(2024, 1, 1)
SNAPSHOT = 0x3FFFFFFF
# op, key, value, epoch, position, order, partition; the offset and the landing time follow from the place in the list.
Change = tuple[str, int | None, str | None, int, int, int, int]


def rows(macro: str, changes: list[Change], columns: str, named: str = "['k']") -> list[tuple[Any, ...]]:
    sql = jinja2.Environment().from_string(MACROS + "{{ " + macro + "('history', " + named + ") }}").render()
    with duckdb.connect() as db:
        db.execute(
            """CREATE TABLE history (change_op VARCHAR, k BIGINT, v VARCHAR, source_epoch BIGINT,
            source_position BIGINT, source_order BIGINT, log_partition BIGINT, log_offset BIGINT,
            landed_at TIMESTAMP)"""
        )
        db.executemany(
            "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(*change, offset, T0 + timedelta(days=offset)) for offset, change in enumerate(changes)],
        )
        return db.sql(f"SELECT {columns} FROM ({sql}) ORDER BY ALL").fetchall()


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ([("c", 1, "a", 1, 5, 1, 0), ("u", 1, "b", 1, 5, 2, 0)], [(1, "b")]),
        ([("u", 1, "b", 1, 5, 2, 0), ("c", 1, "a", 1, 5, 1, 0)], [(1, "b")]),  # late and overtaken
        ([("r", 1, "old", 1, 4, SNAPSHOT, 0), ("u", 1, "new", 1, 5, 1, 0)], [(1, "new")]),
        ([("u", 1, "new", 1, 5, 1, 0), ("r", 1, "old", 1, 4, SNAPSHOT, 0)], [(1, "new")]),  # never undoes a change
        ([("u", 1, "new", 1, 5, 1, 0), ("r", 1, "newer", 1, 5, SNAPSHOT, 0)], [(1, "newer")]),
        ([("c", 1, "a", 1, 900, 1, 0), ("c", 1, "b", 2, 3, 1, 0)], [(1, "b")]),  # another server
        ([("c", 1, "a", 1, 1, 1, 0), ("t", None, None, 1, 2, 1, 0)], []),
        ([("c", 1, "a", 1, 1, 1, 0), ("t", None, None, 1, 2, 1, 0), ("c", 1, "b", 1, 3, 1, 0)], [(1, "b")]),
        ([("c", 1, "a", 1, 1, 1, 0), ("t", None, None, 1, 2, 1, 1)], [(1, "a")]),  # not yet in this partition
        ([("t", None, None, 1, 2, SNAPSHOT, 0), ("r", 1, "a", 1, 2, SNAPSHOT, 0)], [(1, "a")]),
        ([("r", 1, "a", 1, 2, SNAPSHOT, 0), ("t", None, None, 1, 2, SNAPSHOT, 0)], []),
        ([("c", 1, "a", 1, 1, 1, 0), ("d", 1, None, 1, 2, 1, 0)], []),
    ],
)
def test_current_rows(changes: list[Change], state: list[tuple[Any, ...]]) -> None:
    assert rows("current_rows", changes, "k, v") == state


def test_rows_without_key_are_there_as_often_as_they_came() -> None:
    changes: list[Change] = [
        ("c", 9, "gone", 1, 1, 1, 0),
        ("t", None, None, 1, 2, SNAPSHOT, 0),
        *[("r", 1, "a", 1, 2, SNAPSHOT, 0)] * 3,
        ("r", 2, None, 1, 2, SNAPSHOT, 0),
        ("d", 1, "a", 1, 3, 1, 0),
        ("u", 1, "b", 1, 3, 1, 0),
        ("d", 2, None, 1, 3, 2, 0),
        ("c", None, None, 1, 3, 3, 0),
    ]
    found = rows("current_copies", changes, "k, v", "['k', 'v']")
    assert found == [(1, "a"), (1, "a"), (1, "b"), (None, None)]


def test_versions_end_when_the_table_is_emptied() -> None:
    changes: list[Change] = [
        ("c", 1, "a", 1, 1, 1, 0),
        ("c", 2, "x", 1, 1, 2, 0),
        ("u", 1, "b", 1, 2, 1, 0),
        ("t", None, None, 1, 3, 1, 0),
        ("c", 1, "c", 1, 4, 1, 0),
    ]
    day = [T0 + timedelta(days=n) for n in range(5)]
    assert rows("versions", changes, "k, v, known_from, known_to") == [
        (1, "a", day[0], day[2]),
        (1, "b", day[2], day[3]),
        (1, "c", day[4], None),
        (2, "x", day[1], day[3]),
    ]


def test_versions_leave_out_what_was_overtaken() -> None:
    changes: list[Change] = [("u", 1, "b", 1, 5, 2, 0), ("r", 1, "a", 1, 5, 1, 0), ("u", 1, "c", 2, 1, 1, 0)]
    assert [v for v, *_ in rows("versions", changes, "v, known_from")] == ["b", "c"]


PROFILE = DBT_PROJECT_DIR / "models" / "features" / "customer" / "features_customer__profile.sql"


def test_a_customers_profile_is_null_from_when_the_table_was_emptied() -> None:
    sql = jinja2.Environment().from_string(PROFILE.read_text(encoding="utf-8")).render(source=lambda *_: "customers")
    day = [T0 + timedelta(days=n) for n in range(6)]
    changes = [  # op, customer, country, day, position, partition
        ("c", 1, "France", 0, 1, 0),
        ("c", 2, "Eire", 1, 2, 0),
        ("c", 3, "Spain", 1, 2, 1),  # in a partition of which nothing is known yet
        ("u", 1, "Norway", 2, 3, 0),
        ("t", None, None, 3, 4, 0),
        ("r", 2, "Malta", 3, 4, 0),  # read again at the very instant
        ("d", 2, None, 4, 5, 0),
        ("t", None, None, 5, 6, 0),
    ]
    with duckdb.connect() as db:
        db.execute(
            """CREATE TABLE customers (change_op VARCHAR, customer_id BIGINT, country VARCHAR, registered_at TIMESTAMP,
            event_at TIMESTAMP, landed_at TIMESTAMP, source_epoch BIGINT, source_position BIGINT, source_order BIGINT,
            log_partition BIGINT, log_offset BIGINT)"""
        )
        db.executemany(
            "INSERT INTO customers VALUES (?, ?, ?, ?, ?, ?, 1, ?, 0, ?, ?)",
            [
                (op, customer, country, T0 if country else None, day[at], day[at], position, partition, offset)
                for offset, (op, customer, country, at, position, partition) in enumerate(changes)
            ],
        )
        found = db.sql(f"SELECT customer_id, country, created_timestamp FROM ({sql}) ORDER BY 1, 3").fetchall()
    assert found == [
        *((1, country, day[at]) for country, at in (("France", 0), ("Norway", 2), (None, 3))),
        *((2, country, day[at]) for country, at in (("Eire", 1), ("Malta", 3), (None, 4), (None, 5))),
        (3, "Spain", day[1]),
    ]
