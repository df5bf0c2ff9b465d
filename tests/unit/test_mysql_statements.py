"""What DDL in MariaDB's binary log gives to the rows that there are, read from its text."""

from __future__ import annotations

import pytest

from streaming.mysql.statements import AlteredColumn as Column
from streaming.mysql.statements import Statement, read_statement


def altered(alterations: str) -> Statement:
    return read_statement(f"ALTER TABLE `t` {alterations}", "shop")


@pytest.mark.parametrize(
    ("alterations", "columns"),
    [
        ("ADD w int", [Column("w", None, "int")]),
        ("ADD COLUMN IF NOT EXISTS `add` int(11) unsigned NULL",
         [Column("add", None, "int(11) unsigned", ("null",))]),
        ("ADD w decimal(9,2) DEFAULT NULL COMMENT 'default, x', DROP v",
         [Column("w", None, "decimal(9,2)", ("comment",))]),
        ("ADD w enum('a,b','c)') DEFAULT 'c)'", [Column("w", None, "enum('a,b','c)')", ("default",))]),
        ("ADD (a int, KEY (a), b text NOT NULL)",
         [Column("a", None, "int"), Column("b", None, "text", ("not", "null"))]),
        ("MODIFY v text FIRST", [Column("v", "v", "text", ("first",))]),
        ("CHANGE COLUMN IF EXISTS v `w` int /*!50100 unsigned */", [Column("w", "v", "int unsigned")]),
        ("RENAME COLUMN v TO w, RENAME INDEX a TO b", [Column("w", "v")]),
        ("ADD INDEX (v), ADD CONSTRAINT c CHECK (v > 0), ADD UNIQUE u (v), ALTER v SET DEFAULT 5", []),
        ("DROP COLUMN v, ENGINE = InnoDB, ALGORITHM=INPLACE", []),
    ],
)  # fmt: skip
def test_columns_that_rows_are_given(alterations: str, columns: list[Column]) -> None:
    found = altered(alterations)
    assert found.columns["shop.t"] == columns
    assert (found.altered, found.unseen, found.emptied, found.converted) == ({"shop.t"}, set(), set(), set())


@pytest.mark.parametrize("alterations", ["DROP PRIMARY KEY, ADD PRIMARY KEY (v)", "ADD w int PRIMARY KEY"])
def test_another_key_means_other_rows(alterations: str) -> None:
    assert altered(alterations).unseen == {"shop.t"}


def test_rows_that_an_index_does_not_take_are_deleted_when_ignored() -> None:
    assert read_statement("ALTER IGNORE TABLE u.t ADD UNIQUE (v)", "shop").unseen == {"u.t"}
    assert read_statement("ALTER ONLINE TABLE u.t ADD UNIQUE (v)", "shop").unseen == set()


def test_texts_are_converted() -> None:
    assert altered("CONVERT TO CHARACTER SET latin1").converted == {"shop.t"}
