"""Commands that look after models: what there is, where it comes from, who decided, and whether the world has moved."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headwater.errors import NotThereYet, Refused
from headwater.output import say, show_json, show_table
from headwater.session import current_settings, declared_model, expect_writable, read_catalog

if TYPE_CHECKING:
    from catalog.settings import Settings
    from ml.registry import Promotion, Registry

__all__ = ["approve", "drift", "lineage", "models", "rollback"]

_JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


@click.command()
@_JSON
def models(as_json: bool) -> None:
    """Every model's versions: aliases, gate, who promoted them, what serves.

    \b
    Examples:
      headwater models
      headwater models --json
    """
    settings = current_settings()
    catalog = read_catalog(settings)
    registry = _registry(settings)
    rows = [row for model in catalog.models for row in _versions(registry, settings.endpoints_dir, model.name)]
    if not rows:
        raise NotThereYet("no version is registered: `headwater run` trains once there is history enough")
    if as_json:
        show_json(rows)
    else:
        show_table(list(rows[0]), [list(row.values()) for row in rows])


def _versions(registry: Registry, endpoints: Path, model: str) -> list[dict[str, Any]]:
    served = _served_version(endpoints, model)
    rows = []
    for version in registry.versions(model):
        traced = registry.lineage(model, version)
        rows.append(
            {
                "model": model,
                "version": version,
                "aliases": " ".join(traced.aliases),
                "serves": "yes" if version == served else "no",
                "gate": traced.gate,
                "trained_by": traced.trained_by,
                "trained_at": traced.trained_at,
                "promoted_by": traced.promoted_by,
                "approved_by": traced.approved_by,
            }
        )
    return rows


def _served_version(endpoints: Path, model: str) -> str | None:
    from ml.predictor import MissingPackage, current_folder

    try:
        return current_folder(endpoints, model).name
    except MissingPackage:
        return None


@click.command()
@click.argument("model")
@click.option("--version", metavar="N", help="A version of the registry.  [default: the champion, else the candidate]")
@_JSON
def lineage(model: str, version: str | None, as_json: bool) -> None:
    """Where a version comes from: run, data, code, parameters, metrics, approver.

    \b
    Examples:
      headwater lineage churn
      headwater lineage churn --version 2 --json
    """
    settings = current_settings()
    declared_model(read_catalog(settings), model)
    traced = _registry(settings).lineage(model, version)
    click.echo(traced.to_json() if as_json else traced.describe())


@click.command()
@click.argument("model")
@click.argument("version")
@click.option("--by", required=True, metavar="NAME", help="Who approves; may have to differ from who trained.")
@click.option("--note", required=True, metavar="TEXT", help="Why; kept with the version.")
def approve(model: str, version: str, by: str, note: str) -> None:
    """Make VERSION of MODEL the champion and deploy it.

    Refused when the version did not pass its gate, or when its trainer may not approve it.

    \b
    Example:
      headwater approve churn 3 --by alice --note "better on new customers, checked the card"
    """
    settings = current_settings()
    declared = declared_model(read_catalog(settings), model)
    registry = _registry_to_write(settings, model)
    _deploy(settings, registry, registry.approve(declared, version, by, note, settings.clock().now()))


@click.command()
@click.argument("model")
@click.option("--by", metavar="NAME", help="Who decides.  [default: HEADWATER_ACTOR]")
@click.option("--note", metavar="TEXT", default="rolled back", show_default=True, help="Why; kept with the version.")
def rollback(model: str, by: str | None, note: str) -> None:
    """Return MODEL to the champion before the present one, and deploy it.

    \b
    Example:
      headwater rollback churn --note "support reports odd scores"
    """
    settings = current_settings()
    declared_model(read_catalog(settings), model)
    registry = _registry_to_write(settings, model)
    _deploy(settings, registry, registry.rollback(model, by or settings.actor, note, settings.clock().now()))


def _deploy(settings: Settings, registry: Registry, promoted: Promotion) -> None:
    """Serve what was just made champion, by the very function that the endpoint's asset calls."""
    deployed = registry.deploy_champion(promoted.model, settings.endpoints_dir)
    before = f", was {promoted.previous}" if promoted.previous else ""
    say(f"headwater: {promoted.model} {promoted.version} is champion{before}; by {promoted.by}: {promoted.note}")
    say(f"headwater: {deployed.folder} serves, {deployed.golden_rows} golden rows verified")


