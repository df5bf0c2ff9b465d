"""Commands of the landing: land."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from headwater.errors import FAILED, OK
from headwater.session import current_settings, make_home, read_catalog

if TYPE_CHECKING:
    from catalog.settings import Settings
    from catalog.spec import Source

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
def land(*, once: bool, every_s: float) -> None:
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

    settings, stop = make_home(current_settings()), threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    log, lake = open_log(settings), Lake(settings.lake_dir, settings.lake_version_days)
    options = Options(settings.landing_batch_rows, every_s)
    _say("landing begins", log=_shown(settings))
    try:
        if once:
            found = land_once(read_catalog(settings).sources, log, lake, options, _say)
            refused = [key for key, outcome in found.items() if isinstance(outcome, str)]
        else:
            refused = list(Lander(_declared(settings), log, lake, options, _say).run(stop))
    finally:
        log.close()
    _say("landing has stopped", refused=[key.dotted for key in refused])
    raise SystemExit(FAILED if refused else OK)


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


def _say(event: str, **more: Any) -> None:
    """One line of JSON for whoever collects logs."""
    import orjson

    at = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    sys.stderr.buffer.write(orjson.dumps({"at": at, "event": event, **more}) + b"\n")
    sys.stderr.flush()
