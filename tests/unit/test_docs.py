"""The docs say what is true: the reference is generated, README's links and commands exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from catalog.settings import SETTINGS
from headwater.check import problems
from headwater.cli import cli
from headwater.reference import PAGE, main

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]


def test_the_reference_is_what_the_code_says() -> None:
    assert main(["--check"]) == 0


def test_a_stale_reference_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stale = tmp_path / "reference.md"
    stale.write_text(PAGE.read_text().replace(SETTINGS[0].env, "HEADWATER_GONE"))
    assert main(["--check"], stale) == 1
    assert "python -m headwater.reference" in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_links_and_images_exist(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_commands_and_settings_named_in_the_docs_exist(page: Path) -> None:
    text = page.read_text()
    commands = set(re.findall(r"(?:^|`)headwater ([a-z]+)", text, flags=re.MULTILINE))
    assert commands <= set(cli.commands), commands - set(cli.commands)
    settings = set(re.findall(r"HEADWATER_[A-Z_]*[A-Z]", text))
    assert settings <= {s.env for s in SETTINGS} | {"HEADWATER_GONE"}, settings


def test_modules_named_in_the_architecture_exist() -> None:
    text = (PROJECT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`([a-z_]+/[a-z_/]*\.py|(?:[a-z_]+/)+)`", text)
    assert len(named) > 30
    assert [name for name in named if not (PROJECT / name).exists()] == []


def test_the_model_of_the_how_to_passes_the_check(tmp_path: Path) -> None:
    text = (PROJECT / "docs" / "how_to" / "add_model.md").read_text()
    example = re.search(r"```yaml\n# catalog/models/(\w+)\.yaml\n(.*?)```", text, flags=re.DOTALL)
    assert example
    shutil.copytree(PROJECT / "catalog", tmp_path / "catalog")
    (tmp_path / "catalog" / "models" / f"{example[1]}.yaml").write_text(example[2])
    environment = {"HEADWATER_CATALOG": str(tmp_path / "catalog"), "HEADWATER_HOME": str(tmp_path / "home")}
    assert problems(environment) == []
