"""docs/reference/types.md is what the connectors' tables say."""

from __future__ import annotations

from streaming.capture.type_table import PAGE, render


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == render(), "python -m streaming.capture.type_table"


def test_every_type_has_a_lake_type_that_a_source_may_declare() -> None:
    from streaming.mysql.types import rows as mariadb
    from streaming.postgres.types import rows as postgresql

    known = {"int64", "float64", "bool", "string", "json", "binary", "date", "time", "timestamp", "the same", "list<T>"}
    assert {row.lake for row in (*postgresql(), *mariadb()) if not row.lake.startswith("decimal(")} <= known
