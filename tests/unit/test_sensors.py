"""The sensors over a real lake, a real change log and a real Dagster instance: one run for each cause, none without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from dagster import DagsterRunStatus
from dagster._core.definitions.sensor_definition import SensorExecutionData

from catalog import keys
from catalog.load import Catalog, load_catalog
from catalog.settings import CATALOG_DIR, Settings, load_settings
from lake import Lake
from lake.ledger import Ledger
from ml.drift_status import ROWS
from sensors.changes import build_change_sensor, followed_topics
from sensors.drift import build_drift_sensor, healed_keys
from sensors.lag import STALLED_BETWEEN_RUNS_S, build_lag_sensor
from streaming.landing import GROUP, landed_version
from streaming.landing import land as land_changes
from streaming.log import TopicPartition
from streaming.sqlite_log import SqliteLog

T0 = datetime(2024, 1, 1)
WEEK = timedelta(days=7)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog(CATALOG_DIR)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    home = tmp_path / "dagster"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as temporary:
        yield temporary


SENSORS = (build_drift_sensor, build_change_sensor, build_lag_sensor)


class Location:
    """A code location with the real sensors over assets that have the real keys, ticked as the daemon does."""

    def __init__(self, home: Path, catalog: Catalog, instance: dg.DagsterInstance) -> None:
        self.home, self.catalog, self.instance = home, catalog, instance
        self.cursors: dict[str, str | None] = {}

    def settings(self, week: float, automation: str = "off") -> Settings:
        now = (T0 + week * WEEK).isoformat()
        environ = {"HEADWATER_HOME": str(self.home), "HEADWATER_NOW": now, "HEADWATER_AUTOMATION": automation}
        return load_settings(environ)

    def repository(self, week: float) -> dg.RepositoryDefinition:
        settings = self.settings(week)
        keys = [*(k for m in self.catalog.models for k in healed_keys(m.name)), dg.AssetKey(["raw", "shop", "orders"])]
        sensors = [build(self.catalog, settings) for build in SENSORS]
        return dg.Definitions(assets=[_asset(key) for key in keys], sensors=sensors).get_repository_def()

    def tick(self, name: str, week: float = 10) -> SensorExecutionData:
        """One tick in a fresh context: what persists is the cursor, as after a restart of the daemon."""
        repository = self.repository(week)
        context = dg.build_sensor_context(self.instance, self.cursors.get(name), repository_def=repository)
        found = repository.get_sensor_def(name).evaluate_tick(context)
        self.cursors[name] = found.cursor
        return found


@pytest.fixture
def location(tmp_path: Path, catalog: Catalog, instance: dg.DagsterInstance) -> Location:
    return Location(tmp_path / "home", catalog, instance)


def judge(location: Location, verdicts: str, *, model: str = "churn", first: int = 1, version: str = "1") -> None:
    """Write weekly judgements into the lake: B breached, . calm, U upstream."""
    rows = [
        {
            "window_start": T0 + (week - 1) * WEEK,
            "window_end": T0 + week * WEEK,
            "feature": "avg_txn_amount_30d",
            "psi": 0.9,
            "kl": 0.4,
            "threshold": 0.2,
            "n_reference": 1000,
            "n_current": 100,
            "breached": verdict == "B",
            "upstream": "no events arrived" if verdict == "U" else None,
            "events": 100,
            "model": model,
            "version": version,
            "reference_digest": "d",
            "evaluated_at": T0 + week * WEEK,
        }
        for week, verdict in enumerate(verdicts, first)
    ]
    Lake(location.settings(0).lake_dir).append(keys.drift(model), pa.Table.from_pylist(rows, ROWS))


def test_sustained_drift_asks_for_one_run_over_many_ticks_and_restarts(location):
    judge(location, ".BBB")
    (request,) = location.tick("drift").run_requests
    assert request.run_key == "drift:churn-20240129T000000"
    assert request.asset_selection == healed_keys("churn")
    assert [k.to_user_string() for k in request.asset_selection] == [
        "models/churn/training_set",
        "models/churn/candidate",
        "models/churn/champion",
        "deployments/churn/endpoint",
        "predictions/churn/scores",
        "monitoring/churn/drift",
    ]
    tags = {name: value for name, value in request.tags.items() if name.startswith("headwater/")}
    assert tags == {
        "headwater/trigger": "drift",
        "headwater/model": "churn",
        "headwater/cause": "avg_txn_amount_30d PSI 0.90 over 0.20; in 3 or more of 4 windows up to 2024-01-29",
        "headwater/cause_id": "churn-20240129T000000",
    }
    for _ in range(5):
        again = location.tick("drift")
        assert again.run_requests == []
        assert "already requested" in again.skip_message


def test_the_same_episode_under_a_new_champion_asks_for_nothing(location):
    judge(location, ".BBB")
    assert len(location.tick("drift").run_requests) == 1
    judge(location, "....", version="2")
    judge(location, "BBB", first=5, version="2")
    assert location.tick("drift", week=30).run_requests == []


@pytest.mark.parametrize(
    ("verdicts", "why"), [("....", "no sustained drift"), ("BB..", "no sustained"), ("BBBU", "upstream")]
)
def test_no_drift_and_upstream_causes_ask_for_nothing(location, verdicts, why):
    judge(location, verdicts)
    for _ in range(3):
        tick = location.tick("drift")
        assert tick.run_requests == []
        assert f"churn: {why}" in tick.skip_message


def test_nothing_monitored_yet_is_said(location):
    tick = location.tick("drift")
    assert tick.run_requests == []
    assert "churn: no window has been judged yet" in tick.skip_message


def test_a_new_episode_asks_once_more_but_only_after_the_cooldown(location):
    judge(location, ".BBB")
    assert len(location.tick("drift", week=4).run_requests) == 1
    judge(location, "...BBB", first=5)
    cooling = location.tick("drift", week=5.5)
    assert cooling.run_requests == []
    assert "cooling down until 2024-02-12" in cooling.skip_message
    (request,) = location.tick("drift", week=10).run_requests
    assert request.run_key == "drift:churn-20240311T000000"
    assert location.tick("drift", week=20).run_requests == []


def test_a_new_instance_does_not_ask_again_for_what_a_retraining_has_answered(location):
    judge(location, ".BBB")
    (request,) = location.tick("drift", week=4).run_requests
    cause, at = request.tags["headwater/cause_id"], (T0 + 4 * WEEK).isoformat()
    location.cursors.clear()
    assert len(location.tick("drift", week=5).run_requests) == 1, "requested, but never answered"
    Ledger(location.settings(0).ledger_path).record(
        keys.answered_cause("churn"), cause, {"cause_id": cause, "requested_at": at}
    )
    location.cursors.clear()
    again = location.tick("drift", week=6)
    assert again.run_requests == []
    assert f"churn: already requested at {at} for {cause}" in again.skip_message


def test_each_model_heals_by_itself(location):
    judge(location, "BBB")
    judge(location, "BBB", model="clv")
    requests = location.tick("drift").run_requests
    assert [r.tags["headwater/model"] for r in requests] == ["churn", "clv"]
    assert location.tick("drift").run_requests == []


def test_a_run_in_progress_holds_the_request_back_and_does_not_lose_it(location, instance):
    judge(location, "BBB")
    tags = {"headwater/trigger": "changes"}
    running = instance.create_run_for_job(noop, tags=tags, status=DagsterRunStatus.STARTED)
    held = location.tick("drift")
    assert held.run_requests == []
    assert f"run {running.run_id} is in progress" in held.skip_message
    instance.report_run_canceled(running)
    assert len(location.tick("drift").run_requests) == 1


@dg.job
def noop() -> None:
    """A run to be in progress."""


@pytest.mark.parametrize("automation", ["on", "off"])
def test_sensors_start_by_themselves_only_when_automation_is_on(location, automation):
    settings = location.settings(1, automation)
    expected = dg.DefaultSensorStatus.RUNNING if automation == "on" else dg.DefaultSensorStatus.STOPPED
    for build in SENSORS:
        assert build(location.catalog, settings).default_status == expected


def arrive(location: Location, topic: str, count: int) -> None:
    batch = pa.table({"key": ["k"] * count, "value": ["{}"] * count, "timestamp_us": pa.array([1] * count, pa.int64())})
    with SqliteLog(location.settings(0).log_path) as log:
        log.append({topic: batch})


def land(location: Location) -> None:
    with SqliteLog(location.settings(0).log_path) as log:
        for topic in followed_topics(location.catalog):
            log.commit(GROUP, {source: log.end(source) for source in log.partitions(topic)})


def test_changes_ask_for_one_run_of_data_but_not_of_models(location):
    assert "no change log yet" in location.tick("changes").skip_message
    arrive(location, "cdc.shop.orders", 3)
    arrive(location, "predictions.churn.served", 2)
    (request,) = location.tick("changes").run_requests
    assert request.tags["headwater/cause"] == (
        "5 changes not landed: cdc.shop.orders-0 3, predictions.churn.served-0 2"
    )
    assert location.tick("changes").run_requests == []
    arrive(location, "cdc.shop.orders", 1)
    (later,) = location.tick("changes").run_requests
    assert later.run_key != request.run_key
    land(location)
    assert "everything has landed" in location.tick("changes").skip_message


def test_what_a_lander_has_landed_by_itself_asks_for_a_run_too(location):
    settings = location.settings(1)
    source = next(source for source in location.catalog.sources if source.table == "orders")
    arrive(location, "cdc.shop.orders", 2)
    with SqliteLog(settings.log_path) as log:
        land_changes(source, log, Lake(settings.lake_dir), 100)
    assert "everything has landed" in location.tick("changes").skip_message, "no run has ever taken anything"
    ledger = Ledger(settings.ledger_path)
    ledger.record("raw/shop/orders", "before", {"version": "0.-"})
    (request,) = location.tick("changes").run_requests
    assert request.tags["headwater/cause"] == "landed since the last run: raw.shop.orders"
    assert location.tick("changes").run_requests == []
    version = landed_version(source, Lake(settings.lake_dir))
    ledger.record("raw/shop/orders", "after", {"version": version})
    assert "everything has landed" in location.tick("changes").skip_message


def test_the_run_for_changes_covers_raw_to_monitors(location):
    repository = location.repository(1)
    (target,) = repository.get_sensor_def("changes").targets
    covered = repository.get_job(target.job_name).asset_layer.selected_asset_keys
    names = {key.to_user_string() for key in covered}
    monitored = [
        kind.format(m.name)
        for m in location.catalog.models
        for kind in ("predictions/{}/scores", "monitoring/{}/drift")
    ]
    assert names == {"raw/shop/orders", *monitored}


def test_a_stalled_consumer_fails_the_check_of_its_table_once_until_it_has_caught_up(location):
    def minutes_later() -> None:
        seen = json.loads(location.cursors["lag"])
        for table in seen.values():
            table["since"] = table["since"] and table["since"] - STALLED_BETWEEN_RUNS_S
        location.cursors["lag"] = json.dumps(seen)

    def reported() -> dict[str, bool]:
        found = location.tick("lag")
        return {"/".join(event.asset_key.path): event.passed for event in found.asset_events}

    assert "no change log yet" in location.tick("lag").skip_message
    arrive(location, "cdc.shop.orders", 3)
    others = {"raw/shop/customers": True, "raw/shop/products": True, "raw/shop/order_lines": True}
    assert reported() == others, "a backlog is not yet a stall"
    assert reported() == {}
    minutes_later()
    with SqliteLog(location.settings(0).log_path) as log:
        log.commit(GROUP, {TopicPartition("cdc.shop.orders", 0): 1})
    assert reported() == {}, "it gets on"
    minutes_later()
    assert reported() == {"raw/shop/orders": False}
    found = location.tick("lag")
    assert found.asset_events == []
    assert "the first of 2 records not landed is" in found.skip_message
    assert "Start `headwater land`" in found.skip_message
    land(location)
    assert reported() == {"raw/shop/orders": True}
    path = location.settings(0).log_path
    kept = path.read_bytes()
    path.write_bytes(b"this is no change log")
    assert reported() == {}
    minutes_later()
    assert reported() == {**dict.fromkeys(others, False), "raw/shop/orders": False}
    assert "set HEADWATER_LOG_URL to where it is" in location.tick("lag").skip_message
    path.write_bytes(kept)
    assert reported() == {**others, "raw/shop/orders": True}


def _asset(key: dg.AssetKey) -> dg.AssetsDefinition:
    @dg.asset(key=key)
    def nothing() -> None:
        """Only its key matters."""

    return nothing
