"""Writes docs/reference.md: every setting, command and endpoint, from the code itself.

`python -m headwater.reference` rewrites the page; with `--check` it only says whether it is up to date (exit 1 if not).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from catalog.load import load_catalog
from catalog.settings import SETTINGS, load_settings

__all__ = ["PAGE", "main", "render"]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference.md"


def render() -> str:
    """The page's text."""
    return "\n".join(
        [
            "# Reference",
            "",
            "Written by `python -m headwater.reference`; a test keeps it in step with the code.",
            *_settings(),
            *_commands(),
            *_endpoints(),
            "",
        ]
    )


def _settings() -> Iterator[str]:
    yield from ("", "## Settings", "", "| variable | default | meaning | allowed |", "|---|---|---|---|")
    for setting in SETTINGS:
        default = f"`{setting.default}`" if setting.default else "empty"
        yield f"| `{setting.env}` | {default} | {setting.help} | {setting.allowed} |"


def _commands() -> Iterator[str]:
    from headwater.cli import cli

    yield from ("", "## Commands", "", "| command | what it does |", "|---|---|")
    for name, command in _walk(cli, "headwater"):
        arguments = " ".join(p.human_readable_name for p in command.params if isinstance(p, click.Argument))
        options = " ".join(
            f"[{p.opts[0]}]" for p in command.params if isinstance(p, click.Option) and p.opts != ["--help"]
        )
        call = " ".join(part for part in (name, arguments, options) if part)
        yield f"| `{call}` | {command.get_short_help_str(200)} |"


def _walk(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    for child, found in sorted(command.commands.items()):
        yield from _walk(found, f"{name} {child}")


def _endpoints() -> Iterator[str]:
    from serving.app import create_app

    settings = load_settings({})
    schema = create_app(settings, load_catalog(settings.catalog)).openapi()
    yield from ("", "## Endpoints of the prediction API", "", "| endpoint | what it answers |", "|---|---|")
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield f"| `{method.upper()} {path}` | {operation['summary']} |"


def main(arguments: Sequence[str], page: Path = PAGE) -> int:
    """Write the page, or compare it with `--check`. Returns the exit status."""
    wanted = render()
    if "--check" not in arguments:
        page.write_text(wanted, encoding="utf-8")
        return 0
    if page.is_file() and page.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{page.name} is not what the code says: run `python -m headwater.reference`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
