"""The command line itself: help, exit codes, what goes to stdout, what it costs to start."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from catalog.keys import Key
from catalog.settings import SETTINGS, load_settings
from headwater.cli import SECTIONS, cli
from headwater.errors import KNOWN, exit_code
from headwater.output import show_json, show_table
from headwater.session import HomeError, expect_writable
from lake import Lake


def run(home: Path, *arguments: str, **environment: str) -> Result:
    """In process, with settings of its own."""
    inherited = {name: None for name in os.environ if name.startswith("HEADWATER_")}
    return CliRunner().invoke(cli, arguments, env={**inherited, "HEADWATER_HOME": str(home), **environment})


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands())


def test_the_commands_are_these() -> None:
    assert [" ".join(path) for path in ALL] == [
        "run",
        "dev",
        "serve",
        "up",
        "down",
        "shop",
        "shop replay",
        "shop run",
        "capture",
        "land",
        "status",
        "dlq",
        "dlq list",
        "dlq show",
        "dlq replay",
        "source",
        "source add",
        "sql",
        "features",
        "features historical",
        "features online",
        "predict",
        "models",
        "lineage",
        "approve",
        "rollback",
        "drift",
        "drift inject",
        "drift status",
        "check",
        "settings",
        "version",
    ]
    assert {command for section in SECTIONS.values() for command in section} == set(cli.commands.values())


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...], tmp_path: Path) -> None:
    command, shown = ALL[path], run(tmp_path, *path, "--help")
    assert shown.exit_code == 0
    assert command.help
    assert len(command.get_short_help_str(limit=200)) > 20
    if not isinstance(command, click.Group):
        assert f"headwater {' '.join(path)}" in shown.output.split("Example")[1]
    undescribed = [p.name for p in command.params if isinstance(p, click.Option) and not p.help and p.name != "form"]
    assert undescribed == []


def test_help_shows_sections_examples_and_exit_codes(tmp_path: Path) -> None:
    text = run(tmp_path, "--help").output
    assert all(f"{title}:" in text for title in SECTIONS)
    assert "headwater predict churn --customer 17850" in text
    for code, meaning in ((0, "done"), (1, "failed or was refused"), (2, "wrong usage"), (3, "not there yet")):
        assert f"{code}  " in text
        assert meaning in text


def test_the_examples_in_the_help_are_valid_usage() -> None:
    """Each example is parsed, not run: an option that was renamed would still be advertised."""
    for path, command in ALL.items():
        for line in (command.help or "").replace("\\\n", " ").splitlines():
            words = line.split(" && ")[0].split(" > ")[0].strip()
            if words.startswith("headwater ") and not isinstance(command, click.Group):
                arguments = _words(words)[1:]
                known, rest = (arguments[: len(path)], arguments[len(path) :]) if path else ((), arguments)
                if tuple(known) == path:
                    ALL[path].make_context(
                        "x", [a for a in rest if not a.endswith((".parquet", ".csv"))] + _files(rest)
                    )


def _words(line: str) -> list[str]:
    import shlex

    return shlex.split(line)


def _files(arguments: list[str]) -> list[str]:
    """An example's input file does not exist here: any existing one will do."""
    return [__file__ for a in arguments if a.endswith((".parquet", ".csv"))]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["sql", "SELECT 1"], 3, "run `headwater run` first"),
        (["models"], 3, "no registry at"),
        (["lineage", "churn"], 3, "no registry at"),
        (["approve", "churn", "1", "--by", "a", "--note", "b"], 3, "no registry at"),
        (["rollback", "churn"], 3, "no registry at"),
        (["drift", "inject"], 3, "no change log at"),
        (["drift", "status"], 3, "no window of churn, clv has been judged in"),
        (["drift", "status", "churn", "--json"], 3, "`headwater run` judges them"),
        (["features", "online", "churn", "--customer", "1"], 3, "no online store at"),
        (["predict", "churn", "--customer", "1"], 3, "nothing is deployed for churn"),
        (["lineage", "nope"], 2, "found 'nope', allowed is one of: churn, clv"),
        (["drift", "status", "nope"], 2, "allowed is one of: churn, clv"),
        (["predict", "churn"], 2, "Missing option '--customer'"),
        (["predict", "churn", "--customer", "x"], 2, "'x' is not a valid integer"),
        (["predict", "churn", "--customer", str(2**63)], 2, "not in the range"),
        (["approve", "churn", "1", "--note", "b"], 2, "Missing option '--by'"),
        (["sql"], 2, "Missing argument"),
        (["sql", "SELECT 1", "--format", "xml"], 2, "'xml' is not one of"),
        (["sql", "SELECT 1", "--as-of", "noon"], 2, "found 'noon', allowed is an ISO 8601 instant"),
        (["sql", "SELECT 1", "--as-of", "2011-09-10", "--version", "3"], 2, "allowed is one of them"),
        (["sql", "SELECT 1", "--event-time"], 2, "found --event-time without --as-of"),
        (["drift", "inject", "--factor", "0"], 2, "not in the range"),
        (["serve", "--port", "0"], 2, "not in the range"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_exit_codes_and_one_line_of_reason(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    done = run(tmp_path / "home", *arguments)
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home").exists()  # asking makes nothing


def test_features_of_the_past_need_their_tables(tmp_path: Path) -> None:
    (tmp_path / "entities.csv").write_text("customer_id,event_timestamp\n1,2011-09-10T00:00:00\n")
    arguments = ["features", "historical", "churn", str(tmp_path / "entities.csv"), "-o", str(tmp_path / "out.csv")]
    done = run(tmp_path / "home", *arguments)
    assert (done.exit_code, done.stdout) == (3, ""), done.output
    assert "no table features.customer.activity, features.customer.profile in" in done.stderr
    assert not (tmp_path / "home").exists()


def test_an_empty_registry_is_not_there_yet(tmp_path: Path) -> None:
    import sqlite3

    sqlite3.connect(tmp_path / "mlflow.db").close()
    for flags in ([], ["--json"]):
        done = run(tmp_path, "models", *flags)
        assert (done.exit_code, done.stdout) == (3, ""), done.output
        assert "no version is registered: `headwater run`" in done.stderr


WRITERS = (
    ["run"],
    ["dev"],
    ["serve", "--port", "9"],
    ["approve", "churn", "1", "--by", "a", "--note", "b"],
    ["rollback", "churn"],
    ["drift", "inject"],
)


@pytest.mark.parametrize("arguments", WRITERS, ids=" ".join)
def test_a_home_that_is_a_file_or_below_one_is_a_wrong_setting(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "home"):
        done = run(home, *arguments)
        assert (done.exit_code, done.stdout) == (2, ""), done.output
        assert f"environment:HEADWATER_HOME: found '{home}', allowed is a directory; made if missing" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_home_whose_path_delta_cannot_find_again_is_a_wrong_setting(tmp_path: Path) -> None:
    done = run(tmp_path / "a#b", "run")
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert f"{tmp_path}/a#b (with '#' Delta tables cannot be found again)" in done.stderr
    assert not (tmp_path / "a#b").exists()


@pytest.mark.parametrize("arguments", WRITERS[:3], ids=" ".join)
@pytest.mark.parametrize(("home", "tried"), [("/proc/home", "make the directory"), ("/proc", "write a file in")])
def test_a_home_that_cannot_be_written_is_said_before_anything_is_done(
    home: str, tried: str, arguments: list[str]
) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc, where nobody may write")
    done = run(Path(home), *arguments)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert f"headwater: tried to {tried} {home}, found: No such file or directory; set HEADWATER_HOME" in done.stderr


def test_who_changes_a_home_must_be_able_to_write_there() -> None:
    settings = load_settings({"HEADWATER_HOME": "/proc"})
    if not settings.home.exists():
        pytest.skip("there is no /proc, where nobody may write")
    with pytest.raises(HomeError, match="tried to write a file in /proc, found"):
        expect_writable(settings)


def test_a_wrong_setting_is_wrong_usage_and_every_one_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "settings", HEADWATER_API_PORT="0", HEADWATER_HOM="x")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "environment:HEADWATER_HOM: no such setting, did you mean HEADWATER_HOME?" in done.stderr
    assert "environment:HEADWATER_API_PORT: found '0', allowed is a port" in done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # MLflow's
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("damaged", "arguments"),
    [
        ("mlflow.db", ["models"]),
        ("mlflow.db", ["lineage", "churn"]),
        ("ledger.db", ["approve", "churn", "1", "--by", "a", "--note", "b"]),
        ("log.db", ["drift", "inject"]),
    ],
)
def test_a_damaged_database_is_one_line(tmp_path: Path, damaged: str, arguments: list[str]) -> None:
    (tmp_path / "mlflow.db").touch()
    (tmp_path / damaged).write_text("this is no database")
    done = run(tmp_path, *arguments)
    assert (done.exit_code, done.stdout) == (1, ""), done.output
    assert "file is not a database" in done.stderr
    assert "headwater: " in done.stderr.splitlines()[-1]


