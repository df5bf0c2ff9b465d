"""Commands that play the shop on a real database: shop replay, shop run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headwater.output import say
from headwater.service import stopped_by_signals
from headwater.session import current_settings, make_home

if TYPE_CHECKING:
    from datetime import datetime

    from streaming.capture.credentials import Address
    from streaming.shop_database.replay import Progress, Report
    from streaming.shop_database.workload import Totals

__all__ = ["shop"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
# Not HEADWATER_SHOP_URL: that is where changes are read from, and nobody should write there by leaving something out.
_url = click.option(
    "--url", required=True, metavar="URL", help="postgresql://user@host:port/database or mysql://... to write into."
)
_password_file = click.option(
    "--password-file", type=_FILE, help="Holds the password.  [default: HEADWATER_SHOP_PASSWORD, or ..._FILE]"
)


def _positive(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value < 1e9:
        raise click.BadParameter(f"found {value:g}, allowed is a number above 0")
    return value


def _instant(ctx: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    from catalog.clock import parse_instant

    try:
        return parse_instant(value) if value else None
    except ValueError:
        raise click.BadParameter(f"found {value!r}, allowed is an ISO 8601 instant such as 2011-09-10T00:00") from None


def _place(url: str, password_file: Path | None) -> Address:
    """Where to write; the file that was named counts before the settings, and the URL's own password before both."""
    from streaming.capture.credentials import parse_address

    if password_file:
        return parse_address(url, password_file=password_file)
    settings = current_settings()
    return parse_address(url, password=settings.shop_password or "", password_file=settings.shop_password_file)


@click.group()
def shop() -> None:
    """The shop on a database of its own: history replayed, or life simulated."""


@shop.command("replay")
@click.argument("file", type=_FILE, required=False)
@_url
@_password_file
@click.option("--until", callback=_instant, metavar="INSTANT", help="Only what landed by then.  [default: all]")
@click.option("--rate", type=float, callback=_positive, help="Rows a second.  [default: as fast as it goes]")
@click.option(
    "--relax-server", is_flag=True, help="MariaDB: the whole server does not wait for the disk while this loads."
)
def replay_command(
    file: Path | None,
    url: str,
    password_file: Path | None,
    until: datetime | None,
    rate: float | None,
    relax_server: bool,
) -> None:
    """Load a retail file as the transactions that the shop would have run.

    FILE is .parquet, .csv or .xlsx in the UCI Online Retail schema; without it HEADWATER_RETAIL_DATA is replayed, or
    the simulated shop. The tables are made if missing. A run that was stopped or killed goes on where it was; the same
    file again, or a longer one that begins with it, adds only what is new.

    \b
    Examples:
      headwater shop replay --url postgresql://shop@localhost/shop
      headwater shop replay online_retail.csv --url mysql://shop@localhost/shop --until 2011-09-10T00:00
    """
    settings = make_home(current_settings())
    place = _place(url, password_file)
    from streaming.shop_database.replay import Options, replay_shop
    from streaming.source import source_lines

    lines = source_lines(replace(settings, retail_data=file) if file else settings)
    options = Options(until or settings.now, rate, relax_server)
    _show_report(replay_shop(lines, place, options, _show_progress))


def _show_progress(at: Progress) -> None:
    say(f"headwater: {at.lines:,} of {at.of_lines:,} lines, {at.rows:,} rows written")


def _show_report(report: Report) -> None:
    for rows in report.left_out:
        say(f"headwater: {rows}")
    until = f", until {report.last_event_at.isoformat()}" if report.last_event_at else ""
    say(
        f"headwater: {report.lines:,} of the source's {report.input_lines:,} lines are in the shop{until}; "
        f"this run wrote {report.rows:,} rows in {report.transactions:,} transactions"
    )


@shop.command("run")
@_url
@_password_file
@click.option("--rate", type=float, default=200, show_default=True, callback=_positive, help="Rows a second, about.")
@click.option("--seed", type=int, default=7, show_default=True, help="Another seed, other transactions.")
@click.option("--workers", type=click.IntRange(1, 100), default=4, show_default=True, help="Connections at once.")
@click.option("--seconds", type=float, callback=_positive, help="Stop after that time.  [default: when stopped]")
def run_command(
    url: str, password_file: Path | None, rate: float, seed: int, workers: int, seconds: float | None
) -> None:
    """A living shop, until ctrl-C or SIGTERM.

    Orders of several lines, price changes, refunds in full and in part, cancelled orders, customers who move or get
    another number, transactions that are rolled back in part or as a whole, and some that stay open while others
    commit. A line on stderr each second says what was done so far. It goes on when the database was away.

    \b
    Examples:
      headwater shop run --url postgresql://shop@localhost/shop --rate 200
      headwater shop run --url mysql://shop@localhost/shop --seed 11 --seconds 60
    """
    import time

    place = _place(url, password_file)
    from streaming.shop_database.workload import Workload

    stop, started = stopped_by_signals(), time.monotonic()

    def show(totals: Totals) -> None:
        say(f"{time.monotonic() - started:6.0f} s  {_counted(totals)}")

    totals = Workload(place, seed, workers, rate).run(stop, seconds=seconds, on_second=show)
    say(f"headwater: the shop has closed: {_counted(totals)}")
    for kind, count in totals.kinds.items():
        say(f"  {kind.replace('_', ' '):<18} {count:>9,}")


def _counted(totals: Totals) -> str:
    text = f"{totals.transactions:,} transactions  {totals.rows:,} rows  {totals.rollbacks:,} rolled back"
    rare = {
        "conflicts": totals.conflicts,
        "rejected": totals.rejected,
        "commits unanswered": totals.unknown,
        "reconnections": totals.reconnects,
    }
    return "  ".join([text, *(f"{count:,} {name}" for name, count in rare.items() if count)])
