"""Every fault that the change stream must survive has a test on both databases, or a reason why it cannot happen."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.faults.page import Outcome, uncovered, write_page

PROJECT = Path(__file__).resolve().parents[2]


def collected() -> list[Outcome]:
    """The fault tests as if all had passed."""
    command = [sys.executable, "-m", "pytest", "tests/faults", "--collect-only", "-q"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [Outcome(line, "passed", "", "") for line in done.stdout.splitlines() if "::test_" in line]


def test_each_case_has_a_test_on_both_databases_or_a_reason_why_not() -> None:
    assert uncovered(collected()) == []


def test_the_page_keeps_what_another_run_has_seen_and_says_what_is_not_covered(tmp_path: Path) -> None:
    page = tmp_path / "faults.md"
    write_page(page, [Outcome("a.py::test_22_key[mariadb]", "passed", "Done.", "seen")])
    bare = write_page(page, [Outcome("a.py::test_22_key[postgresql]", "failed", "Done | so.", "")])
    postgresql, mariadb = [line for line in page.read_text().splitlines() if line.startswith("| 22 ")]
    assert mariadb.endswith("| Done. | seen |")
    assert postgresql.endswith("| Done \\| so. | **failed** |")
    assert "22 postgresql" in bare
    assert {"22 mariadb", "2 mariadb"}.isdisjoint(bare)
    assert {"1 postgresql", "1 mariadb"} <= set(bare)


def test_the_page_is_of_these_cases_and_all_are_covered(tmp_path: Path) -> None:
    page, written = PROJECT / "docs" / "reference" / "faults.md", tmp_path / "faults.md"
    shutil.copy(page, written)
    assert write_page(written, []) == []
    assert written.read_text() == page.read_text(), "make test-faults writes it anew"
