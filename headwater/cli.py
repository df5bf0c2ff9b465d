"""The `headwater` command: which commands there are, in which order, and how an error becomes an exit code.

The commands themselves live in the `*_commands` modules, grouped as the help groups them. Nothing here or there imports
a heavy package before the command that needs it runs: `headwater --help` has to be instant.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from headwater.capture_commands import capture, status
from headwater.data_commands import features, predict, sql
from headwater.dlq_commands import dlq
from headwater.errors import reporting
from headwater.landing_commands import land
from headwater.model_commands import approve, drift, lineage, models, rollback
from headwater.platform_commands import check, dev, run, serve, settings, version
from headwater.shop_commands import shop
from headwater.source_commands import source
from headwater.stack_commands import down, up

__all__ = ["cli", "main"]

SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Run the platform": (run, dev, serve),
    "Run the local stack": (up, down, shop),
    "Capture changes": (
        capture,
        land,
        status,
        dlq,
        source,
    ),
    "Ask for data": (sql, features, predict),
    "Look after models": (models, lineage, approve, rollback, drift),
    "Look after the installation": (check, settings, version),
}

EPILOG = """\b
Examples:
  headwater run
  headwater sql "SELECT count(*) FROM marts.sales.purchase_lines"
  headwater predict churn --customer 17850
  headwater lineage churn --json

\b
Data goes to stdout, words to stderr. Exit codes:
  0  done
  1  what was asked for failed or was refused; the reason is on stderr
  2  wrong usage: an option, an argument or a HEADWATER_* setting
  3  not there yet: nothing was run, trained or deployed so far

Settings are HEADWATER_* environment variables; `headwater settings` lists them.
"""


class Sections(click.Group):
    """A group whose help shows its commands by section, and whose known errors end as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        with reporting():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(c.name or "", c.get_short_help_str(limit=80)) for c in commands])


@click.group(
    cls=Sections, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
def cli() -> None:
    """Headwater: from a changed row to a served and watched prediction, as one asset graph."""


for _commands in SECTIONS.values():
    for _command in _commands:
        cli.add_command(_command)


def main() -> None:
    """The console script."""
    sys.exit(cli.main(prog_name="headwater", standalone_mode=True))


if __name__ == "__main__":
    main()
