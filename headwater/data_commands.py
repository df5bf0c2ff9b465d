"""Commands that answer with data: sql, features (historical and online), predict."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from headwater.errors import NotThereYet, Refused
from headwater.output import say, show_json, show_table
from headwater.session import current_settings, declared_model, expect_writable, read_catalog

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from catalog.keys import Key
    from catalog.load import Catalog
    from catalog.settings import Settings
    from catalog.spec import Model
    from lake.as_of import MadeTable
    from ml.feature_plan import FeaturePlan

__all__ = ["features", "predict", "sql"]

_FILE = click.Path(dir_okay=False, path_type=Path)
_INT64 = click.IntRange(-(2**63), 2**63 - 1)
_CUSTOMER = click.option(
    "--customer", "customers", type=_INT64, multiple=True, required=True, metavar="ID", help="May be given repeatedly."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")


class _Instant(click.ParamType[datetime]):
    """An ISO 8601 instant, as naive UTC."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        from catalog.clock import parse_instant

        try:
            return parse_instant(value)
        except ValueError:
            self.fail(f"found {value!r}, allowed is an ISO 8601 instant such as 2011-09-10T00:00", param, ctx)


@click.command()
@click.argument("query")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option("--version", type=click.IntRange(0), metavar="N", help="The table as it was at Delta version N.")
@click.option("--as-of", type=_Instant(), metavar="INSTANT", help="What was known then (ISO 8601; UTC by default).")
@click.option("--event-time", is_flag=True, help="With --as-of: what had happened by then, for all that is known now.")
def sql(
    query: str,
    form: Literal["table", "csv", "json"],
    *,
    version: int | None,
    as_of: datetime | None,
    event_time: bool,
) -> None:
    """Read any table with SQL (DuckDB's dialect); nothing can be changed.

    A table's name is its asset key with dots: raw.shop.order_lines, staging.shop.orders, marts.sales.purchase_lines,
    features.customer.activity, predictions.churn.scores, monitoring.churn.drift.

    \b
    Examples:
      headwater sql "SELECT count(*) FROM marts.sales.purchase_lines"
      headwater sql "SELECT * FROM predictions.churn.scores" --format csv > scores.csv
      headwater sql "SELECT count(*) FROM marts.sales.orders" --version 3
      headwater sql "SELECT count(*) FROM marts.sales.orders" --as-of 2011-09-10T00:00
    """
    from lake import Lake
    from lake.as_of import AsOf
    from lake.query import format_rows
    from lake.query import query as read

    if as_of is not None and version is not None:
        raise click.UsageError("found --as-of and --version, allowed is one of them")
    if event_time and as_of is None:
        raise click.UsageError("found --event-time without --as-of, which says the instant")
    settings = current_settings()
    lake = Lake(settings.lake_dir)
    if not lake.root.exists():
        raise NotThereYet(f"no tables at {lake.root}: run `headwater run` first")

    def tables() -> Mapping[Key, MadeTable]:
        from lake.dbt_compiled import compiled_tables

        return compiled_tables(settings.home / "dbt" / "compiled.json")

    asked = None if as_of is None else AsOf(as_of, event_time, tables)
    click.echo(format_rows(read(lake, query, version=version, as_of=asked), form))


@click.group()
def features() -> None:
    """Feature values as known at an instant (historical) or now (online)."""


@features.command()
@click.argument("model")
@click.argument("entities", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=_FILE, required=True, metavar="OUT", help="A .parquet or .csv file.")
def historical(model: str, entities: Path, output: Path) -> None:
    """Add MODEL's features to each row of ENTITIES, as known at its instant.

    ENTITIES is a .parquet or .csv file with customer_id (integers) and event_timestamp (timestamps, dates or ISO 8601
    text; UTC unless there is a time zone).
    Every row comes back in its order, repeated ones too, with all its columns as they were.

    \b
    Example:
      headwater features historical churn entities.parquet -o features.parquet
    """
    from headwater.entities_file import as_given, output_format, read_entities, read_table, write_table

    settings = current_settings()
    catalog = read_catalog(settings)
    declared = declared_model(catalog, model)
    output_format(output)
    given = read_table(entities)
    rows = read_entities(entities, given)
    _expect_features(settings, declared)
    expect_writable(settings)  # Feast keeps its registry there
    from ml.features import historical as read_historical
    from ml.features import open_feature_store

    found = read_historical(open_feature_store(settings, catalog), model, rows)
    write_table(as_given(found, given), output)
    say(f"headwater: {found.num_rows} rows, {found.num_columns - rows.num_columns} features: {output}")


