"""Commands that predict, read features, trace, approve and roll back: the same shop as the API's tests."""

from __future__ import annotations

import csv
import json
import os
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result
from serving_shop import CUSTOMERS, LATER, NOW, PLAN, deploy_version, environment, make_shop, train_version

from catalog.keys import served_topic
from catalog.load import Catalog
from catalog.settings import Settings
from headwater.cli import cli
from lake import Lake
from ml.predictor import current_folder
from ml.registry import Registry
from ml.tracking import CodeState, Context
from streaming.landing import land_served
from streaming.sqlite_log import SqliteLog

# Feast's and MLflow's imports warn about protobuf, numpy and pydantic internals that are not ours to change.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    # MLflow's SQLite engine is closed by the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Shop = tuple[Settings, Catalog]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    settings, catalog = make_shop(tmp_path_factory.mktemp("shop"))
    deploy_version(settings, catalog, "1")
    return settings, catalog


def run(shop: Shop, *arguments: str) -> Result:
    inherited = {name: None for name in os.environ if name.startswith("HEADWATER_")}
    return CliRunner().invoke(cli, arguments, env={**inherited, **environment(shop[0].home)})


def test_predict_answers_like_the_api_and_logs(shop: Shop) -> None:
    done = run(shop, "predict", "churn", "--customer", "13", "--customer", "10", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert [p["customer_id"] for p in answer["predictions"]] == [13, 10]
    assert (answer["version"], answer["served_at"]) == ("1", NOW.isoformat() + "Z")
    with SqliteLog(shop[0].log_path) as log:
        values = log.read(log.partitions(served_topic("churn"))[0], 0, 100)["value"].to_pylist()
    assert [p["prediction_id"] for p in answer["predictions"]] == [json.loads(v)["prediction_id"] for v in values[-2:]]


def test_predict_as_text_has_data_on_stdout_and_words_on_stderr(shop: Shop) -> None:
    done = run(shop, "predict", "churn", "--customer", "10")
    header, row = done.stdout.splitlines()
    assert header.split() == ["customer_id", "prediction", "prediction_id", "features_as_of"]
    assert row.split()[0] == "10"
    assert "churn version 1, as of 2011-12-09T12:50:00Z" in done.stderr


def test_predict_refuses_unknown_customers_and_models_that_do_not_serve(shop: Shop) -> None:
    unknown = run(shop, "predict", "churn", "--customer", "10", "--customer", str(LATER))
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert f"without any event known by 2011-12-09T12:50:00Z: {LATER}; nothing was scored" in unknown.stderr
    idle = run(shop, "predict", "idle", "--customer", "10")
    assert (idle.exit_code, idle.stdout) == (3, "")


def test_a_prediction_that_cannot_be_logged_is_shown_and_fails(tmp_path: Path) -> None:
    settings, catalog = make_shop(tmp_path)
    deploy_version(settings, catalog, "1")
    settings.log_path.mkdir()
    done = run((settings, catalog), "predict", "churn", "--customer", "10", "--json")
    assert done.exit_code == 1
    assert len(json.loads(done.stdout)["predictions"]) == 1
    assert "could not be logged" in done.stderr


def test_features_online(shop: Shop) -> None:
    done = run(shop, "features", "online", "churn", "--customer", "10", "--customer", "12", "--json")
    first, second = json.loads(done.stdout)["customers"]
    assert {name: first[name] for name in PLAN.names} == {
        "txn_count_30d": 1,
        "days_since_last_txn": 10.0,
        "country": "United Kingdom",
    }
    assert (second["country"], second["as_of"]["activity"]) == (None, (NOW - timedelta(days=30)).isoformat())
    table = run(shop, "features", "online", "churn", "--customer", "10").stdout
    assert [line.split()[:2] for line in table.splitlines()[:2]] == [["feature", "10"], ["txn_count_30d", "1"]]
    unknown = run(shop, "features", "online", "churn", "--customer", str(LATER))
    assert (unknown.exit_code, unknown.stdout) == (1, "")


def test_features_online_of_a_model_that_was_never_deployed(shop: Shop) -> None:
    done = run(shop, "features", "online", "idle", "--customer", "10", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["customers"][0]["days_since_last_txn"] == 10.0


def test_features_historical_returns_every_row_in_order(shop: Shop, tmp_path: Path) -> None:
    seen = NOW - timedelta(days=10)
    rows = [
        (11, NOW, "now"),
        (10, seen - timedelta(microseconds=1), "before the first event"),
        (10, seen, "at the event"),
        (10, seen + timedelta(days=5), "later"),
        (10, seen + timedelta(days=5), "again"),
        (777, NOW, "nobody"),
    ]
    entities = pa.table(
        {
            "note": [note for *_, note in rows],
            "customer_id": [customer for customer, *_ in rows],
            "event_timestamp": pa.array([at for _, at, _ in rows], pa.timestamp("us", "UTC")),
        }
    )
    pyarrow.parquet.write_table(entities, tmp_path / "entities.parquet")
    done = run(
        shop, "features", "historical", "churn", str(tmp_path / "entities.parquet"), "-o", str(tmp_path / "o.parquet")
    )
    assert (done.exit_code, done.stdout) == (0, ""), done.output
    found = pyarrow.parquet.read_table(tmp_path / "o.parquet")
    assert found.column_names == ["note", "customer_id", "event_timestamp", *PLAN.names]
    assert found["note"].to_pylist() == entities["note"].to_pylist()
    assert found["txn_count_30d"].to_pylist() == [2, None, 1, 1, 1, None]
    assert found["days_since_last_txn"].to_pylist() == [20.0, None, 0.0, 5.0, 5.0, None]
    assert found["country"].to_pylist() == ["France", None, *["United Kingdom"] * 3, None]
    done = run(shop, "features", "historical", "churn", str(tmp_path / "o.parquet"), "-o", str(tmp_path / "x.csv"))
    assert (done.exit_code, "already have columns named like features" in done.stderr) == (1, True)


def test_features_historical_to_csv_and_what_it_refuses(shop: Shop, tmp_path: Path) -> None:
    entities = tmp_path / "entities.csv"
    entities.write_text("customer_id,event_timestamp\n10,2011-12-09T12:50:00\n")
    out = tmp_path / "out.csv"
    assert run(shop, "features", "historical", "churn", str(entities), "-o", str(out)).exit_code == 0
    with out.open() as file:
        assert [row["txn_count_30d"] for row in csv.DictReader(file)] == ["1"]
    entities.write_text("customer_id,at\n10,2011-12-09\n")
    refused = run(shop, "features", "historical", "churn", str(entities), "-o", str(out))
    assert refused.exit_code == 1
    assert "found columns customer_id, at; needed are customer_id and event_timestamp" in refused.stderr
    assert run(shop, "features", "historical", "churn", str(tmp_path / "no.csv"), "-o", str(out)).exit_code == 2
    assert run(shop, "features", "historical", "churn", str(entities), "-o", "out.xlsx").exit_code == 1


def test_sql_reads_the_lake_and_nothing_else(shop: Shop) -> None:
    done = run(shop, "sql", "SELECT count(*) AS n FROM features.customer.activity", "--format", "json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, [{"n": len(CUSTOMERS)}])
    near = run(shop, "sql", "SELECT * FROM features.customer.activities")
    assert (near.exit_code, "near names are features.customer.activity" in near.stderr) == (1, True)
    assert run(shop, "sql", "SELEC 1").exit_code == 1
    assert run(shop, "sql", f"COPY (SELECT 1) TO '{shop[0].home}/x.csv'").exit_code == 1
    assert not (shop[0].home / "x.csv").exists()


def test_drift_status_without_judgement(shop: Shop) -> None:
    for arguments in (["churn", "--json"], []):
        done = run(shop, "drift", "status", *arguments)
        assert (done.exit_code, done.stdout) == (3, "")
        assert "has been judged in" in done.stderr
        assert "`headwater run` judges them" in done.stderr


def test_the_life_of_two_versions(tmp_path: Path) -> None:
    """Registered, traced, refused, approved, served, rolled back: through the commands, on a real registry."""
    settings, catalog = make_shop(tmp_path)
    shop, registry, model = (settings, catalog), Registry.open(settings), catalog.model("churn")
    for seed in ("1", "2"):
        training_set, trained = train_version(model, seed)
        context = Context("trainer", f"dagster-{seed}", CodeState("c0ffee", False))
        registered = registry.register_candidate(model, training_set, trained, PLAN, context)
        assert registered.gate.passed, registered.gate.describe()

    traced = json.loads(run(shop, "lineage", "churn", "--version", "1", "--json").stdout)
    assert (traced["run_id"] != "", len(traced["data_digest"]), traced["git_commit"]) == (True, 64, "c0ffee")
    assert (traced["approved_by"], traced["features"]) == (None, list(model.features))
    assert "data digest" in run(shop, "lineage", "churn").stdout
    assert run(shop, "lineage", "idle").exit_code == 3

    refused = run(shop, "approve", "churn", "1", "--by", "trainer", "--note", "mine")
    assert (refused.exit_code, "who cannot approve it too" in refused.stderr) == (1, True)
    assert run(shop, "approve", "churn", "9", "--by", "alice", "--note", "x").exit_code == 3
    assert run(shop, "predict", "churn", "--customer", "10").exit_code == 3

    for version in ("1", "2"):
        approved = run(shop, "approve", "churn", version, "--by", "alice", "--note", "good on new customers")
        assert approved.exit_code == 0, approved.output
        assert "golden rows verified" in approved.stderr
        assert current_folder(settings.endpoints_dir, "churn").name == version
        made = json.loads(run(shop, "predict", "churn", "--customer", "10", "--json").stdout)
        assert made["version"] == version
    assert json.loads(run(shop, "lineage", "churn", "--json").stdout)["approved_by"] == "alice"

    back = run(shop, "rollback", "churn", "--note", "odd scores")
    assert (back.exit_code, "churn 1 is champion, was 2; by tester: odd scores" in back.stderr) == (0, True)
    assert current_folder(settings.endpoints_dir, "churn").name == "1"
    told = [line.split(maxsplit=1) for line in run(shop, "lineage", "churn").stdout.splitlines()]
    assert ["note", "good on new customers"] in told
    assert any("rollback: 1 for 2; by tester: odd scores" in line[-1] for line in told)
    again = run(shop, "rollback", "churn")
    assert (again.exit_code, "none came before it" in again.stderr) == (1, True)

    listed = {row["version"]: row for row in json.loads(run(shop, "models", "--json").stdout)}
    assert (listed["1"]["serves"], listed["2"]["serves"]) == ("yes", "no")
    assert (listed["1"]["aliases"], listed["2"]["aliases"]) == ("champion", "candidate")
    assert [row["approved_by"] for row in listed.values()] == ["alice", "alice"]
    with SqliteLog(settings.log_path) as log:
        assert land_served("churn", log, Lake(settings.lake_dir)).landed == 2
