"""Commands that run the platform or look after the installation: run, dev, serve, check, settings, version."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime

import click

from headwater.errors import FAILED
from headwater.output import say, show_json, show_table
from headwater.session import current_settings, make_home, read_catalog

__all__ = ["check", "dev", "run", "serve", "settings", "version"]


@click.command()
@click.option("--full", is_flag=True, help="Rebuild every asset, also those whose inputs did not change.")
@click.option("--select", metavar="SELECTION", help="Only these assets, in Dagster's selection syntax.")
@click.pass_context
def run(ctx: click.Context, full: bool, select: str | None) -> None:
    """Materialise the asset graph: only what changed, unless --full.

    \b
    Examples:
      headwater run
      headwater run --full
      headwater run --select 'key:"models/churn/candidate"+'
    """
    settings = make_home(current_settings())
    from headwater.run import run as run_graph

    ctx.exit(run_graph(settings, full=full, select=select))


@click.command()
@click.pass_context
def dev(ctx: click.Context) -> None:
    """Dagster UI and daemon, prediction API and MLflow UI, until ctrl-C.

    With HEADWATER_SHOP_URL the connector and a lander too: one that is killed is started again, after one that halts
    the rest goes on.

    \b
    Example:
      headwater dev
    """
    settings = make_home(current_settings())
    from headwater.dev import dev as run_servers

    ctx.exit(run_servers(settings))


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.  [default: HEADWATER_API_PORT]")
def serve(port: int | None) -> None:
    """The prediction API alone, until ctrl-C.

    A new champion and new features are picked up without restart; if a new one is broken, the last good one goes on.

    It listens on HEADWATER_API_HOST (loopback by default: there is no access control yet). The API's own documentation
    is at /docs.

    \b
    Example:
      headwater serve --port 8080
      curl -s localhost:8080/v1/models/churn:predict -H 'content-type: application/json' \\
           -d '{"entities": [{"customer_id": 17850}]}'
    """
    settings = make_home(current_settings())  # predictions are logged there
    from serving.server import serve as run_server

    run_server(replace(settings, api_port=port or settings.api_port), read_catalog(settings))


@click.command()
@click.pass_context
def check(ctx: click.Context) -> None:
    """Validate the settings and every declaration; each problem is one line.

    A line reads `file:line: what was found, what is allowed`. Checked are the settings, the YAML files' fields, values
    and names, and what they refer to: features, algorithms with their parameters, gated tables, expectations with their
    arguments, captured tables. `headwater run` refuses the same before anything starts.

    \b
    Examples:
      headwater check
      HEADWATER_CATALOG=my/catalog headwater check
    """
    from headwater.check import problems

    found = problems(os.environ)
    for line in found:
        click.echo(line)
    if found:
        say(f"headwater: {len(found)} problem(s)")
        ctx.exit(FAILED)
    say("headwater: settings and catalog are valid")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON list instead of a table.")
def settings(as_json: bool) -> None:
    """Every setting: value, default, meaning, and where the value came from.

    \b
    Examples:
      headwater settings
      headwater settings --json
    """
    from catalog.settings import SETTINGS

    chosen = current_settings()
    rows = [
        {
            "setting": setting.env,
            "value": _written(getattr(chosen, setting.field), secret=setting.secret),
            "default": setting.default,
            "from": "environment" if setting.env in os.environ else "default",
            "meaning": setting.help,
            "allowed": setting.allowed,
        }
        for setting in SETTINGS
    ]
    if as_json:
        show_json(rows)
    else:
        show_table(list(rows[0]), [list(row.values()) for row in rows])


def _written(value: object, *, secret: bool) -> str:
    """A value as one would set it, but for a password inside it."""
    from catalog.settings import redacted

    if secret and value:
        return "***"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, datetime):
        return value.isoformat()
    return "" if value is None else redacted(str(value))


@click.command()
def version() -> None:
    """The version of Headwater.

    \b
    Example:
      headwater version
    """
    from importlib.metadata import version as installed

    click.echo(installed("headwater"))
