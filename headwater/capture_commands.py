"""Commands of the change stream: capture, status."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

import click

from headwater.errors import FAILED, OK, NotThereYet, exit_code
from headwater.output import say, show_json, show_table
from headwater.service import log_line, stopped_by_signals
from headwater.session import current_settings, make_home, read_catalog

if TYPE_CHECKING:
    from catalog.settings import Settings
    from streaming.stream_status import StreamStatus

__all__ = ["capture", "status"]


@click.command()
@click.argument("system")
@click.option("--once", is_flag=True, help="Stop when everything that there is by now is in the change log.")
@click.option("--resnapshot", multiple=True, metavar="TABLE", help="Read a table again while the rest streams.")
@click.option("--from-scratch", is_flag=True, help="Ignore the checkpoint: read every table again.")
@click.option("--accept-identity", is_flag=True, help="Go on with another server than the one captured so far.")
def capture(system: str, *, once: bool, resnapshot: tuple[str, ...], from_scratch: bool, accept_identity: bool) -> None:
    """Capture the changes of SYSTEM (shop) from HEADWATER_SHOP_URL into the change log, until stopped.

    What is in the tables already is read once, without a lock, while changes stream. SIGTERM stops cleanly; after any
    other end it goes on where it was. Lines on stderr are JSON. Exit code 1 when a table was refused.

    \b
    Examples:
      headwater capture shop
      headwater capture shop --once
      headwater capture shop --resnapshot orders
    """
    from streaming.capture.credentials import AddressError
    from streaming.capture.engine import Options
    from streaming.capture.errors import CaptureError
    from streaming.capture.service import AlreadyRunning, UndeclaredTable
    from streaming.capture.service import capture as run
    from streaming.log_writer import LogError

    settings, stop = make_home(current_settings()), stopped_by_signals()
    options = Options(from_scratch=from_scratch, accept_identity=accept_identity, resnapshot=resnapshot)
    try:
        log_line("capture begins", system=system)
        done = run(settings, system, options, stop, log_line, once=once)
    except UndeclaredTable as error:
        raise click.BadParameter(str(error), param_hint="--resnapshot") from None
    except AlreadyRunning as error:
        if not resnapshot or once or from_scratch or accept_identity:
            _refuse(system, error)
        _ask_again(settings, system, resnapshot)
        log_line(f"{error}. It was asked to read {', '.join(resnapshot)} again", system=system)
        return
    except (CaptureError, LogError, AddressError) as error:
        _refuse(system, error)
    where = "everything up to here is in the log" if done.connected else "it had not reached the database or the log"
    log_line(f"capture has stopped; {where}", system=system)
    raise SystemExit(FAILED if done.refused else OK)


def _ask_again(settings: Settings, system: str, tables: tuple[str, ...]) -> None:
    from streaming.capture.service import UndeclaredTable, ask_to_resnapshot

    try:
        ask_to_resnapshot(settings, system, tables)
    except UndeclaredTable as error:
        raise click.BadParameter(str(error), param_hint="--resnapshot") from None


def _refuse(system: str, error: Exception) -> NoReturn:
    """The last line: what is wrong, what to do, and the page about it, as far as these are known."""
    from streaming.capture.errors import Halt

    what = {"problem": str(error)}
    if isinstance(error, Halt):
        page = f"docs/runbooks/{error.runbook}.md"
        what = {"problem": error.found, "remedy": error.remedy, "runbook": page}
    log_line("capture has halted", system=system, **what)
    raise SystemExit(exit_code(type(error)))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--prometheus", is_flag=True, help="As Prometheus metrics.")
def status(*, as_json: bool, prometheus: bool) -> None:
    """How the change stream is: each source and each consumer, how far behind, and what to do about what is wrong.

    Exit code 1 when something is wrong: each problem is a line on stderr.

    \b
    Examples:
      headwater status
      headwater status --json
      headwater status --prometheus > /var/lib/node_exporter/headwater.prom
    """
    from catalog.clock import ClockError
    from lake import Lake
    from streaming.log_writer import LogError
    from streaming.open_log import has_log, open_log
    from streaming.prometheus import prometheus_text
    from streaming.stream_status import ASKED_WITHIN_S, stream_status, without_log

    settings = current_settings()
    if not has_log(settings):
        raise NotThereYet(f"there is no change log in {settings.home} yet: `headwater run` or `headwater capture shop`")
    try:
        now = settings.clock().now()
    except ClockError:
        now = datetime.now(UTC).replace(tzinfo=None)
    catalog, lake = read_catalog(settings), Lake(settings.lake_dir)
    try:
        found = stream_status(settings, catalog, open_log(settings, patience_s=ASKED_WITHIN_S), lake, now)
    except LogError as error:
        found = without_log(settings, catalog, error, lake, now)
    if prometheus:
        click.echo(prometheus_text(found), nl=False)
    elif as_json:
        show_json(found.as_json())
    else:
        _show(found)
    for line in (*found.problems, *(f"warning: {warning}" for warning in found.warnings)):
        say(line)
    raise SystemExit(FAILED if found.problems else OK)


def _show(found: StreamStatus) -> None:
    if found.sources:
        columns = ["source", "state", "position", "sent rows", "rows/s", "last event", "lag rows", "lag bytes", "lag s",
                   "retained bytes"]  # fmt: skip
        show_table(
            columns,
            [
                [s.system, s.state, _place(s.position), s.sent_rows, s.rows_per_s, s.last_event_at,
                 _about(s.lag_rows), s.lag_bytes, s.lag_s, s.retained_bytes]
                for s in found.sources
            ],
        )  # fmt: skip
        tables = [[s.system, name, at["state"], at["rows"]] for s in found.sources for name, at in s.tables.items()]
        tables += [[s.system, name, "refused", 0] for s in found.sources for name in s.refused]
        click.echo()
        show_table(["source", "table", "snapshot", "snapshot rows"], tables)
        click.echo()
    if found.log_problem:
        return
    columns = ["topic", "table", "rows", "rows/s", "last event", "quarantined", "lag rows", "lag bytes", "lag s"]
    values = attrgetter(
        "topic", "table", "rows", "rows_per_s", "last_event_at", "quarantined_rows", "lag_rows", "lag_bytes", "lag_s"
    )
    show_table(columns, [values(consumer) for consumer in found.consumers])
    if dead := [[d.system, table, count] for d in found.dead_letters for table, count in d.waiting.items()]:
        click.echo()
        show_table(["system", "table", "dead letters"], dead)


def _about(rows: int | None) -> str | None:
    return f"~{rows}" if rows else None if rows is None else "0"


def _place(position: Mapping[str, Any]) -> str:
    """Where in the server's log: MariaDB's has files, and more to say than fits into a table."""
    if "file" in position:
        return f"{position['file']}:{position['pos']}"
    return " ".join(map(str, position.values()))
