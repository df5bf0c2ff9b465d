"""The embedded change log as tables of records; how its file keeps them is sqlite_batches' matter.

What a record means is not known here. Its errors are those of log_writer.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from streaming.log import BATCH_SCHEMA, Lag, Listener, TopicPartition
from streaming.log_writer import BatchShapeError, OffsetOutOfRangeError, UnknownTopicError, UnusableLogError
from streaming.sole_membership import SoleMembership
from streaming.sqlite_batches import BATCH_RECORDS, Batches, is_packed, unpack

__all__ = ["BatchShapeError", "OffsetOutOfRangeError", "SqliteLog", "UnknownTopicError", "UnusableLogError", "unpacked"]

_BODY_SCHEMA = pa.schema([BATCH_SCHEMA.field("timestamp_us"), BATCH_SCHEMA.field("key"), BATCH_SCHEMA.field("value")])
_CODEC = pa.ipc.IpcWriteOptions(compression="zstd")


class SqliteLog:
    """A `ChangeLog` in the file `path`; safe to share between threads, and between processes by opening it in each."""

    def __init__(self, path: Path) -> None:
        """Opens the file, and makes it and its folder if missing. Raises UnusableLogError."""
        self.path = path
        self._batches = Batches(path)

    def __enter__(self) -> SqliteLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; the log cannot be used afterwards."""
        self._batches.close()

    def topics(self) -> Sequence[str]:
        """Every topic to which something was appended."""
        return self._batches.topics()

    def partitions(self, topic: str) -> Sequence[TopicPartition]:
        """The topic's one partition; empty when nothing was ever appended to it."""
        return [TopicPartition(topic, 0)] if self._batches.end(topic) else []

    def identity(self, topic: str) -> int | None:
        """The file's; None for a topic without records."""
        return self._batches.identity() if self._batches.end(topic) else None

    def append(self, batches: Mapping[str, pa.Table]) -> None:
        """Append to several topics in one transaction, all or nothing. Raises BatchShapeError."""
        self._batches.append({topic: list(_pack(topic, table)) for topic, table in batches.items()})

    def read(self, source: TopicPartition, offset: int, max_records: int) -> pa.Table:
        """Up to `max_records` records from `offset` on, as BATCH_SCHEMA; empty at the end.

        Raises OffsetOutOfRangeError.
        """
        rows = self._batches.read(self._topic(source), offset, max_records)
        tables = [_unpack(base, body) for base, body in rows]
        if not tables:
            return BATCH_SCHEMA.empty_table()
        return pa.concat_tables(tables).slice(offset - rows[0][0], max_records)

    def begin(self, source: TopicPartition) -> int:
        """0: nothing is ever deleted. Raises UnknownTopicError."""
        self._topic(source)
        return 0

    def ends(self, sources: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """`end` of each. Raises UnknownTopicError."""
        return {source: self.end(source) for source in sources}

    def end(self, source: TopicPartition) -> int:
        """The offset that the next record will get; 0 for a topic without records. Raises UnknownTopicError."""
        return self._batches.end(self._topic(source))

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Record the next offset that `group` reads of each partition; never moves backwards.

        Raises OffsetOutOfRangeError.
        """
        self._batches.commit(group, {self._topic(source): offset for source, offset in offsets.items()})

    def committed(self, group: str, source: TopicPartition) -> int:
        """The next offset that `group` reads; 0 before its first commit."""
        return self._batches.committed(group, self._topic(source))

    def lag(self, group: str, topic: str) -> Mapping[TopicPartition, Lag]:
        """How far `group` is behind: records unread, and the newest record's time minus that of the last one read."""
        lags = {}
        for source in self.partitions(topic):
            committed, end = self.committed(group, source), self.end(source)
            behind_us = (
                self._time(source, end - 1) - self._time(source, max(committed - 1, 0)) if committed < end else 0
            )
            behind_bytes = self._batches.bytes_from(topic, committed)
            lags[source] = Lag(committed, end, max(behind_us, 0), behind_bytes=behind_bytes)
        return lags

    def join(self, group: str, topics: Sequence[str], listener: Listener) -> SoleMembership:
        """The one process that has every partition; while another one is, we have none and wait for it to end."""
        return SoleMembership(self, self.path.with_name(f"{self.path.name}.{group}.lock"), group, topics, listener)

    def _time(self, source: TopicPartition, offset: int) -> int:
        return int(self.read(source, offset, 1)["timestamp_us"][0].as_py())

    def _topic(self, source: TopicPartition) -> str:
        """The topic of its one partition."""
        if source.partition != 0:
            raise UnknownTopicError(f"{source}: the log in {self.path} has one partition, 0, for each topic")
        return source.topic


def _pack(topic: str, table: pa.Table) -> Iterator[tuple[int, bytes]]:
    """The table as compressed bodies of at most _BATCH_RECORDS records."""
    try:
        table = table.select(_BODY_SCHEMA.names).cast(_BODY_SCHEMA)
    except (KeyError, pa.ArrowInvalid, ValueError, pa.ArrowNotImplementedError) as error:
        raise BatchShapeError(
            f"{topic}: found columns {table.schema.names} ({error}); needed are key and value (text) and timestamp_us "
            "(int64, not null)"
        ) from error
    for batch in table.combine_chunks().to_batches(max_chunksize=BATCH_RECORDS):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, _BODY_SCHEMA, options=_CODEC) as writer:
            writer.write_batch(batch)
        yield batch.num_rows, sink.getvalue().to_pybytes()


def unpacked(base: int, body: bytes) -> list[list[Any]]:
    """A batch's columns as BATCH_SCHEMA has them."""
    return [column.to_pylist() for column in _unpack(base, body).columns]


def _unpack(base: int, body: bytes) -> pa.Table:
    # Not pa.array, here and below: that imports pandas, which takes longer than most readers of this log.
    columns = _columns(body) if is_packed(body) else pa.ipc.open_stream(body).read_all().columns
    numbers = np.arange(base, base + len(columns[0]), dtype=np.int64)
    offsets = pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])
    return pa.table([offsets, *columns], schema=BATCH_SCHEMA)


def _columns(body: bytes) -> list[pa.Array]:
    found = unpack(body)
    times = pa.Array.from_buffers(pa.int64(), len(found.times), [None, pa.py_buffer(found.times)])
    return [times, _texts(found.key_sizes, found.keys), _texts(found.value_sizes, found.values)]


def _texts(sizes: memoryview[int], texts: memoryview) -> pa.Array:
    found = np.frombuffer(sizes, np.int32)
    offsets = np.zeros(len(found) + 1, np.int32)
    np.cumsum(np.maximum(found, 0), out=offsets[1:])
    there = np.packbits(found >= 0, bitorder="little")
    return pa.Array.from_buffers(pa.string(), len(found), [pa.py_buffer(each) for each in (there, offsets, texts)])
