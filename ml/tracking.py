"""One training run as MLflow keeps it: parameters, metrics, plots, card, package, signature, digests, code.

The only module beside ml/registry.py that talks to MLflow. `mlflow.log_model` is not used: it infers requirements for
seconds and would store the model a second time; the package is logged as it is served, with an MLmodel file beside it
that carries signature and requirements.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

from catalog.spec import Model
from ml.contract import Signature
from ml.evaluation import ChampionScore, Evaluation
from ml.predictor import MODEL_FILES
from ml.training import Trained, TrainingSet

__all__ = [
    "CodeState",
    "Context",
    "code_state",
    "facts_of",
    "log_facts",
    "metrics_by_name",
    "open_client",
    "start_run",
    "write_mlmodel",
]

_MLFLOW_TYPES = {"int64": "long", "float64": "double", "string": "string", "bool": "boolean"}


@dataclass(frozen=True)
class CodeState:
    """The git commit that trained and whether the tree had changes; `unknown` outside a repository."""

    commit: str
    dirty: bool


@dataclass(frozen=True)
class Context:
    """Who trains, in which Dagster run, with which code; and for which drift since when, if a drift asked for it."""

    trained_by: str
    dagster_run_id: str
    code: CodeState
    cause_id: str = ""
    drifted_from: datetime | None = None


def code_state(root: Path | None = None) -> CodeState:
    """The state of the repository that holds `root` (this project's own when not given)."""
    root = root or Path(__file__).resolve().parents[1]
    commit = _git(root, "rev-parse", "HEAD")
    return (
        CodeState("unknown", False) if commit is None else CodeState(commit, bool(_git(root, "status", "--porcelain")))
    )


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):  # no git, or an installed copy without a repository
        return None
    return done.stdout.strip()


def open_client(uri: str) -> Any:
    """An MlflowClient on its own tracking and registry URI: no global state is touched but MLflow's chatter."""
    # MLflow reads these two from the environment only.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def start_run(client: Any, model: Model, artifacts: Path) -> Any:
    """A run in the experiment that is named as the model."""
    experiment = client.get_experiment_by_name(model.name)
    identity = (
        experiment.experiment_id
        if experiment
        else client.create_experiment(model.name, artifact_location=(artifacts / model.name).absolute().as_uri())
    )
    return client.create_run(identity, run_name=f"{model.name} {model.algorithm}")


def facts_of(model: Model, training_set: TrainingSet, signature: str, context: Context) -> dict[str, str]:
    """Where a version comes from, as the tags of its run and of the version; `signature` is the contract's digest."""
    return {
        "trained_by": context.trained_by,
        "trained_at": training_set.built_at.isoformat(),
        "dagster_run_id": context.dagster_run_id,
        "git_commit": context.code.commit,
        "git_dirty": str(context.code.dirty).lower(),
        "data_digest": training_set.digest,
        "signature_digest": signature,
        "features": json.dumps(model.features),
        "algorithm": model.algorithm,
        "owner": model.owner,
        **_drift_seen(model, training_set, context),
    }


def _drift_seen(model: Model, training_set: TrainingSet, context: Context) -> dict[str, str]:
    """What a retraining could learn of the drift that asked for it: which share of two label windows lies in it."""
    if not context.cause_id or context.drifted_from is None:
        return {}
    since, horizon = context.drifted_from, timedelta(days=model.label.horizon_days)

    def share(cutoff: datetime) -> str:
        return f"{max(0.0, (cutoff + horizon - max(cutoff, since)) / horizon):.2f}"

    cutoffs = training_set.cutoffs
    return {
        "cause_id": context.cause_id,
        "drifted_from": since.isoformat(),
        "drift_in_holdout": share(cutoffs.holdout),
        "drift_in_training": share(cutoffs.training[-1]),
    }


def log_facts(
    client: Any,
    run_id: str,
    model: Model,
    training_set: TrainingSet,
    evaluation: Evaluation,
    champion: ChampionScore | None,
    tags: Mapping[str, str],
) -> None:
    """Parameters, metrics, tags and the data set with its content digest, in two calls."""
    from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag

    now_ms = int(time.time() * 1000)
    parameters = {
        "algorithm": model.algorithm,
        "offset": model.offset or "none",
        "seed": model.seed,
        "horizon_days": model.label.horizon_days,
        "cutoffs": ", ".join(f"{c:%Y-%m-%d}" for c in training_set.cutoffs.training),
        "holdout_cutoff": f"{training_set.cutoffs.holdout:%Y-%m-%d}",
        **{f"parameters.{k}": v for k, v in model.parameters.items()},
    }
    client.log_batch(
        run_id,
        metrics=[Metric(k, v, now_ms, 0) for k, v in metrics_by_name(evaluation, champion).items()],
        params=[Param(k, str(v)) for k, v in parameters.items()],
        tags=[RunTag(k, v) for k, v in tags.items()],
    )
    # MLflow's own digest samples rows and has room for 36 characters; the whole sha256 is in the tag data_digest.
    source = json.dumps({"table": f"models/{model.name}/training_set"})
    dataset = Dataset(f"models.{model.name}.training_set", training_set.digest[:36], "lake", source)
    client.log_inputs(run_id, [DatasetInput(dataset)])


def metrics_by_name(evaluation: Evaluation, champion: ChampionScore | None) -> dict[str, float]:
    """Flat names: holdout/m, baseline/b/m, slice/s/m, slice/s/b/m, champion/m, and row counts."""
    found: dict[str, float] = {"rows/training": evaluation.training_rows, "rows/holdout": evaluation.rows}
    found |= {f"holdout/{m}": v for m, v in evaluation.metrics.items()}
    for name, metrics in evaluation.baselines.items():
        found |= {f"baseline/{name}/{m}": v for m, v in metrics.items()}
    for part in evaluation.slices:
        found[f"slice/{part.name}/rows"] = part.rows
        found |= {f"slice/{part.name}/{m}": v for m, v in part.metrics.items()}
        found |= {f"slice/{part.name}/{b}/{m}": v for b, ms in part.baselines.items() for m, v in ms.items()}
    if champion and champion.metrics is not None:
        found |= {f"champion/{m}": v for m, v in champion.metrics.items()}
    return found


def write_mlmodel(folder: Path, run_id: str, trained: Trained, signature: Signature) -> None:
    """MLmodel and requirements.txt beside the model file, so that MLflow shows the signature and can load the model."""
    from mlflow.models import Model as MLmodel
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs = Schema([ColSpec(_MLFLOW_TYPES[t], n, required=False) for n, t in signature.inputs])
    name, kind = signature.output
    outputs = Schema([ColSpec(_MLFLOW_TYPES[kind], name)])
    described = MLmodel(artifact_path="package", run_id=run_id, signature=ModelSignature(inputs, outputs))
    library = "lightgbm" if trained.fitted.kind == "lightgbm" else "onnxruntime"
    described.add_flavor("headwater", kind=trained.fitted.kind, data=MODEL_FILES[trained.fitted.kind])
    described.save(str(folder / "MLmodel"))
    pins = [f"{package}=={metadata.version(package)}" for package in (library, "numpy")]
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
