"""deploy/compose.yaml says the same as the processes' settings, and its scripts make the same shop."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from homes import PROJECT
from ruamel.yaml import YAML
from stack_servers import MODULES, ask_mariadb, ask_postgresql, assert_captures_and_no_more, started

from headwater.stack.place import HOST
from headwater.stack.server import Server
from headwater.stack.shop import make_shop

COMPOSE: dict[str, Any] = YAML(typ="safe").load(PROJECT / "deploy" / "compose.yaml")
# Addresses are the container's own business, and so is where an image keeps its files and its process.
OWN = frozenset({"listen_addresses", "unix_socket_directories", "bind_address", "socket", "bind", "daemonize"})


def test_every_port_is_published_on_loopback_and_every_service_has_a_health_check() -> None:
    assert COMPOSE["services"].keys() == MODULES.keys()
    for service in COMPOSE["services"].values():
        assert [port.startswith(f"{HOST}:") for port in service["ports"]] == [True]
        assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", MODULES)
def test_settings_are_those_of_the_processes(name: str) -> None:
    service = COMPOSE["services"][name]
    said: dict[str, Callable[[str, str], bool]] = {
        "postgresql": lambda key, value: f"-c{key}={value}" in service["command"],
        "mariadb": lambda key, value: f"--{key.replace('_', '-')}={value}" in service["command"],
        "redis": lambda key, value: f"--{key} {value.strip(chr(34))}" in " ".join(service["command"]),
        "kafka": lambda key, value: service["environment"][f"KAFKA_{key.upper().replace('.', '_')}"] == value,
    }
    settings = {key: value for key, value in MODULES[name].SETTINGS.items() if key not in OWN}
    assert [key for key, value in settings.items() if not said[name](key, value)] == []


def test_what_a_slot_keeps_is_bounded() -> None:
    assert int(MODULES["postgresql"].SETTINGS["max_slot_wal_keep_size"].removesuffix("GB")) > 0


def script(name: str) -> str:
    text: str = COMPOSE["configs"][f"{name}_shop"]["content"]
    return text.replace("$$", "$")


def test_postgresql_script_makes_the_shop(tmp_path: Path) -> None:
    with started("postgresql", tmp_path / "server") as server:
        environment = {"PGHOST": HOST, "PGPORT": str(server.port), "PGPASSWORD": server.password}
        run_script(script("postgresql"), environment)
        shop = f"postgresql://{{}}@{HOST}:{server.port}/shop"
        with psycopg.connect(shop.format("shop"), password="o'w", autocommit=True) as owner:
            owner.execute("CREATE TABLE orders AS SELECT 1 AS n")
        assert_captures_and_no_more(shop.format("headwater_capture"), "c d")
        made = "SELECT rolname, rolsuper, rolcreatedb, rolreplication FROM pg_roles WHERE oid >= 16384 ORDER BY 1"
        by_script = ask_postgresql(server, made)
        make_shop(server)  # finds all of it made
        assert ask_postgresql(server, made) == by_script


def test_mariadb_script_makes_the_capture_role(tmp_path: Path) -> None:
    with started("mariadb", tmp_path / "server") as server:
        ask_mariadb(server, "CREATE DATABASE shop")
        environment = {
            "MYSQL_HOST": HOST,
            "MYSQL_TCP_PORT": str(server.port),
            "MARIADB_ROOT_PASSWORD": server.password,
        }
        run_script(script("mariadb"), environment)
        by_script = grants(server, "%")
        make_shop(server)
        assert grants(server, HOST) == by_script


def run_script(script: str, environment: dict[str, str]) -> None:
    passwords = {"OWNER_PASSWORD": "o'w", "CAPTURE_PASSWORD": "c d"}
    done = subprocess.run(
        ["bash", "-euc", script], env={"PATH": os.environ["PATH"], **environment, **passwords}, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def grants(server: Server, host: str) -> list[str]:
    """What the capture role may do, without its password and host."""
    rows = ask_mariadb(server, f"SHOW GRANTS FOR headwater_capture@'{host}'")
    return [re.sub(r"@\S+|IDENTIFIED BY .*", "", grant).strip() for (grant,) in rows]
