"""A model package, loaded: checked files in, scores out. What serving imports; no registry, no DataFrame, no pickle.

A package is a folder `endpoints/<model>/<version>/` with
    model.txt | model.onnx   LightGBM text or ONNX
    plan.json                the compiled feature plan, as the feature service serves it online
    schema.json              task, encoding of each feature in order, preparation (ONNX), bounds of the output
    golden.json              rows with the scores that training computed for them
    manifest.json            model, version, algorithm, sha256 of every other file
and `endpoints/<model>/current` points at the version that is served. Packages are written by `ml.deployment`.

Errors: PackageError
          ├─ MissingPackage    no such folder, file or pointer
          ├─ CorruptPackage    a file is not what the manifest, or the manifest not what the registry, pinned
          └─ GoldenMismatch    the package does not reproduce training's scores
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ml.encoding import Encoding, Matrix
from ml.preparation import Preparation, offset_of

__all__ = [
    "MODEL_FILES",
    "CorruptPackage",
    "GoldenMismatch",
    "MissingPackage",
    "PackageError",
    "Predictor",
    "current_folder",
    "load_package",
    "manifest_digest",
    "verify_golden",
]

FORMAT = 1
MODEL_FILES = {"lightgbm": "model.txt", "onnx": "model.onnx"}
# Of the largest golden score. LightGBM's text keeps 17 digits; ONNX adds up in single precision, whose error grows with
# the largest term, not with the sum.
TOLERANCE = {"lightgbm": 1e-9, "onnx": 1e-5}

Score = Callable[[Matrix], Matrix]


class PackageError(RuntimeError):
    """The package cannot be used."""


class MissingPackage(PackageError):
    """No such folder, file or pointer."""


class CorruptPackage(PackageError):
    """A file differs from its pinned digest, or cannot be read."""


class GoldenMismatch(PackageError):
    """The package does not reproduce training's scores."""


@dataclass(frozen=True)
class Predictor:
    """One loaded model version. Safe to call from several threads at once.

    `plan` is plan.json's text, for `FeaturePlan.from_json`; `manifest` says where the version comes from.
    """

    model: str
    version: str
    task: str
    encoding: Encoding
    plan: str
    manifest: Mapping[str, Any]
    folder: Path
    minimum: float | None
    maximum: float | None
    _score: Score

    @property
    def feature_names(self) -> tuple[str, ...]:
        return self.encoding.names

    def score(self, rows: Matrix) -> Matrix:
        """Predictions [n] for encoded rows [n, n_features]: a probability, or an amount in the label's unit."""
        if rows.ndim != 2 or rows.shape[1] != len(self.encoding.features):
            raise ValueError(f"found rows of shape {rows.shape}, allowed is [n, {len(self.encoding.features)}]")
        if not len(rows):
            return np.empty(0, dtype=np.float64)
        return bounded(self._score(rows), self.minimum, self.maximum)

    def score_rows(self, rows: Sequence[Sequence[Any]]) -> Matrix:
        """Predictions for rows of raw feature values in feature order. Raises EncodingError."""
        return self.score(self.encoding.encode_rows(rows))

    def score_table(self, table: pa.Table) -> Matrix:
        """Predictions for a table that has a column for each feature. Raises EncodingError."""
        return self.score(self.encoding.encode_table(table))


def bounded(scores: Matrix, minimum: float | None, maximum: float | None) -> Matrix:
    """Scores cut to what the label can be: a sum of sales is never negative."""
    if minimum is None and maximum is None:
        return scores
    clipped: Matrix = np.clip(scores, minimum, maximum)
    return clipped


def current_folder(endpoints: Path, model: str) -> Path:
    """The folder that the model's pointer names; compare it with `Predictor.folder` to see a switch.

    Raises MissingPackage when nothing was deployed.
    """
    pointer = endpoints / model / "current"
    if not pointer.exists():
        raise MissingPackage(f"{pointer}: nothing is deployed for {model}; materialise deployments/{model}/endpoint")
    return pointer.resolve()


def manifest_digest(folder: Path) -> str:
    """sha256 of manifest.json, which pins every other file: what the registry keeps for a version."""
    return _digest(folder / "manifest.json")


