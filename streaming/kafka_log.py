"""The change log on Kafka: a `ChangeLog` that reads with kafka-python and appends with the one producer (kafka_writer).

A group's committed offsets are for whoever asks for the lag: readers keep their own with what they have written. Record
times have whole milliseconds. Aborted transactions of other producers are not read.

Errors: those of log_writer.py. What passes (a broker restarts, a leader moves) is tried again for `patience_s` first.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import pyarrow as pa

from streaming.kafka_batches import CorruptBatchError, Decoded, decode
from streaming.kafka_config import KafkaAddress, TopicShape
from streaming.log import BATCH_SCHEMA, Lag, Listener, Membership, TopicPartition
from streaming.log_writer import (
    BatchShapeError,
    OffsetDeletedError,
    OffsetOutOfRangeError,
    UnusableLogError,
)
from streaming.record_text import to_bytes

if TYPE_CHECKING:
    from streaming.kafka_client import LogClient
    from streaming.kafka_writer import KafkaWriter

__all__ = ["KafkaLog"]

_PATIENCE_S = 10.0
# A member of a group that died without leaving keeps its partitions for so long. Kafka's default is 45 s.
_SILENCE_S = 10.0
# Enough for about 60,000 compressed envelopes; what a reader did not ask for yet is kept for its next read.
_FETCH_BYTES = 8 << 20
_SMALL_FETCH_BYTES = 64 << 10
_RECORD_BYTES = 1 << 10
_KEPT_AHEAD = 4


class KafkaLog:
    """A `ChangeLog` on the cluster at `address`; safe to share between threads. Connects when it is first used."""

    def __init__(
        self,
        address: KafkaAddress,
        shape: TopicShape | None = None,
        *,
        patience_s: float = _PATIENCE_S,
        silence_s: float = _SILENCE_S,
    ) -> None:
        """`shape` is what a topic gets that `append` has to make; a group's member is dead after `silence_s`."""
        self.address = address
        self._shape = shape or TopicShape()
        self._patience_s = patience_s
        self._silence_s = silence_s
        self._lock = threading.RLock()
        self._appending = threading.Lock()
        self._connected: LogClient | None = None
        self._writer: KafkaWriter | None = None
        self._ahead: dict[TopicPartition, Decoded] = {}

    def __enter__(self) -> KafkaLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        with self._appending:
            self._drop_writer()
        with self._lock:
            if self._connected is not None:
                self._connected.close()
                self._connected = None
            self._ahead.clear()

    def topics(self) -> Sequence[str]:
        """Every topic but Kafka's own."""
        return self._client.topics()

    def partitions(self, topic: str) -> Sequence[TopicPartition]:
        """The topic's partitions; empty when there is no such topic."""
        return self._client.partitions(topic)

    def identity(self, topic: str) -> int | None:
        """Of the topic's id; None when there is no such topic, or from brokers before 2.8."""
        return self._client.identity(topic)

    def append(self, batches: Mapping[str, pa.Table]) -> None:
        """Append, each record to its key's partition; topics are made if missing.

        Not all or nothing: after RetryableLogError some records of each partition may be there, the first ones.
        Raises BatchShapeError (then nothing was appended), RecordTooLargeError.
        """
        columns = {topic: _columns(topic, table) for topic, table in batches.items()}
        with self._appending:
            try:
                writer = self._open_writer()
                writer.ensure([topic for topic, (keys, _, _) in columns.items() if keys])
                for topic, (keys, values, times) in columns.items():
                    for key, value, timestamp_us in zip(keys, values, times, strict=True):
                        writer.send(topic, _raw(key), _raw(value), timestamp_us)
                writer.flush()
            except BaseException:
                self._drop_writer()
                raise

    def read(self, source: TopicPartition, offset: int, max_records: int) -> pa.Table:
        """Up to `max_records` records from `offset` on, as BATCH_SCHEMA; empty at the end.

        Raises OffsetDeletedError, OffsetOutOfRangeError, UnknownTopicError, RetryableLogError; UnusableLogError where a
        stored batch is damaged.
        """
        with self._lock:
            found = self._ahead.pop(source, None)
        if found is None or not found.records.num_rows or found.records["offset"][0].as_py() != offset:
            found = Decoded(BATCH_SCHEMA.empty_table(), offset)
        tables, rows = [found.records], found.records.num_rows
        while rows < max_records:
            following = self._fetch(source, found.next_offset, max_records - rows)
            if following.next_offset == found.next_offset:
                break
            found = following
            tables.append(found.records)
            rows += found.records.num_rows
        records = pa.concat_tables(tables)
        if rows > max_records:
            self._keep(source, Decoded(records.slice(max_records), found.next_offset))
        return records.slice(0, max_records)

    def begin(self, source: TopicPartition) -> int:
        """The offset of the first record that is still there. Raises UnknownTopicError."""
        return self._client.begins([source])[source]

    def end(self, source: TopicPartition) -> int:
        """The offset that the next record will get, open transactions apart. Raises UnknownTopicError."""
        return self.ends([source])[source]

    def ends(self, sources: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """`end` of each, in one request for each broker."""
        return self._client.ends(sources)

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Record the next offset that `group` will read; never moves backwards.

        Raises OffsetOutOfRangeError. RetryableLogError while the group has members: only they may (see `join`).
        """
        if ahead := self._ahead_of(group, offsets):
            self._client.commit(group, ahead)

    def committed(self, group: str, source: TopicPartition) -> int:
        """The next offset that `group` will read; 0 before its first commit, or when Kafka has forgotten it."""
        self.end(source)
        return self._client.committed(group, [source])[source]

    def lag(self, group: str, topic: str) -> Mapping[TopicPartition, Lag]:
        """How far `group` is behind on each partition; bytes as if all of a partition's records had the same size."""
        client = self._client
        if not (sources := client.partitions(topic)):
            return {}
        begins, ends, committed = client.begins(sources), client.ends(sources), client.committed(group, sources)
        behind = [source for source in sources if committed[source] < ends[source]]
        sizes = client.sizes(topic) if behind else {}
        return {
            source: self._lag(source, committed[source], begins[source], ends[source], sizes.get(source, 0))
            for source in sources
        }

    def join(self, group: str, topics: Sequence[str], listener: Listener) -> Membership:
        """Become a member of the consumer group. Raises LogError."""
        from streaming.kafka_membership import KafkaMembership

        return KafkaMembership(self, group, topics, listener, self._patience_s, self._silence_s)

    @property
    def _client(self) -> LogClient:
        from streaming.kafka_client import LogClient

        with self._lock:
            if self._connected is None:
                self._connected = LogClient(self.address, self._patience_s)
            return self._connected

    def _open_writer(self) -> KafkaWriter:
        from streaming.kafka_writer import KafkaWriter

        if self._writer is None:
            self._writer = KafkaWriter(self.address, self._shape, patience_s=self._patience_s)
        return self._writer

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _fetch(self, source: TopicPartition, offset: int, wanted: int) -> Decoded:
        """What is stored from `offset` on, about as much as is wanted, at least one batch; nothing at the end."""
        size = min(max(wanted * _RECORD_BYTES, _SMALL_FETCH_BYTES), _FETCH_BYTES)
        try:
            fetched = self._client.fetch(source, offset, size)
            return decode(fetched.batches, offset, fetched.aborted)
        except OffsetOutOfRangeError:
            raise self._out_of_range(source, offset) from None
        except CorruptBatchError as error:
            raise UnusableLogError(f"{self.address}, {source}, read from offset {offset}: {error}") from error

    def _keep(self, source: TopicPartition, rest: Decoded) -> None:
        """For the next read of the partition, which usually goes on there."""
        with self._lock:
            while len(self._ahead) >= _KEPT_AHEAD:
                del self._ahead[next(iter(self._ahead))]
            self._ahead[source] = rest

    def _out_of_range(self, source: TopicPartition, offset: int) -> OffsetOutOfRangeError:
        begin, end = self.begin(source), self.end(source)
        if 0 <= offset < begin:
            return OffsetDeletedError(
                f"{source}: offset {offset} asked for, {self.address} has {begin} to {end}: retention has deleted "
                f"{begin - offset} records that were not read. Read the tables anew from their source, and keep "
                "records for longer (HEADWATER_LOG_RETENTION, the topic's retention.ms)"
            )
        return OffsetOutOfRangeError(
            f"{source}: offset {offset} asked for, {self.address} has {begin} to {end}. If the topic was removed and "
            "what was landed from it was kept, set HEADWATER_HOME to a new directory"
        )

    def _ahead_of(self, group: str, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Those of the offsets that are beyond what is committed. Raises OffsetOutOfRangeError."""
        ends, committed = self._client.ends(offsets), self._client.committed(group, offsets)
        for source, offset in offsets.items():
            if not 0 <= offset <= ends[source]:
                raise self._out_of_range(source, offset)
        return {source: offset for source, offset in offsets.items() if offset > committed[source]}

    def _lag(self, source: TopicPartition, committed: int, begin: int, end: int, size: int) -> Lag:
        if committed >= end:
            return Lag(committed, end, 0, begin)
        last_read, newest = self._time(source, max(committed - 1, begin)), self._time(source, end - 1)
        bytes_ = size * (end - max(committed, begin)) // max(end - begin, 1)
        return Lag(committed, end, max(newest - last_read, 0), begin, bytes_)

    def _time(self, source: TopicPartition, offset: int) -> int:
        """Of the record there; 0 where compaction has left none, or retention has been faster than we."""
        try:
            found = self._fetch(source, offset, 1).records
        except OffsetDeletedError:
            return 0
        return int(found["timestamp_us"][0].as_py()) if found.num_rows else 0


_Texts = list[str | None]


def _columns(topic: str, table: pa.Table) -> tuple[_Texts, _Texts, list[int]]:
    """Keys, values and times of a table that is to be appended."""
    schema = pa.schema([BATCH_SCHEMA.field(name) for name in ("key", "value", "timestamp_us")])
    try:
        table = table.select(schema.names).cast(schema)
    except (KeyError, pa.ArrowInvalid, ValueError, pa.ArrowNotImplementedError) as error:
        raise BatchShapeError(
            f"{topic}: found columns {table.schema.names} ({error}); needed are key and value (text) and timestamp_us "
            "(int64, not null)"
        ) from error
    return table["key"].to_pylist(), table["value"].to_pylist(), table["timestamp_us"].to_pylist()


def _raw(text: str | None) -> bytes | None:
    return None if text is None else to_bytes(text)
