"""Long runs that tests share: real processes on homes of their own, started together because each is mostly one thread.

A play is one such run, or several on one home. The plays that the selected tests ask for start with the first test of
this folder, three at a time; each test waits for its own. Of pytest's workers one has this folder (tests/conftest.py).
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from dagster import DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.scheduler.instigation import InstigatorTick, InstigatorType, TickStatus
from homes import (
    BIN,
    PROJECT,
    RETAIL,
    Done,
    Home,
    small_catalog,
    small_shop,
    uci_table,
    wait_for,
    write_csv,
    write_parquet,
)
from shop_databases import running
from stack_servers import started

from streaming.simulator import simulate

Others = Mapping[str, "Future[Any]"]

# Three quarters of the small shop's lines have landed by then.
EARLY = "2017-12-15T12:00:00"
TABLES_ONLY = '+key:"features/*" or +key:"marts/*" or +key:"staging/*"'
KILLS = 3


@dataclass(frozen=True)
class Played:
    """A home and what its run said."""

    home: Home
    run: Done


@dataclass(frozen=True)
class ShopRun(Played):
    """The small shop, from csv. Tests read `home` and copy it; models may be trained again in `original`."""

    original: Home


def _shop_run(at: Path, _: Others) -> ShopRun:
    file = write_csv(small_shop(), at / "shop.csv")
    original = Home(at / "original").set(RETAIL_DATA=str(file), CATALOG=str(small_catalog(at / "catalog")))
    run = original.succeeds("run")
    return ShopRun(original.copy(at / "home"), run, original)


@dataclass(frozen=True)
class Rewound:
    """The same shop whose now was EARLY first, with a run killed three times; then two runs at once to its end."""

    killed_in: list[str]
    early: Home
    late: Home
    runs: tuple[Done, Done]


def _rewound(at: Path, _: Others) -> Rewound:
    file = write_parquet(small_shop(), at / "shop.parquet")
    home = Home(at / "home").set(RETAIL_DATA=str(file), CATALOG=str(small_catalog(at / "catalog")))
    early = home.set(NOW=EARLY)
    chance = random.Random(time.time_ns())
    steps = ["raw__shop__order_lines", "raw__shop__order_lines__gates", "tables", "marts_gates", "feature_tables"]
    chosen = sorted(chance.sample(steps, KILLS), key=steps.index)
    killed_in = [_killed(early, step, chance.uniform(0, 3)) for step in chosen]
    early.succeeds("run", "--select", TABLES_ONLY)
    kept = early.copy(at / "early")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: home.headwater("run", "--select", TABLES_ONLY), range(2))
    return Rewound(killed_in, kept, home, (first, second))


def _killed(home: Home, step: str, delay_s: float) -> str:
    """`kill -9` of a run that long after it has begun a step; says where."""
    command = [str(BIN / "headwater"), "run", "--select", TABLES_ONLY]
    with subprocess.Popen(command, cwd=PROJECT, env=home.environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        heard = next((line for line in process.stderr if line.strip() == f"{step} ..."), None)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
    assert heard is not None, f"the run ended before {step}"
    return f"{step} + {delay_s:.2f} s"


@dataclass(frozen=True)
class Materialised(Played):
    """The small shop from parquet, by Dagster's own command line, with one more model: the example of docs/how_to."""

    summary: dict[str, Any]
    approved: Done
    rerun: Done


def _materialised(at: Path, _: Others) -> Materialised:
    guide = (PROJECT / "docs" / "how_to" / "add_model.md").read_text()
    found = re.search(r"```yaml\n(.*?)```", guide, re.DOTALL)
    assert found is not None
    catalog, file = small_catalog(at / "catalog"), write_parquet(small_shop(), at / "shop.parquet")
    (catalog / "models" / "lapse.yaml").write_text(found[1])
    home = Home(at / "home").set(RETAIL_DATA=str(file), CATALOG=str(catalog), ACTOR="trainer")
    (home.path / "dagster").mkdir(parents=True)
    run = home.command("dagster", "asset", "materialize", "--select", "*", "-m", "definitions")
    summary = home.summary if run.code == 0 else {}
    approved = home.headwater("approve", "lapse", "1", "--by", "alice", "--note", "checked the card")
    rerun = home.headwater("run", "--select", 'key:"models/lapse/champion"+')
    return Materialised(home, run, summary, approved, rerun)


