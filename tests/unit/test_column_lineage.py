"""Column lineage out of SQL."""

from __future__ import annotations

import pytest

from lake.column_lineage import SourceColumn, column_lineage

LINES = {("raw_shop", "lines"): {"customer_id": "bigint", "quantity": "bigint", "price": "double", "kind": "varchar"}}


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("select quantity as units from raw_shop.lines", {"units": {"quantity"}}),
        (
            "select quantity * price as amount, 1 as one from raw_shop.lines",
            {"amount": {"quantity", "price"}, "one": set()},
        ),
        (
            "with a as (select customer_id, sum(price) over (partition by kind) as p from raw_shop.lines) "
            "select customer_id, max(p) as top from a group by customer_id",
            {"customer_id": {"customer_id"}, "top": {"price", "kind"}},
        ),
        (
            "select x from (select quantity as x from raw_shop.lines union all select customer_id from raw_shop.lines)",
            {"x": {"quantity", "customer_id"}},
        ),
        ('select * from "warehouse"."raw_shop"."lines"', {c: {c} for c in LINES[("raw_shop", "lines")]}),
    ],
)
def test_every_column_is_traced_to_the_columns_it_comes_from(sql: str, expected: dict[str, set[str]]) -> None:
    found = column_lineage(sql, LINES)
    assert found == {
        name: tuple(sorted(SourceColumn("raw_shop", "lines", c) for c in columns)) for name, columns in expected.items()
    }