def _registry(settings: Settings) -> Registry:
    """The registry, which must exist: opening it would make an empty one."""
    path = Path(settings.mlflow_uri.removeprefix("sqlite:///"))
    if not path.exists():
        raise NotThereYet(f"no registry at {path}: run `headwater run` first")
    from ml.registry import Registry

    return Registry.open(settings)


def _registry_to_write(settings: Settings, model: str) -> Registry:
    """The registry, for a change of champion. The next run looks anew at who is, whatever becomes of this process."""
    registry = _registry(settings)
    expect_writable(settings)
    from catalog import keys
    from lake.ledger import Ledger

    for key in (keys.champion(model), keys.endpoint(model)):
        Ledger(settings.ledger_path).forget(key.slashed)
    return registry


@click.group()
def drift() -> None:
    """Make the population drift, and see whether it did."""


_FACTOR = click.FloatRange(0, 1000, min_open=True, max_open=True)


@drift.command()
@click.option("--weeks", type=click.IntRange(1, 52), default=4, show_default=True, help="For how long.")
@click.option("--factor", type=_FACTOR, default=3.0, show_default=True, help="By how much quantities grow.")
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="Another seed, other orders.")
def inject(weeks: int, factor: float, seed: int) -> None:
    """Append weeks of changed buying to the change log, after its last event.

    Existing customers order twice as often and in larger quantities: real changes in the same envelopes as the
    replay's, which move its clock. The next run sees them; so does the drift sensor.

    \b
    Example:
      headwater drift inject --weeks 4 --factor 3
      headwater run
      headwater drift status
    """
    settings = current_settings()
    from streaming.open_log import has_log, open_log

    if settings.shop_url:
        raise Refused("found HEADWATER_SHOP_URL set: drift is injected into a replay, not into a database")
    if not has_log(settings):
        raise NotThereYet(f"no change log at {settings.log_path}: run `headwater run` first")
    expect_writable(settings)
    from lake import Lake
    from streaming.inject import inject_drift

    with closing(open_log(settings)) as log:
        done = inject_drift(log, Lake(settings.lake_dir), settings.replay_path, weeks=weeks, factor=factor, seed=seed)
    say(
        f"headwater: {done.orders} orders with {done.lines} lines, quantities x {done.factor:g}, "
        f"from {done.since.isoformat()} to {done.last_event_at.isoformat()}; `headwater run` takes them in"
    )


@drift.command()
@click.argument("model", required=False)
@_JSON
def status(model: str | None, as_json: bool) -> None:
    """What monitoring.<model>.drift says of MODEL, or of every model; computes nothing.

    \b
    Examples:
      headwater drift status
      headwater drift status churn --json
    """
    from lake import Lake
    from ml.drift_status import read_status

    settings = current_settings()
    catalog = read_catalog(settings)
    chosen = (declared_model(catalog, model),) if model else catalog.models
    statuses = [read_status(Lake(settings.lake_dir), each) for each in chosen]
    if not any(each.window_end for each in statuses):
        raise NotThereYet(
            f"no window of {', '.join(each.model for each in statuses)} has been judged in {settings.lake_dir}: "
            "`headwater run` judges them once a version is deployed and there is history to compare with"
        )
    if as_json:
        show_json([each.to_json() for each in statuses])
    else:
        click.echo("\n".join(line for each in statuses for line in each.lines()))
