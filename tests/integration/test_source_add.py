"""headwater source add on real databases: what it writes is sound, and what it refuses leaves nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from stack_servers import ask_mariadb, ask_postgresql, started

from catalog.load import load_catalog
from catalog.settings import CATALOG_DIR
from headwater.check import catalog_problems
from headwater.cli import cli
from headwater.stack.place import HOST
from lake.dbt_sources import sources_yaml

OPTIONS = ("--owner", "team:sales", "--domain", "sales")


@dataclass(frozen=True)
class Shop:
    """A database with the table `schema.parcels`, its administrator's URL without password, and the password."""

    url: str
    password: str
    schema: str


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    columns = (
        "(id bigint {id}, line int {line}, price numeric(12,2), sent_at timestamp NOT NULL {sent}, "
        "seen_at timestamp NULL, PRIMARY KEY (id, line))"
    )
    with started(request.param, tmp_path_factory.mktemp(request.param)) as server:
        if request.param == "postgresql":
            ask_postgresql(server, f"CREATE TABLE public.parcels {columns.format(id='', line='', sent='')}")
            ask_postgresql(server, "COMMENT ON COLUMN public.parcels.price IS 'Price \"paid\", in pounds.'")
            ask_postgresql(server, "COMMENT ON TABLE public.parcels IS 'One row for each parcel that was sent.'")
            ask_postgresql(
                server, 'CREATE TABLE public."Odd" (id int PRIMARY KEY, "Upper" text, at timestamp NOT NULL)'
            )
            ask_postgresql(server, "CREATE TABLE public.scans (v text, at timestamp NOT NULL)")
            doubled = (
                "(id int PRIMARY KEY, at timestamp NOT NULL, grid int[][], line text[], "
                "twice int GENERATED ALWAYS AS (id * 2) STORED)"
            )
            ask_postgresql(server, f"CREATE TABLE public.doubled {doubled}")
            yield Shop(server.url, server.password, "public")
        else:
            ask_mariadb(server, "CREATE DATABASE IF NOT EXISTS shop")
            table = columns.format(id="", line="", sent="DEFAULT current_timestamp")
            table = table.replace("numeric(12,2)", "decimal(12,2) COMMENT 'Price \"paid\", in pounds.'")
            ask_mariadb(server, f"CREATE TABLE shop.parcels {table} COMMENT 'One row for each parcel that was sent.'")
            ask_mariadb(server, "CREATE TABLE shop.`Odd` (id int PRIMARY KEY, `Upper` text, at datetime NOT NULL)")
            ask_mariadb(server, "CREATE TABLE shop.scans (v text, at datetime NOT NULL)")
            doubled = "(id int PRIMARY KEY, at datetime NOT NULL, twice int GENERATED ALWAYS AS (id * 2) STORED)"
            ask_mariadb(server, f"CREATE TABLE shop.doubled {doubled}")
            yield Shop(f"mysql://root@{HOST}:{server.port}/shop", server.password, "shop")


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    for folder in ("sources", "gates", "models"):
        shutil.copytree(CATALOG_DIR / folder, tmp_path / "catalog" / folder)
    return tmp_path / "catalog"


def add(shop: Shop, catalog: Path, *arguments: str, password: str | None = None) -> Result:
    environment = {"HEADWATER_CATALOG": str(catalog), "HEADWATER_SHOP_PASSWORD": password or shop.password}
    return CliRunner().invoke(cli, ["source", "add", shop.url, *arguments], env=environment)