def test_an_error_that_nobody_expected_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("headwater.platform_commands.show_table", broken)
    assert isinstance(run(tmp_path, "settings").exception, RuntimeError)


def test_every_setting_is_listed_with_value_default_meaning_and_origin(tmp_path: Path) -> None:
    done = run(tmp_path, "settings", "--json", HEADWATER_AUTOMATION="on", HEADWATER_NOW="2011-12-16T12:50:00+01:00")
    listed = {row["setting"]: row for row in json.loads(done.stdout)}
    assert list(listed) == [s.env for s in SETTINGS]
    assert all(row["meaning"] and row["allowed"] for row in listed.values())
    assert (listed["HEADWATER_AUTOMATION"]["value"], listed["HEADWATER_AUTOMATION"]["from"]) == ("on", "environment")
    assert listed["HEADWATER_NOW"]["value"] == "2011-12-16T11:50:00"
    assert (listed["HEADWATER_UI_PORT"]["value"], listed["HEADWATER_UI_PORT"]["from"]) == ("3000", "default")
    table = run(tmp_path, "settings").stdout
    assert all(s.env in table and s.help in table for s in SETTINGS)


def test_known_errors_exist_and_heirs_take_their_parents_code() -> None:
    for name in KNOWN:
        module, _, kind = name.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), kind), Exception)
    from lake.query import QueryError
    from ml.registry import GateFailed
    from serving.problems import UnknownCustomers

    assert [exit_code(kind) for kind in (QueryError, GateFailed, UnknownCustomers, RuntimeError)] == [1, 1, 1, None]
    assert (exit_code(PermissionError), exit_code(FileNotFoundError)) == (1, None)