def _short_run(at: Path, _: Others) -> Played:
    """The simulated shop five weeks after it opened."""
    home = Home(at / "home").set(SIMULATOR_LINES="8000", NOW="2024-02-05T00:00:00")
    return Played(home, home.headwater("run"))


def _retail_run(at: Path, _: Others) -> Played | None:
    if not RETAIL.exists():
        return None
    home = Home(at / "home").set(RETAIL_DATA=str(RETAIL.resolve()))
    return Played(home, home.headwater("run"))


@dataclass(frozen=True)
class Broken(Played):
    """A run on a file that is broken as a whole; and another one, but for `empty`, which is refused as another is."""

    rerun: Done | None


def _broken(at: Path, _: Others) -> dict[str, Broken]:
    table = uci_table(simulate(3, 3000, drift=False).lines)
    half = pa.array([n % 2 == 0 for n in range(table.num_rows)])
    codes = pc.if_else(half, table["StockCode"], pa.nulls(table.num_rows, pa.string()))
    files = {
        "missing_column": table.drop_columns(["Quantity"]),
        "empty": table.slice(0, 0),
        "half_null": table.set_column(table.column_names.index("StockCode"), "StockCode", codes),
    }
    homes = {
        name: Home(at / name).set(RETAIL_DATA=str(write_parquet(content, at / f"{name}.parquet")))
        for name, content in files.items()
    }
    runs = {name: home.headwater("run") for name, home in homes.items()}
    return {
        name: Broken(home, runs[name], None if name == "empty" else home.headwater("run"))
        for name, home in homes.items()
    }


@dataclass(frozen=True)
class Watched:
    """What a daemon did on a home: the ticks of its sensors, its runs, and the registry's versions."""

    home: Home
    ticks: dict[str, list[InstigatorTick]]
    runs: list[DagsterRun]
    versions: dict[str, list[str]]

    def runs_for(self, trigger: str) -> list[DagsterRun]:
        return [run for run in self.runs if run.tags.get("headwater/trigger") == trigger]


@dataclass(frozen=True)
class Healed:
    """Before drift was injected, and after the daemon had seen the changes and the drift, and was started again."""

    calm: Watched
    after: Watched


def _healed(at: Path, others: Others) -> Healed:
    home = others["shop_run"].result().original.set(AUTOMATION="on")
    with _daemon(home), home.instance() as instance:
        wait_for("tick of the drift sensor", lambda: _ticks(instance, "drift") or None)
        wait_for("tick of the change sensor", lambda: _ticks(instance, "changes") or None)
        calm = _watched(home)
        home.succeeds("drift", "inject", "--weeks", "4", "--factor", "20")
        wait_for("changes run", lambda: _finished(instance, "changes", 1), within_s=540)
        wait_for("two retrainings", lambda: _finished(instance, "drift", 2), within_s=540)
        healed_at = time.time()
        wait_for("tick after the retraining", lambda: _tick_since(instance, "drift", healed_at))
    with _daemon(home), home.instance() as instance:
        started_at = time.time()
        wait_for("tick of the second daemon", lambda: _tick_since(instance, "drift", started_at))
    return Healed(calm, _watched(home))


def _daemon(home: Home) -> Any:
    return home.started("dagster-daemon", "run", "-w", str(PROJECT / "workspace.yaml"))


def _watched(home: Home) -> Watched:
    with home.instance() as instance:
        ticks = {name: _ticks(instance, name) for name in ("changes", "drift")}
        return Watched(home, ticks, list(instance.get_runs()), home.registered())


def _finished(instance: dg.DagsterInstance, trigger: str, count: int) -> list[DagsterRun] | None:
    """The runs of a sensor once there are so many and all have ended."""
    runs = list(instance.get_runs(RunsFilter(tags={"headwater/trigger": trigger})))
    ended = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
    return runs if len(runs) >= count and all(run.status in ended for run in runs) else None


