"""A tiny shop for tests of the API and the command line: real online store, real packages, no graph run and no Feast.

Five customers; 10 to 13 have bought, 99 arrives only later. `deploy_version` trains on planted data, so that two
versions differ.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import uvicorn
from fastapi import FastAPI

from catalog.clock import FixedClock
from catalog.keys import Key
from catalog.load import Catalog, load_catalog
from catalog.settings import Settings, load_settings
from catalog.spec import Model
from lake import Lake
from ml.deployment import deploy, seal, write_files
from ml.feature_plan import FeaturePlan, PlannedFeature, PlannedView
from ml.online_writer import OnlineView, materialize_online
from ml.predictor import manifest_digest
from ml.training import Cutoffs, Trained, TrainingSet, content_digest, train
from serving.app import create_app

NOW = datetime(2011, 12, 9, 12, 50)
CUSTOMERS = (10, 11, 12, 13)
LATER = 99
TTL = timedelta(days=400)
ACTIVITY = OnlineView(
    "activity",
    Key("features", "customer", "activity"),
    "customer_id",
    "event_timestamp",
    "created_timestamp",
    TTL // timedelta(microseconds=1),
    (("txn_count_30d", "int64"), ("last_txn_at", "timestamp")),
)
PROFILE = OnlineView(
    "profile",
    Key("features", "customer", "profile"),
    "customer_id",
    "event_timestamp",
    "created_timestamp",
    None,
    (("country", "string"),),
)
PLAN = FeaturePlan(
    "churn",
    "customer_id",
    (PlannedView("activity", ACTIVITY.ttl_us), PlannedView("profile", None)),
    (
        PlannedFeature("txn_count_30d", "activity", "int64", "txn_count_30d"),
        PlannedFeature("days_since_last_txn", "activity", "float64", "last_txn_at", "last_txn_at"),
        PlannedFeature("country", "profile", "string", "country"),
    ),
)
MODEL = """
name: {name}
description: Probability that a customer does not come back.
purpose: Try the serving path in a test.
limits: ["Made of planted data."]
owner: team:data-science
domain: customers
entity: customer
task: binary
features: [activity:txn_count_30d, activity:days_since_last_txn, profile:country]
label: {{kind: no_event, table: marts/sales/purchase_lines, horizon_days: 90}}
algorithm: lightgbm
parameters: {{n_estimators: 5, num_leaves: 4, min_child_samples: 5}}
baselines: [majority]
gate: {{metric: roc_auc}}
promotion: {{policy: approve}}
"""


def make_shop(home: Path, max_body_bytes: int = 65_536) -> tuple[Settings, Catalog]:
    """Settings and a catalog of two models, `churn` and `idle`; the online store is filled, nothing is deployed."""
    models = home / "catalog" / "models"
    models.mkdir(parents=True)
    for name in ("churn", "idle"):
        (models / f"{name}.yaml").write_text(MODEL.format(name=name))
    settings = load_settings(environment(home, max_body_bytes))
    materialise(settings)
    return settings, load_catalog(settings.catalog)


def environment(home: Path, max_body_bytes: int = 65_536) -> dict[str, str]:
    """The settings as a process gets them."""
    return {
        "HEADWATER_HOME": str(home),
        "HEADWATER_CATALOG": str(home / "catalog"),
        "HEADWATER_NOW": NOW.isoformat(),
        "HEADWATER_MAX_BODY_BYTES": str(max_body_bytes),
        "HEADWATER_ACTOR": "tester",
    }


def materialise(settings: Settings, *, with_later: bool = False) -> None:
    """Fill the online store; `with_later` brings the fifth customer."""
    lake = Lake(settings.lake_dir)
    ids = [*CUSTOMERS, *([LATER] if with_later else [])]
    seen = [NOW - timedelta(days=10 * (n + 1)) for n in range(len(ids))]
    clocks = {"customer_id": ids, "event_timestamp": seen, "created_timestamp": seen}
    counts = pa.array(range(1, len(ids) + 1), pa.int64())
    lake.overwrite(ACTIVITY.table, _timed({**clocks, "txn_count_30d": counts, "last_txn_at": seen}))
    countries = ["United Kingdom", "France", None, "Atlantis", "France"][: len(ids)]
    lake.overwrite(PROFILE.table, _timed({**clocks, "country": pa.array(countries, pa.string())}))
    materialize_online(lake, settings.online_path, [ACTIVITY, PROFILE], NOW)


def _timed(columns: dict[str, object]) -> pa.Table:
    kinds = {"event_timestamp", "created_timestamp", "last_txn_at"}
    return pa.table({n: pa.array(v, pa.timestamp("us")) if n in kinds else v for n, v in columns.items()})


def deploy_version(settings: Settings, catalog: Catalog, version: str, model: str = "churn") -> Path:
    """Train, package and switch to a version; the seed of its data is its number. Returns the served folder."""
    declared = catalog.model(model)
    _, trained = train_version(declared, version)
    package = settings.home / "packages" / model / version
    write_files(package, declared, trained, PLAN)
    (package / "card.md").write_text(f"# {model}, version {version}\n")
    (package / "card.html").write_text(f"<!doctype html><h1>{model}, version {version}</h1>")
    seal(package, declared, version, trained.fitted.kind, {"run_id": f"run-{version}", "data_digest": "d" * 64})
    return deploy(package, manifest_digest(package), settings.endpoints_dir).folder


def train_version(model: Model, seed: str) -> tuple[TrainingSet, Trained]:
    """A training set planted from the seed, and the model fitted to it."""
    training_set = _training_set(model.name, int(seed))
    return training_set, train(model, training_set)


def _training_set(model: str, seed: int) -> TrainingSet:
    random, n = np.random.default_rng(seed), 600
    days = random.uniform(0, 120, n)
    held = np.arange(n) >= n * 2 // 3
    table = pa.table(
        {
            "customer_id": np.arange(n),
            "event_timestamp": pa.array([NOW] * n, pa.timestamp("us")),
            "cutoff": pa.array([NOW] * n, pa.timestamp("us")),
            "label": (days + random.normal(0, 30, n) > 40 + 10 * seed).astype(np.int64),
            "is_holdout": held,
            "baseline_recency_days": days,
            "baseline_sum_90d": random.uniform(0, 100, n),
            "txn_count_30d": random.integers(0, 6, n),
            "days_since_last_txn": days,
            "country": random.choice(["United Kingdom", "France", "Germany"], n),
        }
    )
    return TrainingSet(model, table, PLAN.names, Cutoffs((NOW,), NOW), content_digest(table), NOW)


@contextmanager
def served(app: FastAPI) -> Iterator[httpx.Client]:
    """The application on a real socket, and a client for it; drained at the end."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def app_of(settings: Settings, catalog: Catalog, poll_s: float = 0.02) -> FastAPI:
    """The application on a clock that stands still."""
    return create_app(settings, catalog, FixedClock(NOW), poll_s)
