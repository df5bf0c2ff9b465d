"""The embedded log's file: batches of records as bytes, one partition for each topic, and what groups have committed.

As in Kafka the unit of storage is a compressed batch of records, not a record: half a million envelopes take 12 MB and
no Python object each. There are two forms of it: an Arrow stream, as a table is appended by `sqlite_log`, and `pack`'s,
which a connector writes without Arrow: what it needs to start takes a second and 150 MB less. Both are read by either.

A commit survives `kill -9` and loss of power (write-ahead log, synchronous=FULL): were an acknowledged record to
vanish, the lake's committed offset would lie beyond the end of the log and records appended later be never landed.

Nothing is ever deleted from it. Its errors are those of log_writer.py.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from streaming.log_writer import OffsetOutOfRangeError, RetryableLogError, UnusableLogError

__all__ = ["BATCH_RECORDS", "Batches", "Packed", "is_packed", "pack", "unpack"]

# Records stored together. Larger compresses no better (zstd, measured at 2,048 and 8,192: 11.4 MB either way), and a
# reader that wants few records unpacks a whole batch.
BATCH_RECORDS = 4_096
_BUSY_TIMEOUT_S = 60
_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_DDL = """
CREATE TABLE IF NOT EXISTS batches (
  topic TEXT NOT NULL, base INTEGER NOT NULL, records INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (topic, base));
CREATE TABLE IF NOT EXISTS commits (
  consumer TEXT NOT NULL, topic TEXT NOT NULL, next INTEGER NOT NULL, PRIMARY KEY (consumer, topic)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS identity (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL);
"""
# An Arrow stream begins with four bytes of ones.
_PACKED = b"HWB1"
# Fast before small: envelopes come down to a twentieth all the same.
_LEVEL = 1


class Batches:
    """The file `path`; safe to share between threads, and between processes by opening it in each."""

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
            self._identity = self._made_or_found()

    def close(self) -> None:
        """Release the file; it cannot be used afterwards."""
        with self._lock:
            self._db.close()

    def identity(self) -> int:
        """A number of 63 bits that this file was given when it was made, and no other one has."""
        return self._identity

    def topics(self) -> Sequence[str]:
        """Every topic to which something was appended."""
        with self._session():
            return [topic for (topic,) in self._db.execute("SELECT DISTINCT topic FROM batches ORDER BY topic")]

    def append(self, batches: Mapping[str, Sequence[tuple[int, bytes]]]) -> None:
        """Append batches (how many records, the bytes) to several topics in one transaction, all or nothing."""
        with self._session(), self._transaction():
            for topic, bodies in batches.items():
                base = self._end(topic)
                for records, body in bodies:
                    self._db.execute("INSERT INTO batches VALUES (?, ?, ?, ?)", (topic, base, records, body))
                    base += records

    def read(self, topic: str, offset: int, max_records: int) -> list[tuple[int, bytes]]:
        """The batches that have these offsets, each with its first one. Raises OffsetOutOfRangeError."""
        with self._session():
            self._check(topic, offset)
            return self._db.execute(
                "SELECT base, body FROM batches WHERE topic = ?1 AND base < ?3 AND base >= "
                "coalesce((SELECT max(base) FROM batches WHERE topic = ?1 AND base <= ?2), 0) ORDER BY base",
                (topic, offset, offset + max_records),
            ).fetchall()

    def end(self, topic: str) -> int:
        """The offset that the next record will get; 0 for a topic without records."""
        with self._session():
            return self._end(topic)

    def commit(self, group: str, offsets: Mapping[str, int]) -> None:
        """Record the next offset that `group` reads of each topic; never moves backwards.

        Raises OffsetOutOfRangeError.
        """
        with self._session(), self._transaction():
            for topic, offset in offsets.items():
                self._check(topic, offset)
                self._db.execute(
                    "INSERT INTO commits VALUES (?, ?, ?) "
                    "ON CONFLICT (consumer, topic) DO UPDATE SET next = max(next, excluded.next)",
                    (group, topic, offset),
                )

    def committed(self, group: str, topic: str) -> int:
        """The next offset that `group` reads; 0 before its first commit."""
        with self._session():
            row = self._db.execute(
                "SELECT next FROM commits WHERE consumer = ? AND topic = ?", (group, topic)
            ).fetchone()
            return row[0] if row else 0

    def bytes_from(self, topic: str, offset: int) -> int:
        """What the batches take from the one with this offset on."""
        with self._session():
            (size,) = self._db.execute(
                "SELECT coalesce(sum(length(body)), 0) FROM batches WHERE topic = ? AND base + records > ?",
                (topic, offset),
            ).fetchone()
        return int(size)

    def _made_or_found(self) -> int:
        while (found := self._db.execute("SELECT number FROM identity").fetchone()) is None:
            self._db.execute("INSERT OR IGNORE INTO identity VALUES (1, ?)", (secrets.randbits(63),))
        return int(found[0])

    def _end(self, topic: str) -> int:
        row = self._db.execute(
            "SELECT base + records FROM batches WHERE topic = ? ORDER BY base DESC LIMIT 1", (topic,)
        ).fetchone()
        return row[0] if row else 0

    def _check(self, topic: str, offset: int) -> None:
        end = self._end(topic)
        if not 0 <= offset <= end:
            raise OffsetOutOfRangeError(
                f"{topic}-0: offset {offset} asked for, the log in {self.path} has 0 to {end}. If the log was removed "
                "and what was landed from it was kept, set HEADWATER_HOME to a new directory"
            )

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


@dataclass(frozen=True)
class Packed:
    """A batch in `pack`'s form: int64 times (us), int32 sizes (-1: null), texts in UTF-8 one after another."""

    times: memoryview[int]
    key_sizes: memoryview[int]
    value_sizes: memoryview[int]
    keys: memoryview
    values: memoryview


def pack(times: Sequence[int], keys: Sequence[bytes | None], values: Sequence[bytes | None]) -> bytes:
    """A batch of records, whose keys and values are UTF-8."""
    sizes = [array("i", [-1 if text is None else len(text) for text in texts]) for texts in (keys, values)]
    numbers = (array("q", [len(times)]), array("q", times), *sizes)
    texts = [text for each in (keys, values) for text in each if text is not None]
    return _PACKED + zlib.compress(b"".join([each.tobytes() for each in numbers] + texts), _LEVEL)


def is_packed(body: bytes) -> bool:
    """Whether the batch has `pack`'s form; if not, it is an Arrow stream."""
    return body.startswith(_PACKED)


def unpack(body: bytes) -> Packed:
    """What `pack` was given."""
    whole = memoryview(zlib.decompress(memoryview(body)[len(_PACKED) :]))
    count = whole[:8].cast("q")[0]
    at = [8 + count * size for size in (0, 8, 12, 16)]
    key_sizes, value_sizes = whole[at[1] : at[2]].cast("i"), whole[at[2] : at[3]].cast("i")
    middle = at[3] + sum(size for size in key_sizes if size > 0)
    times = whole[at[0] : at[1]].cast("q")
    return Packed(times, key_sizes, value_sizes, whole[at[3] : middle], whole[middle:])