def _ticks(instance: dg.DagsterInstance, sensor: str) -> list[InstigatorTick]:
    """The ticks that a daemon completed."""
    states = instance.all_instigator_state(instigator_type=InstigatorType.SENSOR)
    state = next((s for s in states if s.instigator_name == sensor), None)
    found = instance.get_ticks(state.instigator_origin_id, state.selector_id) if state else []
    return [tick for tick in found if tick.status != TickStatus.STARTED]


def _tick_since(instance: dg.DagsterInstance, sensor: str, instant: float) -> InstigatorTick | None:
    return next((tick for tick in _ticks(instance, sensor) if tick.timestamp > instant), None)


def _route(database: str) -> Callable[[Path, Others], Home]:
    """The small shop from that database through Kafka, at the embedded replay's now; built twice."""

    def build(at: Path, others: Others) -> Home:
        embedded = others["shop_run"].result().home
        now = json.loads((embedded.path / "replay.json").read_bytes())["last_event_at"]
        with running(database, at / "database") as databases, started("kafka", at / "kafka") as broker:
            url, password = databases.new_without_password()
            home = Home(at / "home", embedded.settings).set(
                SHOP_URL=url, SHOP_PASSWORD=password, LOG_URL=broker.url, NOW=now
            )
            # The connector is there before the first order: a snapshot knows rows, but not since when they are known.
            home.succeeds("shop", "replay", "--url", url, "--until", "2017-01-01")
            home.succeeds("capture", "shop", "--once")
            home.succeeds("shop", "replay", "--url", url)
            home.succeeds("run", "--select", TABLES_ONLY)
            if database == "postgresql":
                again = home.succeeds("run", "--select", TABLES_ONLY)
                assert "0 of them rebuilt" in again.out, again
        return home

    return build


# In order of how much waits for them, and of how long they take.
PLAYS: dict[str, Callable[[Path, Others], Any]] = {
    "shop_run": _shop_run,
    "rewound": _rewound,
    "healed": _healed,
    "materialised": _materialised,
    "retail_run": _retail_run,
    "short_run": _short_run,
    "broken": _broken,
    "postgresql_route": _route("postgresql"),
    "mariadb_route": _route("mariadb"),
}
# A play that goes on in another's home, or at another's now.
NEEDS = {"healed": "shop_run", "postgresql_route": "shop_run", "mariadb_route": "shop_run"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the order in which what they wait for comes; how long they wait for it is not the test's time."""
    items.sort(key=lambda item: max(map(list(PLAYS).index, _plays_of(item)), default=len(PLAYS)))
    for item in items:
        if _plays_of(item):
            item.add_marker(pytest.mark.timeout(func_only=True))


def _plays_of(item: pytest.Item) -> set[str]:
    return PLAYS.keys() & getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def plays(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Others]:
    """What the selected tests ask for, by name, as it comes."""
    wanted = {name for item in request.session.items for name in _plays_of(item)}
    wanted |= {NEEDS[name] for name in wanted & NEEDS.keys()}
    started: dict[str, Future[Any]] = {}
    with ThreadPoolExecutor(3) as pool:
        for name, play in PLAYS.items():
            if name in wanted:
                started[name] = pool.submit(play, tmp_path_factory.mktemp(name), started)
        yield started
        pool.shutdown(cancel_futures=True)


def _shared(name: str) -> Any:
    @pytest.fixture(scope="session", name=name)
    def result(plays: Others) -> Any:
        return plays[name].result()

    return result


shop_run = _shared("shop_run")
rewound = _shared("rewound")
healed = _shared("healed")
materialised = _shared("materialised")
short_run = _shared("short_run")
broken = _shared("broken")
postgresql_route = _shared("postgresql_route")
mariadb_route = _shared("mariadb_route")


@pytest.fixture(scope="session")
def retail_run(plays: Others) -> Played:
    """The one run on the real file of this suite."""
    run: Played | None = plays["retail_run"].result()
    if run is None:
        pytest.skip(f"{RETAIL.parent.name}/{RETAIL.name} is not beside the project")
    return run
