"""Commands of the declared sources: source add."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headwater.errors import Refused
from headwater.output import say
from headwater.session import current_settings, read_catalog

if TYPE_CHECKING:
    from catalog.settings import Settings
    from streaming.capture.tables import TableSchema
    from streaming.introspection import Introspected

__all__ = ["source"]

_SHORTEST_TABLE, _SHORTEST_COLUMN = 10, 3
# Of the first table of a system; `headwater check` accepts them.
_PLACEHOLDERS = {"owner": "team:unassigned", "domain": "unassigned"}


@click.group()
def source() -> None:
    """Captured tables: each is one file in the catalog."""


@source.command()
@click.argument("url")
@click.option("--table", "name", required=True, metavar="SCHEMA.TABLE", help="The table, as the database names it.")
@click.option("--owner", help="team:name or an e-mail address.  [default: as the system's other tables]")
@click.option("--domain", help="What it is about, such as sales.  [default: as the system's other tables]")
@click.option("--system", default="shop", show_default=True, help="The captured system that it belongs to.")
@click.option("--event-time", metavar="COLUMN", help="The timestamp that says when a row last changed.")
@click.option("--freshness-days", type=float, default=7, show_default=True, help="How old the latest may get.")
def add(
    url: str,
    *,
    name: str,
    owner: str | None,
    domain: str | None,
    system: str,
    event_time: str | None,
    freshness_days: float,
) -> None:
    """Declare a table of the database at URL: writes catalog/sources/<table>.yaml from what the database says of it.

    URL is postgresql://user@host/db or mysql://user@host/db; the password comes from HEADWATER_SHOP_PASSWORD,
    HEADWATER_SHOP_PASSWORD_FILE or the client's own password file.

    \b
    Examples:
      headwater source add postgresql://ann@db/shop --table public.orders
      headwater source add postgresql://ann@db/shop --table public.orders --owner team:sales --domain sales
    """
    from catalog.refusals import judge
    from catalog.spec import Source
    from streaming.capture.credentials import parse_address
    from streaming.introspection import default_schema, introspect

    settings = current_settings()
    address = parse_address(url, password=settings.shop_password or "", password_file=settings.shop_password_file)
    schema, _, table = name.rpartition(".")
    relation = f"{schema or default_schema(address)}.{table}"
    path = settings.catalog / "sources" / f"{table.lower()}.yaml"
    _expect_new(path)
    found = introspect(address, relation)
    declared: dict[str, Any] = {"system": system, "table": table.lower()}
    if relation != f"{default_schema(address)}.{table.lower()}":
        declared["relation"] = relation
    answering = {"owner": owner, "domain": domain}
    taken = {name: _usual(name, system, settings) for name, given in answering.items() if given is None}
    declared |= {"description": _table_description(found, relation), **answering, **taken}
    gate = {"key": found.schema.key, "event_time": _event_time(found.schema, event_time)}
    declared |= {} if found.schema.key else {"keyless": True}
    declared |= {"columns": tuple(_columns(found)), "gate": {**gate, "freshness_days": freshness_days}}
    _, problems = judge(Source, declared)
    if problems:
        raise Refused("\n".join([f"{relation} cannot be declared:", *(problem.text for problem in problems)]))
    _write(path, declared)
    say(
        f"headwater: wrote {path}. Say in it what the columns mean; then `headwater check` and `python -m "
        "lake.dbt_sources`"
    )
    if found.to_do:
        say(
            f"headwater: {relation} has no key, and once it is published PostgreSQL refuses to update or delete its "
            "rows. It is captured once it has a primary key, or after:"
        )
        say("\n".join(f"  {statement};" for statement in found.to_do))
    if found.unsent:
        say(f"headwater: {', '.join(found.unsent)} left out: PostgreSQL does not send what it generates itself")
    for field, value in taken.items():
        why = f"as most tables of {system}" if value != _PLACEHOLDERS[field] else "a placeholder"
        say(f"headwater: {field} is {value}, {why}: change it there, or say --{field}")


def _expect_new(path: Path) -> None:
    if path.exists() or path.with_suffix(".yml").exists():
        raise Refused(f"{path} is there already: a declaration is not overwritten. Change it there, or remove it first")


def _usual(field: str, system: str, settings: Settings) -> str:
    """What most of the system's declared tables have there."""
    declared = [getattr(source, field) for source in read_catalog(settings).sources if source.system == system]
    return str(Counter(declared).most_common(1)[0][0]) if declared else _PLACEHOLDERS[field]


def _table_description(found: Introspected, relation: str) -> str:
    text = " ".join(found.comments.get("", "").split())
    return text if len(text) >= _SHORTEST_TABLE else f"Rows of {relation}; say here what one of them is."


def _columns(found: Introspected) -> Iterator[dict[str, Any]]:
    for column in found.schema.columns:
        text = " ".join(found.comments.get(column.name, "").split())
        described = text if len(text) >= _SHORTEST_COLUMN else f"A {column.type}; say here what it means."
        nullable = {} if column.nullable else {"nullable": False}
        yield {"name": column.name, "type": column.lake_type, **nullable, "description": described}


def _event_time(schema: TableSchema, wanted: str | None) -> str:
    """The only timestamp that is never null, unless one is asked for."""
    times = [column for column in schema.columns if column.lake_type == "timestamp"]
    names = [column.name for column in times]
    if wanted is not None:
        if wanted not in names:
            raise click.BadParameter(f"found {wanted!r}, {_allowed(names)}", param_hint="--event-time")
        return wanted
    certain = [column.name for column in times if not column.nullable] or names
    if len(certain) != 1:
        found = f"{len(certain)} timestamps" if certain else "no timestamp"
        raise click.UsageError(f"--event-time: found {found} in {schema.name}, {_allowed(names)}")
    return certain[0]


def _allowed(names: Sequence[str]) -> str:
    return f"allowed is one of {', '.join(names)}" if names else "allowed is a table with a timestamp column"


def _write(path: Path, declared: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:  # x: not over what somebody else wrote meanwhile
        file.writelines(f"{line}\n" for line in _yaml(declared))


def _yaml(declared: dict[str, Any]) -> Iterator[str]:
    """As the catalog's files are written: a line for each column. JSON's texts are YAML's too."""
    for name, value in declared.items():
        if name == "columns":
            yield "columns:"
            yield from (f"  - {_flow(column)}" for column in value)
        elif name == "gate":
            yield "gate:"
            yield f"  key: {_scalar(list(value['key']))}"
            yield f"  event_time: {_scalar(value['event_time'])}"
            yield f"  freshness_days: {value['freshness_days']:g}"
        else:
            yield f"{name}: {_scalar(value)}"


def _flow(column: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {_scalar(value)}" for name, value in column.items()) + "}"


def _scalar(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