def test_plain_tables_are_aligned_and_json_has_iso_instants(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(["name", "value"], [["a", 1.5], ["longer", None], ["map", {"k": [1]}]])
    assert capsys.readouterr().out == 'name    value\na       1.5\nlonger\nmap     {"k": [1]}\n'
    from datetime import datetime

    show_json({"at": datetime(2011, 12, 9, 12, 50), "n": None})
    assert json.loads(capsys.readouterr().out) == {"at": "2011-12-09T12:50:00", "n": None}


HEAVY = ("dagster", "mlflow", "feast", "pandas", "great_expectations", "evidently", "lightgbm", "sklearn", "matplotlib")


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], (*HEAVY, "duckdb", "pyarrow", "pydantic", "ruamel", "fastapi", "rich", "numpy")),
        (["settings"], (*HEAVY, "duckdb", "pyarrow", "pydantic", "ruamel", "fastapi", "rich", "numpy")),
        (["sql", "SELECT 1"], (*HEAVY, "pydantic", "ruamel", "fastapi", "rich")),
        # DuckDB looks for pandas by itself when it is handed an Arrow table.
        (["drift", "status"], (*(h for h in HEAVY if h != "pandas"), "fastapi")),
        (["predict", "churn", "--customer", "1"], (*(h for h in HEAVY if h != "lightgbm"), "fastapi", "uvicorn")),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_imports_only_what_it_needs(arguments: list[str], absent: tuple[str, ...], tmp_path: Path) -> None:
    empty = pa.table({"at": pa.array([], pa.timestamp("us")), "text": pa.array([], pa.string())})
    Lake(tmp_path / "lake").overwrite(Key("raw", "shop", "orders"), empty)
    program = (
        "import sys\nfrom headwater.cli import cli\n"
        f"try:\n    cli.main({arguments!r}, prog_name='headwater')\n"
        "except SystemExit:\n    pass\n"
        f"print(*(m for m in {absent!r} if m in sys.modules), file=sys.stderr)"
    )
    environment = {**os.environ, "HEADWATER_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""


def test_the_installed_command_works_in_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    command = [str(Path(sys.executable).with_name("headwater")), "sql", "SELECT 42 AS answer", "--format", "csv"]
    environment = {**os.environ, "HEADWATER_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "answer\n42\n", "")
    wrong = subprocess.run([*command[:2], "DROP TABLE x"], env=environment, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("headwater: found DROP, allowed is")