def _expect_features(settings: Settings, model: Model) -> None:
    """Each view's table is there; opening the feature store first would make an empty home."""
    from catalog.keys import Key
    from lake import Lake

    views = dict.fromkeys(ref.partition(":")[0] for ref in model.features)
    missing = [
        key.dotted
        for key in (Key("features", model.entity, view) for view in views)
        if not Lake(settings.lake_dir).exists(key)
    ]
    if missing:
        raise NotThereYet(f"no table {', '.join(missing)} in {settings.lake_dir}: run `headwater run` first")


@features.command()
@click.argument("model")
@_CUSTOMER
@_JSON
def online(model: str, customers: tuple[int, ...], as_json: bool) -> None:
    """MODEL's features of one or more customers now: what a prediction would be made from.

    \b
    Example:
      headwater features online churn --customer 17850 --json
    """
    from ml.online_reader import OnlineReader

    settings = current_settings()
    catalog = read_catalog(settings)
    declared = declared_model(catalog, model)
    if not settings.online_path.exists():
        raise NotThereYet(f"no online store at {settings.online_path}: run `headwater run` first")
    now = settings.clock().now()
    plan = _plan(settings, catalog, declared)
    found = OnlineReader(settings.online_path).read(plan, customers, now)
    unknown = [str(customer) for customer, row in zip(customers, found, strict=True) if row is None]
    if unknown:
        raise Refused(f"found no event of customer(s) {', '.join(unknown)} known by {now.isoformat()}")
    rows = [
        {"customer_id": customer, **dict(zip(plan.names, row.values, strict=True)), "as_of": row.as_of}
        for customer, row in zip(customers, found, strict=True)
        if row is not None
    ]
    if as_json:
        show_json({"model": model, "now": now, "customers": rows})
    else:
        _show_upright(rows)


def _plan(settings: Settings, catalog: Catalog, model: Model) -> FeaturePlan:
    """The deployed plan if it still is what the YAML says: Feast takes seconds to compile it anew."""
    from ml.feature_plan import FeaturePlan
    from ml.predictor import MissingPackage, current_folder

    try:
        text = (current_folder(settings.endpoints_dir, model.name) / "plan.json").read_text(encoding="utf-8")
    except (MissingPackage, FileNotFoundError):
        pass
    else:
        deployed = FeaturePlan.from_json(text)
        if {f"{f.view}:{f.name}" for f in deployed.features} == set(model.features):
            return deployed
    expect_writable(settings)
    from ml.features import compile_plan, open_feature_store

    return compile_plan(open_feature_store(settings, catalog), model.name)


def _show_upright(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each feature: there are more features than customers."""
    names = [name for name in rows[0] if name != "customer_id"]
    columns = ["feature", *(str(row["customer_id"]) for row in rows)]
    show_table(columns, [[name, *(row[name] for row in rows)] for name in names])


@click.command()
@click.argument("model")
@_CUSTOMER
@_JSON
def predict(model: str, customers: tuple[int, ...], as_json: bool) -> None:
    """Predict with MODEL's deployed version, as the API does, and log it.

    The same code as the API's, in this process: the answer is the same and lands in predictions.<model>.served.

    \b
    Examples:
      headwater predict churn --customer 17850
      headwater predict churn --customer 17850 --customer 13047 --json
    """
    from dataclasses import replace

    from serving.answers import answer
    from serving.gateway import Gateway

    settings = current_settings()
    catalog = read_catalog(settings)
    chosen = declared_model(catalog, model)
    gateway = Gateway(settings, replace(catalog, models=(chosen,)))
    gateway.refresh()
    try:
        made = gateway.predict(model, customers)
    finally:
        logged = gateway.close()
    _show_answer(answer(made), as_json)
    if logged.lost:
        raise Refused(f"the prediction was made but could not be logged: {logged.error}")


def _show_answer(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(answer)
        return
    say(f"headwater: {answer['model']} version {answer['version']}, as of {answer['served_at']}")
    rows = answer["predictions"]
    show_table(list(rows[0]), [list(row.values()) for row in rows])