def load_package(folder: Path, expected_digest: str | None = None) -> Predictor:
    """Check every digest, then load. `expected_digest` is the registry's `package_digest` of the version.

    Raises MissingPackage or CorruptPackage; golden rows are checked by `verify_golden`.
    """
    found = manifest_digest(folder)
    if expected_digest is not None and found != expected_digest:
        raise CorruptPackage(f"{folder}/manifest.json: found sha256 {found}, the registry pinned {expected_digest}")
    manifest = _read_json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise CorruptPackage(f"{folder}/manifest.json: found format {manifest.get('format')!r}, allowed is {FORMAT}")
    _check_files(folder, manifest)
    schema = _read_json(folder / "schema.json")
    encoding = Encoding.from_json(schema["features"])
    return Predictor(
        model=manifest["model"],
        version=manifest["version"],
        task=schema["task"],
        encoding=encoding,
        plan=(folder / "plan.json").read_text(encoding="utf-8"),
        manifest=manifest,
        folder=folder.resolve(),
        minimum=schema["output"]["minimum"],
        maximum=schema["output"]["maximum"],
        _score=_open_model(folder / MODEL_FILES[manifest["kind"]], manifest["kind"], schema),
    )


def verify_golden(predictor: Predictor) -> int:
    """Score the golden rows from raw values and compare with training's scores. Returns how many were compared.

    Raises GoldenMismatch that names the worst row.
    """
    golden = _read_json(predictor.folder / "golden.json")
    expected = np.array(golden["scores"], dtype=np.float64)
    if not len(expected):
        raise GoldenMismatch(f"{predictor.folder}: found no golden rows, so nothing proves the package")
    errors = np.abs(predictor.score_rows(golden["rows"]) - expected)
    allowed = TOLERANCE[predictor.manifest["kind"]] * max(1.0, float(np.abs(expected).max()))
    if not (errors <= allowed).all():
        worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
        raise GoldenMismatch(
            f"{predictor.folder}: {predictor.model} {predictor.version} is {errors[worst]:g} off training's score "
            f"{expected[worst]:g} in golden row {worst}, allowed is {allowed:g}"
        )
    return len(expected)


def _open_model(file: Path, kind: str, schema: Mapping[str, Any]) -> Score:
    if kind == "lightgbm":
        score = _open_lightgbm(file, len(schema["features"]))
    else:
        score = _open_onnx(file, Preparation.from_json(schema["preparation"]))
    position = schema.get("offset")
    return score if position is None else lambda rows: offset_of(rows, position) + score(rows)


def _open_lightgbm(file: Path, width: int) -> Score:
    import lightgbm

    try:
        booster = lightgbm.Booster(model_file=str(file))
    except lightgbm.basic.LightGBMError as error:
        raise CorruptPackage(f"{file}: LightGBM cannot read it ({error})") from error
    if booster.num_feature() != width:
        raise CorruptPackage(f"{file}: found a model of {booster.num_feature()} features, schema.json has {width}")

    def score(rows: Matrix) -> Matrix:
        # One thread: a server's workers are its parallelism, and waking OpenMP costs more than one row.
        scores: Matrix = booster.predict(rows, num_threads=1, validate_features=False)
        return scores

    return score


def _open_onnx(file: Path, preparation: Preparation) -> Score:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidGraph, InvalidProtobuf) as error:
        raise CorruptPackage(f"{file}: ONNX Runtime cannot read it ({error})") from error
    source, outputs = session.get_inputs()[0].name, [o.name for o in session.get_outputs()]
    # A classifier has (label, probabilities), a regressor its one variable: the last column is the score of both.
    wanted = [outputs[-1]]

    def score(rows: Matrix) -> Matrix:
        (values,) = session.run(wanted, {source: preparation.apply(rows)})
        return np.asarray(values, dtype=np.float64).reshape(len(rows), -1)[:, -1]

    return score


def _check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    needed = {"plan.json", "schema.json", "golden.json", MODEL_FILES.get(str(manifest.get("kind")), "model.txt")}
    if missing := needed - set(manifest.get("files", {})):
        raise CorruptPackage(f"{folder}/manifest.json: pins no {', '.join(sorted(missing))}")
    for name, pinned in manifest["files"].items():
        if (found := _digest(folder / name)) != pinned:
            raise CorruptPackage(f"{folder / name}: found sha256 {found}, pinned is {pinned}; deploy the version again")


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingPackage(f"{file}: no such file; deploy the version again") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptPackage(f"{file}: found text that is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CorruptPackage(f"{file}: found {type(content).__name__}, allowed is an object")
    return content
