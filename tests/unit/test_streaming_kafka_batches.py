"""Kafka's record batches, read all at once, against kafka-python's reader and writer of one record after the other."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.kafka_batches import CorruptBatchError, decode
from streaming.log import BATCH_SCHEMA
from streaming.record_text import to_bytes

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its import uses importlib.resources.read_text
    from kafka.record.default_records import DefaultRecordBatchBuilder
    from kafka.record.memory_records import MemoryRecords

Record = tuple[int, bytes | None, bytes | None]
BYTES = st.none() | st.binary(max_size=6) | st.text(max_size=6).map(str.encode) | st.just(b"x" * 20_000)
RECORD = st.tuples(st.integers(0, 2**50), BYTES, BYTES)
PLAIN, GZIP, SNAPPY, LZ4 = 0, 1, 2, 3
PRODUCER = 7


def stored(records: Sequence[Record], base: int = 0, codec: int = PLAIN, **options: int) -> bytes:
    """One batch as a broker stores it."""
    told = {"producer_id": -1, "producer_epoch": -1, "base_sequence": -1, "is_transactional": 0, "batch_size": 1 << 30}
    builder = DefaultRecordBatchBuilder(2, codec, **{**told, **options})
    for n, (time_ms, key, value) in enumerate(records):
        assert builder.append(n, time_ms, key, value, []) is not None
    batch = builder.build()
    return struct.pack(">q", base) + bytes(batch[8:])


def mark(base: int, aborts: bool) -> bytes:
    """The batch that ends a transaction: a record in which nobody wrote anything."""
    key = struct.pack(">hh", 0, 0 if aborts else 1)
    batch = bytearray(
        stored([(1, key, b"\0\0\0\0\0\0")], base, producer_id=PRODUCER, producer_epoch=0, is_transactional=1)
    )
    (attributes,) = struct.unpack_from(">h", batch, 21)
    struct.pack_into(">h", batch, 21, attributes | 0x20)
    return summed(batch)


def summed(batch: bytearray) -> bytes:
    from crc32c import crc32c

    struct.pack_into(">I", batch, 17, crc32c(bytes(batch[21:])))
    return bytes(batch)


def in_transaction(*values: bytes, base: int) -> bytes:
    records = [(1, None, value) for value in values]
    return stored(records, base, producer_id=PRODUCER, producer_epoch=0, base_sequence=0, is_transactional=1)


def told_one_by_one(fetched: bytes) -> list[Record]:
    """What kafka-python reads."""
    return [(r.timestamp, r.key, r.value) for batch in MemoryRecords(fetched) for r in batch]


def values(fetched: bytes, offset: int = 0, aborted: dict[int, list[int]] | None = None) -> list[str | None]:
    found: list[str | None] = decode(fetched, offset, aborted).records["value"].to_pylist()
    return found


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.tuples(st.lists(RECORD, min_size=1, max_size=6), st.sampled_from([PLAIN, GZIP])), max_size=6),
    offset=st.integers(0, 20),
)
def test_reads_what_kafka_python_reads(batches: list[tuple[list[Record], int]], offset: int) -> None:
    fetched, records = b"", []
    for content, codec in batches:
        fetched += stored(content, len(records), codec)
        records += content
    decoded = decode(fetched, min(offset, len(records)))
    assert told_one_by_one(fetched) == records
    assert decoded.records.schema == BATCH_SCHEMA
    assert decoded.next_offset == len(records)
    read = [
        (row["offset"], row["timestamp_us"], *(None if row[c] is None else to_bytes(row[c]) for c in ("key", "value")))
        for row in decoded.records.to_pylist()
    ]
    assert read == [(n, time * 1000, key, value) for n, (time, key, value) in enumerate(records) if n >= offset]


def test_a_character_cut_in_two_by_records_is_not_text() -> None:
    whole = "é".encode()
    fetched = stored([(1, None, whole[:1]), (1, None, whole[1:])])
    assert [to_bytes(v or "") for v in values(fetched)] == [whole[:1], whole[1:]]


def test_a_batch_cut_off_at_the_end_waits_for_the_next_read() -> None:
    first, second = stored([(1, None, b"a"), (1, None, b"b")]), stored([(1, None, b"c")], 2)
    for cut in range(len(second)):
        decoded = decode(first + second[:cut], 0)
        assert (decoded.records["value"].to_pylist(), decoded.next_offset) == (["a", "b"], 2)
    assert decode(b"", 5).next_offset == 5


def test_records_that_compaction_took_away_leave_their_offsets() -> None:
    batch = bytearray(stored([(1, b"k", b"a"), (1, b"k", b"b"), (1, b"k", b"c")], 10))
    struct.pack_into(">i", batch, 23, 8)  # the last offset is kept when the records at the end go
    decoded = decode(summed(batch), 11)
    assert decoded.records["offset"].to_pylist() == [11, 12]
    assert decoded.next_offset == 19


def test_the_brokers_time_when_the_topic_says_so() -> None:
    batch = bytearray(stored([(1, None, b"a"), (5, None, b"b")]))
    struct.pack_into(">h", batch, 21, 0x08)
    struct.pack_into(">q", batch, 35, 99)
    assert decode(summed(batch), 0).records["timestamp_us"].to_pylist() == [99_000, 99_000]


def test_aborted_transactions_and_marks_are_left_out() -> None:
    fetched = (
        stored([(1, None, b"before")], 0)
        + in_transaction(b"aborted", base=1)
        + stored([(1, None, b"between")], 2)
        + in_transaction(b"aborted too", base=3)
        + mark(4, aborts=True)
        + in_transaction(b"committed", base=5)
        + mark(6, aborts=False)
    )
    assert values(fetched, 0, {PRODUCER: [1]}) == ["before", "between", "committed"]
    assert values(fetched) == ["before", "aborted", "between", "aborted too", "committed"]
    assert decode(fetched, 0, {PRODUCER: [1]}).next_offset == 7
    assert decode(mark(6, aborts=False), 6) == (BATCH_SCHEMA.empty_table(), 7)


def test_damage_is_noticed() -> None:
    batch = stored([(1, b"key", b"value"), (2, b"key", b"value")])
    flipped = bytearray(batch)
    flipped[-3] ^= 1
    with pytest.raises(CorruptBatchError, match="checksum of the batch at offset 0"):
        decode(bytes(flipped), 0)
    fewer = bytearray(batch)
    struct.pack_into(">i", fewer, 57, 1)
    with pytest.raises(CorruptBatchError, match="do not fill it"):
        decode(summed(fewer), 0)
    more = bytearray(batch)
    struct.pack_into(">i", more, 57, 3)
    with pytest.raises(CorruptBatchError, match="do not fill it"):
        decode(summed(more), 0)
    packed = bytearray(stored([(1, None, b"value" * 50)], codec=GZIP))
    packed[70:80] = bytes(10)
    with pytest.raises(CorruptBatchError, match="cannot be unpacked"):
        decode(summed(packed), 0)


def test_snappy_whole_and_in_the_blocks_of_java() -> None:
    plain = stored([(1, b"k", b"value" * 500), (2, None, b"")])
    body = plain[61:]
    packed = pa.compress(body, "snappy", asbytes=True)
    halves = [pa.compress(half, "snappy", asbytes=True) for half in (body[:900], body[900:])]
    blocks = b"\x82SNAPPY\0" + bytes(8) + b"".join(struct.pack(">i", len(half)) + half for half in halves)
    for each in (packed, blocks):
        assert decode(repacked(plain, SNAPPY, each), 0) == decode(plain, 0)
    with pytest.raises(CorruptBatchError, match="cannot be unpacked"):
        decode(repacked(plain, SNAPPY, blocks[:-9]), 0)


def repacked(batch: bytes, codec: int, body: bytes) -> bytes:
    header = bytearray(batch[:61])
    struct.pack_into(">i", header, 8, 49 + len(body))
    struct.pack_into(">h", header, 21, codec)
    return summed(header + body)


def test_what_is_not_read_says_so() -> None:
    plain = stored([(1, None, b"v")])
    with pytest.raises(CorruptBatchError, match="compressed with codec 5"):
        decode(repacked(plain, 5, b"v"), 0)
    old = bytearray(plain)
    old[16] = 1
    with pytest.raises(CorruptBatchError, match="format 1; known is 2"):
        decode(bytes(old), 0)
