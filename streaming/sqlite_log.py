"""The embedded change log: record batches in one SQLite file, one partition for each topic.

As in Kafka the unit of storage is a compressed batch of records, not a record: half a million envelopes take 12 MB and
no Python object each. What a record means is not known here.

A commit survives `kill -9` and loss of power (write-ahead log, synchronous=FULL): were an acknowledged record to
vanish, the lake's committed offset would lie beyond the end of the log and records appended later be never landed.

Nothing is ever deleted from it. Its errors are those of log_writer.py.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from streaming.log import BATCH_SCHEMA, Lag, Listener, TopicPartition
from streaming.log_writer import (
    BatchShapeError,
    OffsetOutOfRangeError,
    RetryableLogError,
    UnknownTopicError,
    UnusableLogError,
)
from streaming.sole_membership import SoleMembership

__all__ = ["BatchShapeError", "OffsetOutOfRangeError", "SqliteLog", "UnknownTopicError", "UnusableLogError"]

# Records stored together. Larger compresses no better (zstd, measured at 2,048 and 8,192: 11.4 MB either way), and a
# reader that wants few records unpacks a whole batch.
_BATCH_RECORDS = 4_096
_BODY_SCHEMA = pa.schema([BATCH_SCHEMA.field("timestamp_us"), BATCH_SCHEMA.field("key"), BATCH_SCHEMA.field("value")])
_CODEC = pa.ipc.IpcWriteOptions(compression="zstd")
_BUSY_TIMEOUT_S = 60
_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_DDL = """
CREATE TABLE IF NOT EXISTS batches (
  topic TEXT NOT NULL, base INTEGER NOT NULL, records INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (topic, base));
CREATE TABLE IF NOT EXISTS commits (
  consumer TEXT NOT NULL, topic TEXT NOT NULL, next INTEGER NOT NULL, PRIMARY KEY (consumer, topic)) WITHOUT ROWID;
