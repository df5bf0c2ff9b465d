"""The random kills in small, and that they notice it when the code is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.random_kills import Plan, play


@pytest.mark.parametrize(
    ("database", "log"),
    [
        ("postgresql", "kafka"),
        pytest.param("postgresql", "embedded", marks=pytest.mark.representative),
        ("mariadb", "kafka"),
        ("mariadb", "embedded"),
    ],
)
def test_nothing_is_lost_and_nothing_is_there_twice(database: str, log: str, tmp_path: Path) -> None:
    result = play(Plan(database, seed=11, kills=4, gap_s=1.0, log=log), tmp_path)
    assert result.problems == []
    assert (len(result.kills), result.lost, result.duplicates) == (4, 0, 0)


@pytest.mark.parametrize(
    ("mutation", "only", "found"),
    [
        ("offset_before_write", "lander", "lost"),
        ("checkpoint_before_send", "connector", "lost"),
        ("no_dedupe", "connector", "duplicates"),
    ],
)
def test_broken_code_is_noticed(mutation: str, only: str, found: str, tmp_path: Path) -> None:
    plan = Plan(
        "postgresql", seed=5, kills=4, log="embedded", landers=1, gap_s=1.0, patience_s=20, only=only, mutation=mutation
    )
    result = play(plan, tmp_path)
    assert getattr(result, found) > 0, result
