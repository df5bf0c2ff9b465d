"""docs/reference/envelope.md shows the differences from Debezium that are declared, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.debezium.page import PAGE, main


def test_the_page_is_what_is_declared() -> None:
    assert main(["--check"]) == 0


def test_a_stale_page_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stale = tmp_path / "envelope.md"
    stale.write_text(PAGE.read_text().replace("Julian", "Gregorian", 1))
    assert main(["--check"], stale) == 1
    assert "python -m bench.debezium.page" in capsys.readouterr().err
