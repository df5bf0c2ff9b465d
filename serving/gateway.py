"""From a model's name and customer ids to logged predictions. Used by the API and by `headwater predict` alike.

What a request needs is in memory: the package, the compiled feature plan, the online features. No DataFrame, registry
or SQL on this path; the clock is injected.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from catalog.clock import Clock, ClockError
from catalog.load import Catalog
from catalog.settings import Settings
from ml.encoding import EncodingError
from ml.feature_plan import FeatureError, FeaturePlan
from ml.online_reader import OnlineReader, OnlineRow
from ml.predictor import CorruptPackage, PackageError, Predictor, current_folder, load_package, verify_golden
from serving.endpoints import Refreshable, Slot, Watched, Watcher
from serving.prediction_log import LogHealth, Prediction, PredictionLog, Predictions
from serving.problems import FeaturesUnavailable, NotDeployed, UnknownCustomers, UnknownModel
from streaming.open_log import open_log

__all__ = ["Endpoint", "Gateway", "Health"]


@dataclass(frozen=True)
class Endpoint:
    """One deployed model version, ready to score."""

    predictor: Predictor
    plan: FeaturePlan

    def __str__(self) -> str:
        return f"version {self.predictor.version}"


@dataclass(frozen=True)
class Health:
    """`ready`: at least one model answers. `problems` by what they concern; none of them stops what is `ready`.

    `not_deployed` are the declared models that cannot answer; one that waits for its approver is nothing wrong.
    """

    ready: bool
    problems: Mapping[str, str]
    not_deployed: tuple[str, ...]

    @property
    def status(self) -> str:
        if not self.ready:
            return "not ready"
        return "degraded" if self.problems else "ready"


class Gateway:
    """Every declared model's endpoint, the online features and the log of served predictions."""

    def __init__(self, settings: Settings, catalog: Catalog, clock: Clock | None = None, poll_s: float = 1.0) -> None:
        self.catalog = catalog
        self._clock = clock or settings.clock()
        self._endpoints = {m.name: _endpoint(settings.endpoints_dir, m.name) for m in catalog.models}
        self._online = _online_store(settings.online_path)
        self._log = PredictionLog(lambda: open_log(settings), lambda: settings.log_url or _inode(settings.log_path))
        self._watched: tuple[Refreshable, ...] = (self._online, *self._endpoints.values())
        self._watcher = Watcher(self._watched, poll_s)

    def start(self) -> None:
        """Load what there is and begin to watch."""
        self.refresh()
        self._watcher.start()

    def refresh(self) -> None:
        """Look now, without waiting for the watcher."""
        for watched in self._watched:
            watched.refresh()

    def close(self) -> LogHealth:
        """Stop watching and append what is still to be logged."""
        self._watcher.close()
        return self._log.close()

    def predict(self, model: str, customer_ids: Sequence[int]) -> Predictions:
        """Score the customers as of the clock's now and log it.

        Raises UnknownModel, NotDeployed, FeaturesUnavailable or UnknownCustomers; then nothing was scored.
        """
        endpoint = self.endpoint(model)
        now = self.now()
        rows = self._read(endpoint.plan, customer_ids, now)
        scores = _scores(endpoint.predictor, rows)
        request_id = uuid.uuid4().hex
        made = Predictions(
            request_id=request_id,
            model=model,
            version=endpoint.predictor.version,
            served_at=now,
            feature_names=endpoint.predictor.feature_names,
            predictions=tuple(
                Prediction(f"{request_id}-{n}", customer_id, score, row.values, row.as_of)
                for n, (customer_id, score, row) in enumerate(zip(customer_ids, scores, rows, strict=True))
            ),
        )
        self._log.offer(made)
        return made

    def endpoint(self, model: str) -> Endpoint:
        """The version that serves. Raises UnknownModel or NotDeployed."""
        endpoint = self.slot(model).loaded
        if endpoint is None:
            raise NotDeployed(
                f"found no usable package of model {model!r} ({self.slot(model).problem}); run `headwater run`, and "
                f"`headwater approve {model} VERSION` if its promotion waits for an approver",
                {"model": model},
            )
        return endpoint

    def slot(self, model: str) -> Slot[Endpoint]:
        """What serves, and why the newest package does not if it does not. Raises UnknownModel."""
        if model not in self._endpoints:
            raise UnknownModel(model, list(self._endpoints))
        return self._endpoints[model].slot

    def now(self) -> datetime:
        """The business instant. Raises NotDeployed when there is none yet."""
        try:
            return self._clock.now()
        except ClockError as error:
            raise NotDeployed(f"found no business time: {error}") from None

    def health(self) -> Health:
        """What answers, and everything that is wrong."""
        slots: dict[str, Slot[Endpoint]] = {name: watched.slot for name, watched in self._endpoints.items()}
        problems = {f"model {name}": str(slot.problem) for name, slot in slots.items() if slot.stale}
        if self._online.slot.problem:
            problems["online features"] = self._online.slot.problem
        if self._watcher.stopped:
            problems["watcher"] = "it has stopped: new versions and features are not picked up; restart this process"
        log = self._log.health()
        if log.error:
            problems["prediction log"] = f"{log.error} ({log.pending} predictions kept, {log.lost} lost)"
        try:
            self.now()
            has_clock = True
        except NotDeployed as error:
            has_clock, problems["clock"] = False, error.detail
        answers = any(slot.loaded for slot in slots.values())
        waiting = tuple(name for name, slot in slots.items() if slot.loaded is None)
        return Health(answers and has_clock and self._online.slot.loaded is not None, problems, waiting)

    def log_health(self) -> LogHealth:
        """How the log of served predictions does."""
        return self._log.health()

    def _read(self, plan: FeaturePlan, customer_ids: Sequence[int], now: datetime) -> list[OnlineRow]:
        reader = self._online.slot.loaded
        if reader is None:
            raise FeaturesUnavailable(
                f"found no usable online features ({self._online.slot.problem}); "
                "run `headwater run`, or materialise features/customer/online"
            )
        try:
            rows = reader.read(plan, customer_ids, now)
        except FeatureError as error:
            raise FeaturesUnavailable(str(error)) from None
        unknown = [customer_id for customer_id, row in zip(customer_ids, rows, strict=True) if row is None]
        if unknown:
            raise UnknownCustomers(unknown, now.isoformat() + "Z")
        return [row for row in rows if row is not None]


