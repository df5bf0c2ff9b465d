"""The API over time: a new champion, a broken package, new features, a log that refuses, and what lands of it all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_shop import (
    CUSTOMERS,
    LATER,
    NOW,
    PLAN,
    TTL,
    app_of,
    deploy_version,
    environment,
    make_shop,
    materialise,
    served,
)

from catalog.clock import FixedClock
from catalog.keys import served_topic
from catalog.load import Catalog
from catalog.settings import Settings
from lake import Lake
from ml.deployment import roll_back
from serving.app import create_app
from serving.endpoints import Watcher
from serving.gateway import Gateway
from serving.prediction_log import Prediction
from serving.problems import NotDeployed
from streaming.landing import land_served
from streaming.sqlite_log import SqliteLog

Shop = tuple[Settings, Catalog]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    settings, catalog = make_shop(tmp_path)
    deploy_version(settings, catalog, "1")
    return settings, catalog


def predict(client: httpx.Client, *ids: int) -> httpx.Response:
    return client.post("/v1/models/churn:predict", json={"entities": [{"customer_id": i} for i in ids]})


def until(client: httpx.Client, path: str, holds: Callable[[Any], bool]) -> Any:
    """Ask until it holds; the watcher looks every 20 ms, a thousand requests take over a second."""
    for _ in range(5_000):
        if holds(answer := client.get(path).json()):
            return answer
    raise AssertionError(f"{path} never got there: {answer}")


def version_is(version: str) -> Callable[[Any], bool]:
    return lambda answer: bool(answer["version"] == version)


def test_a_new_champion_and_a_rollback_are_picked_up_without_restart(shop: Shop) -> None:
    settings, catalog = shop
    with served(app_of(settings, catalog)) as client:
        first = predict(client, 10).json()
        deploy_version(settings, catalog, "2")
        until(client, "/v1/models/churn", version_is("2"))
        second = predict(client, 10).json()
        roll_back(settings.endpoints_dir, "churn")
        until(client, "/v1/models/churn", version_is("1"))
        third = predict(client, 10).json()
    scores = [answer["predictions"][0]["prediction"] for answer in (first, second, third)]
    assert [first["version"], second["version"], third["version"]] == ["1", "2", "1"]
    assert scores[0] == scores[2] != scores[1]


def test_a_model_deployed_later_starts_to_answer(shop: Shop) -> None:
    settings, catalog = shop
    with served(app_of(settings, catalog)) as client:
        assert client.get("/v1/models/idle").json()["status"] == "not deployed"
        deploy_version(settings, catalog, "1", "idle")
        until(client, "/v1/models/idle", version_is("1"))
        assert client.get("/readyz").json()["not_deployed"] == []


@pytest.mark.parametrize("damaged", ["model.txt", "schema.json", "golden.json", "manifest.json"])
def test_a_broken_package_keeps_the_last_good_one_and_says_so(shop: Shop, damaged: str) -> None:
    settings, catalog = shop
    with served(app_of(settings, catalog)) as client:
        before = predict(client, 10).json()["predictions"][0]["prediction"]
        point_at_damaged_copy(settings, damaged)
        details = until(client, "/v1/models/churn", lambda answer: answer["status"] == "stale")
        after = predict(client, 10).json()
        ready, metrics = client.get("/readyz"), client.get("/metrics").text
    assert (after["version"], after["predictions"][0]["prediction"]) == ("1", before)
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert ready.json()["problems"]["model churn"] == details["problem"]
    assert damaged in details["problem"]
    assert 'headwater_model_stale{model="churn"} 1.0' in metrics
    assert 'headwater_model_load_failures_total{model="churn"} 1.0' in metrics


def point_at_damaged_copy(settings: Settings, damaged: str) -> None:
    """A version 2 with one byte more in a file, switched to as a deployment would, but without its verification."""
    home = settings.endpoints_dir / "churn"
    (home / "2").mkdir()
    for file in (home / "1").iterdir():
        (home / "2" / file.name).write_bytes(file.read_bytes())
    with (home / "2" / damaged).open("ab") as file:
        file.write(b"}")
    (home / "next").symlink_to("2")
    (home / "next").rename(home / "current")


def test_a_damaged_package_that_is_repaired_serves_again(shop: Shop) -> None:
    settings, catalog = shop
    with served(app_of(settings, catalog)) as client:
        point_at_damaged_copy(settings, "model.txt")
        until(client, "/v1/models/churn", lambda answer: answer["status"] == "stale")
        deploy_version(settings, catalog, "3")
        answer = until(client, "/v1/models/churn", version_is("3"))
        assert (answer["status"], answer["problem"]) == ("serving", None)
        assert client.get("/readyz").json()["status"] == "ready"


def test_new_features_are_picked_up_without_restart(shop: Shop) -> None:
    settings, catalog = shop
    with served(app_of(settings, catalog)) as client:
        assert predict(client, LATER).status_code == 404
        materialise(settings, with_later=True)
        found = next(r for _ in range(5_000) if (r := predict(client, LATER)).status_code == 200)
        assert found.json()["predictions"][0]["customer_id"] == LATER
        (settings.home / "broken").write_bytes(b"this is no store")
        (settings.home / "broken").replace(settings.online_path)
        problems = until(client, "/readyz", lambda answer: answer["status"] == "degraded")["problems"]
        assert "online features" in problems
        assert predict(client, LATER).status_code == 200


def test_served_predictions_are_logged_and_land(shop: Shop) -> None:
    settings, catalog = shop
    with served(app_of(settings, catalog)) as client:
        answers = [predict(client, *CUSTOMERS).json(), predict(client, 10, 10).json()]
    with SqliteLog(settings.log_path) as log:
        report = land_served("churn", log, Lake(settings.lake_dir))
        assert (report.landed, report.quarantined) == (6, 0)
        assert land_served("churn", log, Lake(settings.lake_dir)).landed == 0
        records = log.read(log.partitions(served_topic("churn"))[0], 0, 10)
    rows = {row["prediction_id"]: row for row in Lake(settings.lake_dir).read(report.key).to_pylist()}
    for answer in answers:
        for made in answer["predictions"]:
            row = rows[made["prediction_id"]]
            assert (row["customer_id"], row["prediction"]) == (made["customer_id"], made["prediction"])
            assert (row["model"], row["version"], row["request_id"]) == ("churn", "1", answer["request_id"])
            assert (row["served_at"], row["landed_at"]) == (NOW, NOW)
            assert row["features_as_of"].isoformat() + "Z" == made["features_as_of"]
    features = json.loads(rows[answers[0]["predictions"][2]["prediction_id"]]["features"])
    assert features == {"txn_count_30d": 3, "days_since_last_txn": 30.0, "country": None}
    assert tuple(features) == PLAN.names
    assert records["key"].to_pylist() == ["10", "11", "12", "13", "10", "10"]


def test_a_log_that_refuses_is_reported_and_nothing_is_lost_when_it_returns(shop: Shop) -> None:
    settings, catalog = shop
    settings.log_path.mkdir()  # a directory is no log: SQLite cannot open it
    with served(app_of(settings, catalog)) as client:
        made = predict(client, 10, 11)
        assert made.status_code == 200
        ready = until(client, "/readyz", lambda answer: answer["status"] == "degraded")
        assert "2 predictions kept, 0 lost" in ready["problems"]["prediction log"]
        metrics = client.get("/metrics").text
        assert "headwater_prediction_log_up 0.0" in metrics
        assert "headwater_prediction_log_pending 2.0" in metrics
        settings.log_path.rmdir()
        until(client, "/readyz", lambda answer: answer["status"] == "ready")
    assert logged(settings) == ["10", "11"]


def test_a_log_that_was_removed_is_opened_anew(shop: Shop) -> None:
    settings, catalog = shop
    with served(app_of(settings, catalog)) as client:
        predict(client, 10)
        appended = "headwater_prediction_log_appended_total 1.0"
        assert next(True for _ in range(5_000) if appended in client.get("/metrics").text)
        for file in settings.home.glob("log.db*"):
            file.unlink()
        predict(client, 11)
    assert logged(settings) == ["11"]


def logged(settings: Settings) -> list[str]:
    with SqliteLog(settings.log_path) as log:
        keys: list[str] = log.read(log.partitions(served_topic("churn"))[0], 0, 100)["key"].to_pylist()
        return keys


def test_without_a_business_time_nothing_is_served(shop: Shop) -> None:
    settings, catalog = shop
    gateway = Gateway(Settings(**{**vars(settings), "now": None}), catalog)
    gateway.refresh()
    with pytest.raises(NotDeployed, match="no replay has run"):
        gateway.predict("churn", [10])
    assert not gateway.health().ready
    gateway.close()


def test_an_instant_that_the_online_store_no_longer_answers_is_refused(shop: Shop) -> None:
    settings, catalog = shop
    with served(app_of(settings, catalog)) as client:
        assert predict(client, 10).status_code == 200
    gateway = Gateway(settings, catalog, FixedClock(NOW.replace(year=2009)))
    gateway.refresh()
    with pytest.raises(Exception, match="the online store answers for activity from"):
        gateway.predict("churn", [10])
    gateway.close()


def test_features_that_have_expired_have_no_date(shop: Shop) -> None:
    """The last event of 10 is 10 days old, of 13 it is 40; `activity` lives 400 days, `profile` for ever."""
    settings, catalog = shop
    with served(create_app(settings, catalog, FixedClock(NOW + TTL - timedelta(days=20)))) as client:
        answer = predict(client, 10, 13).json()
    seen = [NOW - timedelta(days=10), NOW - timedelta(days=40)]
    assert answer["feature_freshness"]["activity"]["oldest_event_at"] == seen[0].isoformat() + "Z"
    assert [p["features_as_of"] for p in answer["predictions"]] == [at.isoformat() + "Z" for at in seen]
    expired = Prediction("r-0", 13, 0.5, (None,), {"activity": None})
    assert expired.features_as_of is None
    with SqliteLog(settings.log_path) as log:
        assert land_served("churn", log, Lake(settings.lake_dir)).quarantined == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that it ends so is the point
def test_a_watcher_that_ended_by_an_unforeseen_error_is_reported(shop: Shop) -> None:
    class Defective:
        """Something watched that fails in a way nobody thought of."""

        def refresh(self) -> bool:
            raise ArithmeticError

    watcher = Watcher([Defective()], 0.001)
    assert not watcher.stopped
    settings, catalog = shop
    gateway = Gateway(settings, catalog, FixedClock(NOW))
    gateway.refresh()
    assert gateway.health().problems == {}
    gateway._watcher = watcher
    watcher.start()
    watcher._thread.join()
    health = gateway.health()
    assert (health.ready, health.status) == (True, "degraded")
    assert "new versions and features are not picked up" in health.problems["watcher"]
    gateway.close()


def test_the_serving_path_imports_no_registry_and_no_frame(shop: Shop) -> None:
    settings, _ = shop
    program = (
        "import sys, json\n"
        "from catalog.load import load_catalog\nfrom catalog.settings import load_settings\n"
        "import os\nfrom serving.app import create_app\n"
        "settings = load_settings(os.environ)\n"
        "create_app(settings, load_catalog(settings.catalog))\n"
        "print(json.dumps([m for m in ('dagster', 'mlflow', 'feast', 'pandas', 'sklearn', 'great_expectations') "
        "if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment(settings.home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_server_process_drains_its_log_when_it_is_told_to_stop(shop: Shop, stop: signal.Signals) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "headwater.cli", "serve", "--port", str(port)]
    settings = {**os.environ, **environment(shop[0].home)}
    with subprocess.Popen(command, env=settings, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert any("Application startup complete" in line for line in process.stderr)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                assert predict(client, 10, 11).status_code == 200
        finally:
            process.send_signal(stop)
        said = process.stderr.read()
    assert "Application shutdown complete" in said
    assert process.returncode == (0 if stop == signal.SIGINT else -signal.SIGTERM)
    assert logged(shop[0]) == ["10", "11"]


def test_a_port_that_is_taken_is_one_line_and_exit_code_1(shop: Shop) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        command = [sys.executable, "-m", "headwater.cli", "serve", "--port", str(taken.getsockname()[1])]
        settings = {**os.environ, **environment(shop[0].home)}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("headwater: cannot listen on 127.0.0.1 port")
    assert len(done.stderr.splitlines()) == 1
