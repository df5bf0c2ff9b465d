"""The queue in front of the change log: batched, in order, bounded, drained; a log that refuses is tried again."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from catalog.keys import served_topic
from serving.prediction_log import Prediction, PredictionLog, Predictions
from streaming.log import LogError
from streaming.sqlite_log import SqliteLog

NOW = datetime(2011, 12, 9, 12, 50)


def answer(request: str, customers: int = 1, model: str = "churn") -> Predictions:
    made = tuple(Prediction(f"{request}-{n}", n, 0.5, (None,), {"activity": NOW}) for n in range(customers))
    return Predictions(request, model, "1", NOW, ("country",), made)


class Log:
    """Keeps what is appended; refuses while `down`, waits while `held`."""

    def __init__(self) -> None:
        self.appends: list[Mapping[str, pa.Table]] = []
        self.down = False
        self.held = threading.Event()
        self.held.set()

    def append(self, batches: Mapping[str, pa.Table]) -> None:
        self.held.wait()
        if self.down:
            raise LogError("the log is down")
        self.appends.append(batches)

    def requests(self) -> list[str]:
        return [
            json.loads(v)["request_id"]
            for batch in self.appends
            for t in batch.values()
            for v in t["value"].to_pylist()
        ]


def writer(log: Log, **options: float) -> PredictionLog:
    return PredictionLog(lambda: log, **options)  # type: ignore[arg-type,return-value]  # append is all it needs


def test_everything_queued_is_appended_in_order_when_it_closes() -> None:
    log = Log()
    queue = writer(log)
    assert all(queue.offer(answer(str(n))) for n in range(500))
    health = queue.close()
    assert log.requests() == [str(n) for n in range(500)]
    assert (health.appended, health.pending, health.lost, health.error) == (500, 0, 0, None)
    assert len(log.appends) < 10  # in batches, not one by one


def test_each_model_has_its_topic() -> None:
    log = Log()
    queue = writer(log)
    queue.offer(answer("a", model="churn"))
    queue.offer(answer("b", model="clv"))
    queue.close()
    assert {topic for batch in log.appends for topic in batch} == {served_topic("churn"), served_topic("clv")}


def test_a_large_backlog_goes_in_several_appends() -> None:
    log = Log()
    queue = writer(log, linger_s=0.5)
    for n in range(30):
        queue.offer(answer(str(n), customers=1_000))
    assert queue.close().appended == 30_000
    assert max(table.num_rows for batch in log.appends for table in batch.values()) <= 20_000


def test_what_does_not_fit_is_refused_counted_and_reported() -> None:
    log = Log()
    log.held.clear()
    queue = writer(log, capacity=10)
    assert queue.offer(answer("fits", customers=8))
    assert not queue.offer(answer("too many", customers=3))
    assert queue.offer(answer("fits too", customers=2))
    health = queue.health()
    assert (health.pending, health.lost, health.healthy) == (10, 3, False)
    assert "the queue of 10 predictions is full" in str(health.error)
    log.held.set()
    assert (queue.close().appended, set(log.requests())) == (10, {"fits", "fits too"})


def test_a_log_that_stays_down_loses_what_it_refuses_and_says_how_much(caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    log.down = True
    queue = writer(log)
    queue.offer(answer("a", customers=4))
    health = queue.close()
    assert (health.appended, health.lost, health.failed_appends > 0) == (0, 4, True)
    assert health.error == "LogError: the log is down"
    assert "4 served predictions never reached the change log" in caplog.text


def test_a_record_carries_all_that_is_needed_to_replay_it(tmp_path: Path) -> None:
    queue = PredictionLog(lambda: SqliteLog(tmp_path / "log.db"))
    as_of = {"activity": NOW - timedelta(days=1), "profile": NOW - timedelta(days=9)}
    made = Prediction("r-0", 17850, 0.25, (3, float("nan"), "France", None), as_of)
    queue.offer(Predictions("r", "churn", "7", NOW, ("count", "rate", "country", "days"), (made,)))
    queue.close()
    with SqliteLog(tmp_path / "log.db") as log:
        [record] = log.read(log.partitions(served_topic("churn"))[0], 0, 10).to_pylist()
    assert record["key"] == "17850"
    assert record["timestamp_us"] == (NOW - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    assert json.loads(record["value"]) == {
        "prediction_id": "r-0",
        "request_id": "r",
        "model": "churn",
        "version": "7",
        "customer_id": 17850,
        "prediction": 0.25,
        "features": {"count": 3, "rate": None, "country": "France", "days": None},
        "features_as_of": "2011-12-08T12:50:00",
        "served_at": "2011-12-09T12:50:00",
    }


def test_a_writer_that_died_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    died = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: died.set())
    log = Log()
    monkeypatch.setattr(log, "append", lambda _: 1 / 0)  # a defect, not a refusal
    queue = writer(log)
    queue.offer(answer("a"))
    assert died.wait(10)
    queue._thread.join()
    assert queue.health().error == "the writer has stopped"