def test_what_it_writes_is_sound_and_is_not_written_over(shop: Shop, catalog: Path) -> None:
    done = add(shop, catalog, "--table", f"{shop.schema}.parcels", *OPTIONS)
    assert done.exit_code == 0, done.output
    text = (catalog / "sources" / "parcels.yaml").read_text()
    assert catalog_problems(catalog) == []
    declared = load_catalog(catalog).source("parcels")
    assert declared.description == "One row for each parcel that was sent."
    assert declared.gate.key == ("id", "line")
    assert declared.gate.event_time == "sent_at"
    assert [(c.name, str(c.type), c.nullable) for c in declared.columns] == [
        ("id", "int64", False),
        ("line", "int64", False),
        ("price", "decimal(12,2)", True),
        ("sent_at", "timestamp", False),
        ("seen_at", "timestamp", True),
    ]
    assert declared.columns[2].description == 'Price "paid", in pounds.'
    assert "name: parcels" in sources_yaml(load_catalog(catalog).sources)
    again = add(shop, catalog, "--table", f"{shop.schema}.parcels", *OPTIONS)
    assert again.exit_code == 1
    assert "is there already" in again.stderr
    assert (catalog / "sources" / "parcels.yaml").read_text() == text
    assert shop.password not in text + done.output + again.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--table", "{0}.nothing", *OPTIONS), r"found no table \w+\.nothing that \w+ may see"),
        (("--table", "{0}.parcels", "--owner", "ann", "--domain", "sales"), "team:name"),
        (("--table", "{0}.parcels", *OPTIONS, "--event-time", "price"), "allowed is one of sent_at, seen_at"),
        (("--table", "{0}.Odd", *OPTIONS), "lower-case"),
    ],
    ids=["no table", "owner", "event time", "column's name"],
)
def test_what_it_refuses_leaves_nothing(shop: Shop, catalog: Path, arguments: tuple[str, ...], said: str) -> None:
    before = sorted(catalog.rglob("*"))
    done = add(shop, catalog, *(argument.format(shop.schema) for argument in arguments))
    assert done.exit_code in (1, 2)
    assert re.search(said, done.stderr), done.stderr
    assert sorted(catalog.rglob("*")) == before


def test_owner_and_domain_are_those_of_the_systems_other_tables(shop: Shop, catalog: Path) -> None:
    table = ("--table", f"{shop.schema}.parcels")
    done = add(shop, catalog, *table)
    assert done.exit_code == 0, done.output
    declared = load_catalog(catalog).source("parcels")
    assert (declared.owner, declared.domain) == ("team:data-platform", "sales")
    assert "owner is team:data-platform, as most tables of shop" in done.stderr
    (catalog / "sources" / "parcels.yaml").unlink()
    done = add(shop, catalog, *table, "--system", "other", "--owner", "team:sales")
    assert done.exit_code == 0, done.output
    assert catalog_problems(catalog) == []
    declared = load_catalog(catalog).source("parcels")
    assert (declared.owner, declared.domain) == ("team:sales", "unassigned")
    assert "domain is unassigned, a placeholder" in done.stderr
    assert "owner is" not in done.stderr


def test_what_a_table_without_key_needs_before_it_is_captured_is_said(shop: Shop, catalog: Path) -> None:
    done = add(shop, catalog, "--table", f"{shop.schema}.scans", *OPTIONS)
    assert done.exit_code == 0, done.output
    assert load_catalog(catalog).source("scans").keyless
    wanted = shop.url.startswith("postgresql")
    assert ('ALTER TABLE "public"."scans" REPLICA IDENTITY FULL;' in done.stderr) == wanted, done.stderr


def test_columns_that_the_server_does_not_send_are_named(shop: Shop, catalog: Path) -> None:
    done = add(shop, catalog, "--table", f"{shop.schema}.doubled", *OPTIONS)
    assert done.exit_code == 0, done.output
    types = {column.name: column.type for column in load_catalog(catalog).source("doubled").columns}
    names = [*types]
    if shop.schema == "public":
        assert "headwater: twice left out: PostgreSQL does not send" in done.stderr
        assert names == ["id", "at", "grid", "line"]
        assert (types["grid"], types["line"]) == ("list<list<int64>>", "list<string>")
    else:
        assert "left out" not in done.stderr
        assert names == ["id", "at", "twice"]


def test_a_wrong_password_is_not_shown(shop: Shop, catalog: Path) -> None:
    done = add(shop, catalog, "--table", f"{shop.schema}.parcels", *OPTIONS, password="s3cr3t-and-wrong")
    assert done.exit_code == 1
    assert "s3cr3t-and-wrong" not in done.output