def _scores(predictor: Predictor, rows: Sequence[OnlineRow]) -> list[float]:
    try:
        scores: list[float] = predictor.score_rows([row.values for row in rows]).tolist()
    except EncodingError as error:
        raise FeaturesUnavailable(f"model {predictor.model} version {predictor.version}: {error}") from None
    return scores


def _endpoint(endpoints: Path, model: str) -> Watched[Endpoint]:
    current = endpoints / model / "current"
    return Watched(
        f"endpoint of {model}",
        lambda: (current, *sorted(current.glob("*"))),
        lambda: _load_endpoint(current_folder(endpoints, model)),
        (PackageError, FeatureError, OSError, ValueError, KeyError),
    )


def _load_endpoint(folder: Path) -> Endpoint:
    predictor = load_package(folder)
    # Digests say that the files are the right ones, golden rows that this machine computes what training did.
    verify_golden(predictor)
    plan = FeaturePlan.from_json(predictor.plan)
    if plan.names != predictor.feature_names:
        raise CorruptPackage(
            f"{predictor.folder}: found features {', '.join(plan.names)} in plan.json, "
            f"{', '.join(predictor.feature_names)} in schema.json"
        )
    return Endpoint(predictor, plan)


def _online_store(path: Path) -> Watched[OnlineReader]:
    return Watched(
        "online features",
        lambda: (path, path.with_name(path.name + "-wal")),
        _Preloaded(path).load,
        (FeatureError, OSError, sqlite3.Error, ValueError, KeyError),
        lambda reader: ", ".join(f"{view} generation {n}" for view, n in reader.generations().items()),
    )


class _Preloaded:
    """The online store in memory: a new file is opened, new generations of the same file are taken over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: OnlineReader | None = None
        self._opened: int | None = None

    def load(self) -> OnlineReader:
        inode = _inode(self._path)
        if self._reader is not None and inode == self._opened:
            self._reader.refresh()
            return self._reader
        reader = OnlineReader(self._path)
        reader.preload()
        if self._reader is not None:
            self._reader.close()
        self._reader, self._opened = reader, inode
        return reader


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None