"""


class SqliteLog:
    """A `ChangeLog` in the file `path`; safe to share between threads, and between processes by opening it in each."""

    def __init__(self, path: Path) -> None:
        """Opens the file, and makes it and its folder if missing. Raises UnusableLogError."""
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._session():
            self._db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_DDL)

    def __enter__(self) -> SqliteLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; the log cannot be used afterwards."""
        with self._lock:
            self._db.close()

    def topics(self) -> Sequence[str]:
        """Every topic to which something was appended."""
        with self._session():
            return [topic for (topic,) in self._db.execute("SELECT DISTINCT topic FROM batches ORDER BY topic")]

    def partitions(self, topic: str) -> Sequence[TopicPartition]:
        """The topic's one partition; empty when nothing was ever appended to it."""
        with self._session():
            return [TopicPartition(topic, 0)] if self._end(topic) else []

    def append(self, batches: Mapping[str, pa.Table]) -> None:
        """Append to several topics in one transaction, all or nothing. Raises BatchShapeError."""
        bodies = {topic: list(_pack(topic, table)) for topic, table in batches.items()}
        with self._session(), self._transaction():
            for topic, packed in bodies.items():
                base = self._end(topic)
                for records, body in packed:
                    self._db.execute("INSERT INTO batches VALUES (?, ?, ?, ?)", (topic, base, records, body))
                    base += records

    def read(self, source: TopicPartition, offset: int, max_records: int) -> pa.Table:
        """Up to `max_records` records from `offset` on, as BATCH_SCHEMA; empty at the end.

        Raises OffsetOutOfRangeError.
        """
        with self._session():
            self._check(source, offset)
            rows = self._db.execute(
                "SELECT base, body FROM batches WHERE topic = ?1 AND base < ?3 AND base >= "
                "coalesce((SELECT max(base) FROM batches WHERE topic = ?1 AND base <= ?2), 0) ORDER BY base",
                (source.topic, offset, offset + max_records),
            ).fetchall()
        tables = [_unpack(base, body) for base, body in rows]
        if not tables:
            return BATCH_SCHEMA.empty_table()
        return pa.concat_tables(tables).slice(offset - rows[0][0], max_records)

    def begin(self, source: TopicPartition) -> int:
        """0: nothing is ever deleted. Raises UnknownTopicError."""
        with self._session():
            self._check(source, 0)
            return 0

    def ends(self, sources: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """`end` of each. Raises UnknownTopicError."""
        return {source: self.end(source) for source in sources}

    def end(self, source: TopicPartition) -> int:
        """The offset that the next record will get; 0 for a topic without records. Raises UnknownTopicError."""
        with self._session():
            return self._check(source, 0)

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Record the next offset that `group` reads of each partition; never moves backwards.

        Raises OffsetOutOfRangeError.
        """
        with self._session(), self._transaction():
            for source, offset in offsets.items():
                self._check(source, offset)
                self._db.execute(
                    "INSERT INTO commits VALUES (?, ?, ?) "
                    "ON CONFLICT (consumer, topic) DO UPDATE SET next = max(next, excluded.next)",
                    (group, source.topic, offset),
                )

    def committed(self, group: str, source: TopicPartition) -> int:
        """The next offset that `group` reads; 0 before its first commit."""
        with self._session():
            self._check(source, 0)
            return self._committed(group, source.topic)

    def lag(self, group: str, topic: str) -> Mapping[TopicPartition, Lag]:
        """How far `group` is behind: records unread, and the newest record's time minus that of the last one read."""
        lags = {}
        for source in self.partitions(topic):
            committed, end = self.committed(group, source), self.end(source)
            behind_us = (
                self._time(source, end - 1) - self._time(source, max(committed - 1, 0)) if committed < end else 0
            )
            lags[source] = Lag(committed, end, max(behind_us, 0), behind_bytes=self._bytes_from(source, committed))
        return lags

    def join(self, group: str, topics: Sequence[str], listener: Listener) -> SoleMembership:
        """The one process that has every partition; while another one is, we have none and wait for it to end."""
        return SoleMembership(self, self.path.with_name(f"{self.path.name}.{group}.lock"), group, topics, listener)

    def _bytes_from(self, source: TopicPartition, offset: int) -> int:
        with self._session():
            (size,) = self._db.execute(
                "SELECT coalesce(sum(length(body)), 0) FROM batches WHERE topic = ? AND base + records > ?",
                (source.topic, offset),
            ).fetchone()
        return int(size)

    def _time(self, source: TopicPartition, offset: int) -> int:
        return int(self.read(source, offset, 1)["timestamp_us"][0].as_py())

    def _end(self, topic: str) -> int:
        row = self._db.execute(
            "SELECT base + records FROM batches WHERE topic = ? ORDER BY base DESC LIMIT 1", (topic,)
        ).fetchone()
        return row[0] if row else 0

    def _committed(self, group: str, topic: str) -> int:
        row = self._db.execute("SELECT next FROM commits WHERE consumer = ? AND topic = ?", (group, topic)).fetchone()
        return row[0] if row else 0

    def _check(self, source: TopicPartition, offset: int) -> int:
        """The end of the partition, once `offset` is known to lie within it."""
        if source.partition != 0:
            raise UnknownTopicError(f"{source}: the log in {self.path} has one partition, 0, for each topic")
        end = self._end(source.topic)
        if not 0 <= offset <= end:
            raise OffsetOutOfRangeError(
                f"{source}: offset {offset} asked for, the log in {self.path} has 0 to {end}. If the log was removed "
                "and what was landed from it was kept, set HEADWATER_HOME to a new directory"
            )
        return end

    @contextmanager
    def _session(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _PASSING:
                    raise self._unusable(error) from error
                raise RetryableLogError(f"change log {self.path}: {error}") from error
            except sqlite3.DatabaseError as error:
                raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.DatabaseError) -> UnusableLogError:
        return UnusableLogError(
            f"change log {self.path}: {error}. Check that the file is a Headwater change log and that it may be "
            "written, or set HEADWATER_HOME to another directory"
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite itself rolls back when the disk is full
                self._db.execute("ROLLBACK")
            raise


def _pack(topic: str, table: pa.Table) -> Iterator[tuple[int, bytes]]:
    """The table as compressed bodies of at most _BATCH_RECORDS records."""
    try:
        table = table.select(_BODY_SCHEMA.names).cast(_BODY_SCHEMA)
    except (KeyError, pa.ArrowInvalid, ValueError, pa.ArrowNotImplementedError) as error:
        raise BatchShapeError(
            f"{topic}: found columns {table.schema.names} ({error}); needed are key and value (text) and timestamp_us "
            "(int64, not null)"
        ) from error
    for batch in table.combine_chunks().to_batches(max_chunksize=_BATCH_RECORDS):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, _BODY_SCHEMA, options=_CODEC) as writer:
            writer.write_batch(batch)
        yield batch.num_rows, sink.getvalue().to_pybytes()


def _unpack(base: int, body: bytes) -> pa.Table:
    table = pa.ipc.open_stream(body).read_all()
    # Not pa.array: that imports pandas, which takes longer than most readers of this log.
    numbers = pa.py_buffer(np.arange(base, base + table.num_rows, dtype=np.int64))
    offsets = pa.Array.from_buffers(pa.int64(), table.num_rows, [None, numbers])
    return pa.table([offsets, *table.columns], schema=BATCH_SCHEMA)
