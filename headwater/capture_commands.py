"""Commands of the change stream: capture."""

from __future__ import annotations

import signal
import sys
import threading
import time
from datetime import UTC, datetime
from types import FrameType

import click

from headwater.session import current_settings, make_home

__all__ = ["capture"]


@click.command()
@click.argument("system")
@click.option("--once", is_flag=True, help="Stop when everything that there is by now is in the change log.")
@click.option("--resnapshot", multiple=True, metavar="TABLE", help="Read a table again while the rest streams.")
@click.option("--from-scratch", is_flag=True, help="Ignore the checkpoint: read every table again.")
@click.option("--accept-identity", is_flag=True, help="Go on with another server than the one captured so far.")
def capture(system: str, *, once: bool, resnapshot: tuple[str, ...], from_scratch: bool, accept_identity: bool) -> None:
    """Capture the changes of SYSTEM (shop) from HEADWATER_SHOP_URL into the change log, until stopped.

    What is in the tables already is read once, without a lock, while changes stream. SIGTERM stops cleanly; after any
    other end it goes on where it was. Lines on stderr are JSON.

    \b
    Examples:
      headwater capture shop
      headwater capture shop --once
      headwater capture shop --resnapshot orders
    """
    from streaming.capture.engine import Options
    from streaming.capture.service import AlreadyRunning, ask_to_resnapshot
    from streaming.capture.service import capture as run

    settings, stop = make_home(current_settings()), threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    options = Options(from_scratch=from_scratch, accept_identity=accept_identity, resnapshot=resnapshot)
    try:
        _say("capture begins", system=system)
        run(settings, system, options, stop, _say, once=once)
        _say("capture has stopped; everything up to here is in the log", system=system)
    except AlreadyRunning as error:
        if not resnapshot or once or from_scratch or accept_identity:
            raise
        ask_to_resnapshot(settings, system, resnapshot)
        click.echo(f"{error}. It was asked to read {', '.join(resnapshot)} again", err=True)


def _say(text: str, **more: str) -> None:
    """One line of JSON for whoever collects logs."""
    import orjson

    at = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    sys.stderr.buffer.write(orjson.dumps({"at": at, "event": text, **more}) + b"\n")
    sys.stderr.flush()
