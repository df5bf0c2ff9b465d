"""Commands of the landing: land."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from headwater.errors import FAILED, OK
from headwater.service import log_line, stopped_by_signals
from headwater.session import current_settings, make_home, read_catalog

if TYPE_CHECKING:
    from catalog.settings import Settings
    from catalog.spec import Source
    from lake.tables import Lake
    from streaming.log import ChangeLog

__all__ = ["land"]


@click.command()
@click.option("--once", is_flag=True, help="Stop when everything that is in the change log by now has landed.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0.0, 3600.0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often a table is written to while little changes.",
)
@click.option(
    "--accept-log",
    "accepted",
    multiple=True,
    metavar="TABLE",
    help="Go on in the topic as it is, though it was made anew since TABLE was landed: for one that was brought back.",
)
def land(*, once: bool, every_s: float, accepted: tuple[str, ...]) -> None:
    """Land the change log in the lake's raw tables, until stopped.

    Several may run at once: they share the log's partitions. SIGTERM stops cleanly; after any other end it goes on
    where it was, and nothing lands twice. Lines on stderr are JSON. Exit code 1 when a table was refused.

    \b
    Examples:
      headwater land
      headwater land --once
    """
    from lake.tables import Lake
    from streaming.landing_service import Lander, Options, land_once
    from streaming.open_log import open_log

    settings, stop = make_home(current_settings()), stopped_by_signals()
    log, lake = open_log(settings), Lake(settings.lake_dir, settings.lake_version_days)
    options = Options(settings.landing_batch_rows, every_s)
    log_line("landing begins", log=_shown(settings))
    try:
        _accept(accepted, read_catalog(settings).sources, log, lake)
        if once:
            found = land_once(read_catalog(settings).sources, log, lake, options, log_line)
            refused = [key for key, outcome in found.items() if isinstance(outcome, str)]
        else:
            refused = list(Lander(_declared(settings), log, lake, options, log_line).run(stop))
    finally:
        log.close()
    log_line("landing has stopped", refused=[key.dotted for key in refused])
    raise SystemExit(FAILED if refused else OK)


def _accept(tables: Sequence[str], sources: Sequence[Source], log: ChangeLog, lake: Lake) -> None:
    from streaming.landing import contract_of
    from streaming.landing_batches import accept_log

    if unknown := sorted(set(tables) - {source.table for source in sources}):
        declared = ", ".join(sorted(source.table for source in sources))
        raise click.BadParameter(f"found {', '.join(unknown)}; declared are {declared}", param_hint="--accept-log")
    for contract in (contract_of(source) for source in sources if source.table in tables):
        accept_log(contract, log, lake)
        log_line("log accepted", table=contract.table.dotted)


def _shown(settings: Settings) -> str:
    from streaming.open_log import shown_address

    return shown_address(settings)


def _declared(settings: Settings) -> Callable[[], Sequence[Source]]:
    """Reads the declarations again when one of their files has changed, and only then."""
    before: list[tuple[str, int]] = []
    sources: list[Sequence[Source]] = [()]

    def read() -> Sequence[Source]:
        now = sorted((f.name, f.stat().st_mtime_ns) for f in (settings.catalog / "sources").glob("*.yaml"))
        if now != before:
            before[:], sources[0] = now, read_catalog(settings).sources
        return sources[0]

    return read
