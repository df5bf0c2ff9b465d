"""From a trained model to a package, and from a package to what is served: verified, then switched atomically.

`endpoints/<model>/current` is a symbolic link that is replaced by rename, so a reader sees the old version or the new
one and nothing between; `previous` is where it pointed before. What a package is, and how it is loaded, is in
ml/predictor.py. Nothing here knows a registry or which version ought to be served.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalog.spec import Model
from ml.encoding import Matrix
from ml.feature_plan import FeaturePlan
from ml.predictor import (
    FORMAT,
    MODEL_FILES,
    MissingPackage,
    PackageError,
    Predictor,
    current_folder,
    load_package,
    verify_golden,
)
from ml.training import Trained

__all__ = ["Deployment", "deploy", "roll_back", "seal", "write_files"]

GOLDEN_ROWS = 64


@dataclass(frozen=True)
class Deployment:
    """What is served now. `switched` is false when the version was served already."""

    model: str
    version: str
    previous: str | None
    folder: Path
    golden_rows: int
    switched: bool


def write_files(folder: Path, model: Model, trained: Trained, plan: FeaturePlan) -> None:
    """Write model, plan, schema and golden rows; `seal` then pins them.

    Raises NotExportable when the model has no form but pickle.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained.fitted.save(folder / MODEL_FILES[trained.fitted.kind])
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    preparation = trained.fitted.preparation
    schema = {
        "entity": plan.entity,
        "task": model.task,
        "features": trained.encoding.to_json(),
        "preparation": preparation.to_json() if preparation else None,
        "offset": None if model.offset is None else trained.encoding.names.index(model.offset),
        "output": {"name": "prediction", "minimum": trained.minimum, "maximum": trained.maximum},
    }
    _write_json(folder / "schema.json", schema)
    holdout = trained.evaluation.holdout
    _write_json(folder / "golden.json", _golden(holdout.table.select(list(trained.encoding.names)), holdout.scores))


def _golden(features: pa.Table, scores: Matrix) -> dict[str, Any]:
    """Rows spread evenly over the range of scores: the extremes are where formats differ."""
    order = np.argsort(scores, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(GOLDEN_ROWS, len(order))).round().astype(int)]
    columns = [features.column(name).take(pa.array(chosen)).to_pylist() for name in features.column_names]
    return {
        "features": features.column_names,
        "rows": [list(row) for row in zip(*columns, strict=True)],
        "scores": scores[chosen].tolist(),
    }


def seal(folder: Path, model: Model, version: str, kind: str, provenance: Mapping[str, str]) -> Predictor:
    """Pin every file of the folder in manifest.json, then prove the package: load it and score its golden rows.

    Raises PackageError.
    """
    files = sorted(f for f in folder.iterdir() if f.name != "manifest.json")
    manifest = {
        "format": FORMAT,
        "model": model.name,
        "version": version,
        "kind": kind,
        "algorithm": model.algorithm,
        "provenance": dict(provenance),
        "files": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
    }
    _write_json(folder / "manifest.json", manifest)
    predictor = load_package(folder)
    verify_golden(predictor)
    return predictor


def deploy(package: Path, expected_digest: str, endpoints: Path) -> Deployment:
    """Copy a package beside the served one, verify digests and golden rows, then switch.

    `expected_digest` is the one that the registry pinned at registration. Raises PackageError; what was served stays.
    """
    predictor = load_package(package, expected_digest)
    golden = verify_golden(predictor)
    home = endpoints / predictor.model
    folder = _install(package, home, predictor.version, expected_digest)
    before = _target(home / "current")
    if before == folder.name:
        return Deployment(predictor.model, predictor.version, _target(home / "previous"), folder, golden, False)
    if before is not None:
        _point(home / "previous", before)
    _point(home / "current", folder.name)
    return Deployment(predictor.model, predictor.version, before, folder, golden, True)


def _install(package: Path, home: Path, version: str, digest: str) -> Path:
    """The version's own folder, whole or not there; one that is damaged is replaced."""
    folder = home / version
    if _is_sound(folder, digest):
        return folder
    incoming = home / f".incoming-{uuid.uuid4().hex}"
    shutil.copytree(package, incoming)
    verify_golden(load_package(incoming, digest))
    if folder.exists():
        folder.rename(home / f".damaged-{uuid.uuid4().hex}")
    incoming.rename(folder)
    return folder


def _is_sound(folder: Path, digest: str) -> bool:
    try:
        return verify_golden(load_package(folder, digest)) > 0
    except PackageError:
        return False


def roll_back(endpoints: Path, model: str) -> Deployment:
    """Point back at the version that was served before, after verifying it; calling it twice returns to the first.

    Raises MissingPackage when there is none, PackageError when it is damaged; what is served stays.
    """
    home = endpoints / model
    current, previous = current_folder(endpoints, model), _target(home / "previous")
    if previous is None:
        raise MissingPackage(f"{home}/previous: no version of {model} was served before {current.name}")
    predictor = load_package(home / previous)
    golden = verify_golden(predictor)
    _point(home / "current", previous)
    _point(home / "previous", current.name)
    return Deployment(model, predictor.version, current.name, predictor.folder, golden, True)


def _target(pointer: Path) -> str | None:
    return os.readlink(pointer) if pointer.is_symlink() else None


def _point(pointer: Path, target: str) -> None:
    """A link cannot be overwritten, but a rename over it is atomic."""
    fresh = pointer.with_name(f".{pointer.name}-{uuid.uuid4().hex}")
    fresh.symlink_to(target)
    fresh.replace(pointer)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
