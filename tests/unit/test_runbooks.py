"""Every error that needs a person names a page of docs/runbooks, and the page is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PAGES = PROJECT / "docs" / "runbooks"
PARTS = ("streaming/capture", "streaming/mysql", "streaming/postgres")
# How a page of one of the connectors is called wherever its name is given.
_NAME = re.compile(r"(?:postgresql|mariadb)(?:_[a-z]+)+")
_PATH = re.compile(r"docs/runbooks/([a-z_]+)\.md")


def named(part: str) -> set[str]:
    """The pages that the code of a package names."""
    return {page for file in sorted((PROJECT / part).rglob("*.py")) for page in _named_in(file.read_text())}


def _named_in(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if _NAME.fullmatch(node.value):
                yield node.value
            yield from _PATH.findall(node.value)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Halt", "super().__init__"):
            given = node.args[2] if len(node.args) > 2 else None
            if isinstance(given, ast.Constant):
                yield str(given.value)


def test_pages_are_found_however_an_error_names_them() -> None:
    code = """
class Lost(Halt):
    def __init__(self): super().__init__("found", "remedy", "page_one")
raise Halt("found", "remedy", "page_two")
REMEDIES = {"28P01": ("set it", "postgresql_login")}
say("look at docs/runbooks/page_three.md")
"""
    assert set(_named_in(code)) == {"page_one", "page_two", "page_three", "postgresql_login"}


@pytest.mark.parametrize("part", ["streaming/capture", "streaming/mysql", "streaming"])
def test_every_page_that_is_named_exists(part: str) -> None:
    assert named(part)
    assert sorted(page for page in named(part) if not (PAGES / f"{page}.md").exists()) == []


def test_no_page_is_left_of_an_error_that_is_gone() -> None:
    pages = {page.stem for page in PAGES.glob("*.md") if _NAME.fullmatch(page.stem)}
    assert sorted(pages - set().union(*map(named, PARTS))) == []


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda p: p.stem)
def test_a_page_says_what_was_found_and_what_to_do(page: Path) -> None:
    text = page.read_text()
    assert text.startswith("# ")
    assert "**Found**" in text
    assert re.search(r"headwater |```|HEADWATER_", text), "nothing to run or to set"
