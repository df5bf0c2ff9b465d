"""The embedded change log against a model of itself: lists of records by topic."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.log import BATCH_SCHEMA, ChangeLog, TopicPartition
from streaming.log_writer import Record as Tail
from streaming.sqlite_log import (
    BatchShapeError,
    OffsetOutOfRangeError,
    SqliteLog,
    UnknownTopicError,
    UnusableLogError,
)
from streaming.sqlite_writer import SqliteWriter

A, B = TopicPartition("a", 0), TopicPartition("b", 0)
Record = tuple[int, str | None, str | None]
RECORD = st.tuples(st.integers(0, 2**52), st.none() | st.text(max_size=8), st.none() | st.text(max_size=20))


def batch(records: list[Record]) -> pa.Table:
    times, keys, values = zip(*records, strict=True) if records else ((), (), ())
    return pa.table(
        {
            "value": pa.array(values, pa.string()),
            "key": pa.array(keys, pa.string()),
            "timestamp_us": pa.array(times, pa.int64()),
        }
    )


def send(path: Path, batches: dict[str, list[Record]]) -> None:
    """The same as a connector does it."""
    with closing(SqliteWriter(path)) as writer:
        for topic, records in batches.items():
            for time_us, key, value in records:
                writer.send(topic, encoded(key), encoded(value), time_us)
        writer.flush()


def encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def numbered(count: int, start: int = 0) -> pa.Table:
    return batch([(i * 1_000_000, f"k{i}", f"v{i}") for i in range(start, start + count)])


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    with SqliteLog(tmp_path / "log.db") as opened:
        yield opened


@settings(max_examples=40, deadline=None)
@given(
    appends=st.lists(st.dictionaries(st.sampled_from("ab"), st.lists(RECORD, max_size=12)), max_size=6),
    offset=st.integers(0, 80),
    limit=st.integers(1, 80),
)
def test_reads_back_what_was_appended_from_any_offset(
    appends: list[dict[str, list[Record]]], offset: int, limit: int
) -> None:
    model: dict[str, list[Record]] = {"a": [], "b": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.db"
        for number, batches in enumerate(appends):
            if number % 2:
                send(path, batches)
            else:
                with SqliteLog(path) as log:  # opened anew each time: what is read was on disk
                    log.append({topic: batch(records) for topic, records in batches.items()})
            for topic, records in batches.items():
                model[topic] += records
        with SqliteLog(path) as log:
            for topic, records in model.items():
                place = TopicPartition(topic, 0)
                assert log.end(place) == len(records)
                assert list(log.partitions(topic)) == ([place] if records else [])
                start = min(offset, len(records))
                read = log.read(place, start, limit)
                assert read.schema == BATCH_SCHEMA
                expected = [(start + i, *r) for i, r in enumerate(records[start : start + limit])]
                assert [tuple(row.values()) for row in read.to_pylist()] == expected
        with closing(SqliteWriter(path)) as writer:
            for topic, records in model.items():
                ends = [Tail(n, at, *map(encoded, texts)) for n, (at, *texts) in enumerate(records)][-limit:]
                assert writer.tails(topic, limit) == ({0: ends} if ends else {})


def test_is_a_change_log(log: SqliteLog) -> None:
    used: ChangeLog = log
    used.append({"a": numbered(3)})
    assert used.end(A) == 3


def test_many_batches_and_reads_across_them(log: SqliteLog) -> None:
    log.append({"a": numbered(10_000)})
    log.append({"a": numbered(5, 10_000)})
    assert log.end(A) == 10_005
    read = log.read(A, 4_090, 4_200)
    assert read["offset"].to_pylist() == list(range(4_090, 8_290))
    assert read["value"][0].as_py() == "v4090"
    assert log.read(A, 9_998, 100)["key"].to_pylist() == [f"k{i}" for i in range(9_998, 10_005)]
    assert log.read(A, 10_005, 10).num_rows == 0


def test_append_is_all_or_nothing(log: SqliteLog) -> None:
    with pytest.raises(BatchShapeError, match=r"b: found columns \['value'\]"):
        log.append({"a": numbered(3), "b": pa.table({"value": ["x"]})})
    nameless = numbered(2).set_column(2, "timestamp_us", pa.array([1, None], pa.int64()))
    with pytest.raises(BatchShapeError, match="'timestamp_us' with null values"):
        log.append({"a": nameless})
    assert log.end(A) == log.end(B) == 0


def test_large_strings_are_welcome(log: SqliteLog) -> None:
    log.append(
        {
            "a": numbered(2).cast(
                pa.schema([("value", pa.large_string()), ("key", pa.large_string()), ("timestamp_us", pa.int64())])
            )
        }
    )
    assert log.read(A, 0, 9)["value"].to_pylist() == ["v0", "v1"]


def test_commit_never_moves_backwards_and_groups_are_apart(log: SqliteLog) -> None:
    log.append({"a": numbered(10)})
    assert log.committed("landing", A) == 0
    log.commit("landing", {A: 7})
    log.commit("landing", {A: 3})
    assert log.committed("landing", A) == 7
    assert log.committed("other", A) == 0


def test_lag_counts_records_and_record_time(log: SqliteLog) -> None:
    log.append({"a": numbered(10)})
    log.commit("landing", {A: 7})
    lag = log.lag("landing", "a")[A]
    assert (lag.committed, lag.end, lag.records, lag.behind_us) == (7, 10, 3, 3_000_000)
    assert log.lag("new", "a")[A].behind_us == 9_000_000
    log.commit("landing", {A: 10})
    assert log.lag("landing", "a")[A].behind_us == 0
    assert log.lag("landing", "nothing") == {}


def test_errors_say_what_is_there(log: SqliteLog, tmp_path: Path) -> None:
    log.append({"a": numbered(2)})
    with pytest.raises(OffsetOutOfRangeError, match=r"a-0: offset 3 asked for.*has 0 to 2"):
        log.read(A, 3, 1)
    with pytest.raises(OffsetOutOfRangeError):
        log.read(A, -1, 1)
    with pytest.raises(OffsetOutOfRangeError):
        log.commit("landing", {A: 9})
    with pytest.raises(UnknownTopicError, match="one partition, 0"):
        log.end(TopicPartition("a", 1))
    (tmp_path / "not_a_log.db").write_text("hello, I am not a database, and I am long enough to be read as one" * 20)
    with pytest.raises(UnusableLogError, match="not a database"):
        SqliteLog(tmp_path / "not_a_log.db")
    with pytest.raises(UnusableLogError):
        SqliteLog(tmp_path)


def test_threads_and_connections_share_one_sequence(log: SqliteLog) -> None:
    with SqliteLog(log.path) as second:
        writers = [
            threading.Thread(target=lambda used=used: [used.append({"a": numbered(3)}) for _ in range(20)])
            for used in (log, log, second)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert second.end(A) == log.end(A) == 180
    assert log.read(A, 0, 1_000)["value"].to_pylist() == ["v0", "v1", "v2"] * 60
