"""Every served prediction goes to the change log, with all that is needed to replay it; written in the background.

A request only queues its predictions. One thread appends what is queued at most `linger_s` later, in batches; when the
log refuses, it keeps them and tries again with a growing pause. The queue is bounded: what does not fit is counted as
lost and reported, never silently. Delivery is at least once: `prediction_id` identifies a prediction.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
import pyarrow as pa

from catalog.keys import served_topic
from streaming.log import ChangeLog, LogError

__all__ = ["LogHealth", "Prediction", "PredictionLog", "Predictions"]

logger = logging.getLogger(__name__)

# Two minutes at 800 predictions a second, about 60 MB: long enough to outlive a restart of the log.
CAPACITY = 100_000
_ROWS_PER_APPEND = 20_000
_LONGEST_PAUSE_S = 5.0
_EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True)
class Prediction:
    """One customer's prediction and what it was made from; `as_of` is each view's latest event of the customer.

    None: older than the view's time to live, so its features were null.
    """

    prediction_id: str
    customer_id: int
    prediction: float
    features: Sequence[Any]
    as_of: Mapping[str, datetime | None]

    @property
    def features_as_of(self) -> datetime | None:
        """The customer's latest event that any feature was computed from."""
        return max((at for at in self.as_of.values() if at is not None), default=None)


@dataclass(frozen=True)
class Predictions:
    """The answer to one request; `predictions` in the order asked for, features in the order of `feature_names`."""

    request_id: str
    model: str
    version: str
    served_at: datetime
    feature_names: tuple[str, ...]
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True)
class LogHealth:
    """What happened to the predictions so far; `error` is the log's last refusal, None once it accepts again."""

    appended: int
    pending: int
    lost: int
    failed_appends: int
    error: str | None

    @property
    def healthy(self) -> bool:
        return self.error is None


class PredictionLog:
    """A bounded queue in front of the change log and the thread that empties it."""

    def __init__(
        self,
        open_log: Callable[[], ChangeLog],
        identity: Callable[[], object] = lambda: None,
        *,
        linger_s: float = 0.1,
        capacity: int = CAPACITY,
    ) -> None:
        """`identity` changes when the log behind `open_log` is another one: then it is opened again."""
        self._open_log = open_log
        self._identity = identity
        self._opened: object = None
        self._log: ChangeLog | None = None
        self._linger_s = linger_s
        self._capacity = capacity
        self._lock = threading.Lock()
        self._queued = threading.Event()
        self._closing = threading.Event()
        self._queue: list[Predictions] = []
        self._pending = self._appended = self._lost = self._failed_appends = 0
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def offer(self, made: Predictions) -> bool:
        """Queue one answer's predictions; False when the queue is full and they are lost to the log."""
        count = len(made.predictions)
        with self._lock:
            fits = self._pending + count <= self._capacity
            if fits:
                self._queue.append(made)
                self._pending += count
            else:
                self._lost += count
                self._error = self._error or f"the queue of {self._capacity} predictions is full"
        self._queued.set()
        return fits

    def health(self) -> LogHealth:
        """Counts since the start."""
        stopped = "the writer has stopped" if not (self._thread.is_alive() or self._closing.is_set()) else None
        with self._lock:
            return LogHealth(self._appended, self._pending, self._lost, self._failed_appends, self._error or stopped)

    def close(self, timeout_s: float = 10.0) -> LogHealth:
        """Append what is still queued and stop; what the log refuses now is counted as lost."""
        self._closing.set()
        self._queued.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._lock:
            self._lost, self._pending, self._queue = self._lost + self._pending, 0, []
        health = self.health()
        if health.lost:
            logger.error("%d served predictions never reached the change log: %s", health.lost, health.error)
        return health

    def _run(self) -> None:
        pause_s = self._linger_s
        while True:
            self._queued.wait()
            self._closing.wait(pause_s)
            accepted = self._flush()
            pause_s = self._linger_s if accepted else min(pause_s * 2, _LONGEST_PAUSE_S)
            if self._closing.is_set() and (not accepted or not self._pending):
                return

    def _flush(self) -> bool:
        """Append everything queued now; False when the log refused."""
        while batch := self._next():
            rows = sum(len(made.predictions) for made in batch)
            try:
                self._append(batch)
            except (LogError, OSError, sqlite3.Error, pa.ArrowException) as error:
                self._refused(f"{type(error).__name__}: {error}")
                return False
            self._accepted(batch, rows)
        return True

    def _next(self) -> list[Predictions]:
        """The head of the queue, up to one append's rows; it stays queued until the log has it."""
        with self._lock:
            taken, rows = 0, 0
            while taken < len(self._queue) and rows < _ROWS_PER_APPEND:
                rows += len(self._queue[taken].predictions)
                taken += 1
            if not taken:
                self._queued.clear()
            return self._queue[:taken]

    def _append(self, batch: Sequence[Predictions]) -> None:
        # A log file that was removed would go on taking appends, for nobody.
        if self._log is None or self._identity() != self._opened:
            self._log = self._open_log()
            self._opened = self._identity()
        by_topic: dict[str, list[Predictions]] = {}
        for made in batch:
            by_topic.setdefault(served_topic(made.model), []).append(made)
        self._log.append({topic: _records(answers) for topic, answers in by_topic.items()})

    def _accepted(self, batch: Sequence[Predictions], rows: int) -> None:
        with self._lock:
            del self._queue[: len(batch)]
            self._pending -= rows
            self._appended += rows
            if self._error is not None:
                logger.warning("the change log accepts predictions again")
            self._error = None

    def _refused(self, error: str) -> None:
        self._log = None
        with self._lock:
            self._failed_appends += 1
            first, self._error = self._error is None, error
            pending = self._pending
        if first:
            logger.error("the change log refused %d served predictions (kept, trying again): %s", pending, error)


def _records(answers: Sequence[Predictions]) -> pa.Table:
    """Log records: keyed by customer, stamped with the business instant of serving."""
    pairs = [(made, each) for made in answers for each in made.predictions]
    return pa.table(
        {
            "key": pa.array([str(each.customer_id) for _, each in pairs], pa.string()),
            "value": pa.array([_value(made, each) for made, each in pairs], pa.string()),
            "timestamp_us": pa.array([_microseconds(made.served_at) for made, _ in pairs], pa.int64()),
        }
    )


def _value(made: Predictions, each: Prediction) -> str:
    as_of = each.features_as_of
    return orjson.dumps(
        {
            "prediction_id": each.prediction_id,
            "request_id": made.request_id,
            "model": made.model,
            "version": made.version,
            "customer_id": each.customer_id,
            "prediction": each.prediction,
            "features": dict(zip(made.feature_names, each.features, strict=True)),
            "features_as_of": as_of.isoformat() if as_of else None,
            "served_at": made.served_at.isoformat(),
        }
    ).decode()


def _microseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(microseconds=1)
