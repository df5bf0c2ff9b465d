"""Kafka's record batches (format v2) as Arrow tables, without a Python object for each field. Pure.

A fetched answer is a sequence of batches; a batch is a header and, maybe compressed together, its records. A record's
length comes first, so that a short loop finds where each one starts; all else is read from all records at once. This
costs 1.2 us of CPU a record where kafka-python's own consumer takes 8, and 4 more to make columns of its objects
(docs/decisions/0001-kafka-clients.md).

    https://kafka.apache.org/documentation/#recordbatch
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streaming.log import BATCH_SCHEMA
from streaming.record_text import ESCAPE, to_text

__all__ = ["CorruptBatchError", "Decoded", "decode"]

_Ints = NDArray[np.int64]
_Bytes = NDArray[np.uint8]

# base offset, length, leader epoch, format, checksum, attributes, last offset's delta, base and largest time, producer,
# its epoch, base sequence, records
_HEADER = struct.Struct(">qiibIhiqqqhii")
_LENGTH_ENDS, _CRC_ENDS, _FORMAT = 12, 21, 2
_CODECS = {1: "gzip", 3: "lz4", 4: "zstd"}
_SNAPPY = 2
# Java's producer cuts what it compresses with Snappy into blocks: this, two versions, then each block after its length.
_SNAPPY_BLOCKS, _SNAPPY_BLOCKS_FROM = b"\x82SNAPPY\0", 16
_APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x08, 0x10, 0x20
_ABORT = 0
# Batches are read together, as many as make up this: one of a single record is as common as one of a thousand. More
# would be slower (1.7 us a record at 32 MiB): it leaves the processor's cache.
_TOGETHER_BYTES = 1 << 20


class CorruptBatchError(ValueError):
    """A batch whose checksum or structure is wrong, or that is written in a way that is not read here."""


class Decoded(NamedTuple):
    """Records as BATCH_SCHEMA, and the offset that follows everything that was looked at."""

    records: pa.Table
    next_offset: int


class _Batch(NamedTuple):
    """What is needed of one batch's header, and its body as it was sent."""

    base_offset: int
    last_offset: int
    attributes: int
    base_time: int
    max_time: int
    producer: int
    records: int
    body: memoryview


def decode(fetched: bytes, offset: int, aborted: Mapping[int, Sequence[int]] | None = None) -> Decoded:
    """The records of a fetched answer from `offset` on; a batch that is cut off at the end is left out.

    `aborted` has for each producer the first offsets of its transactions that were aborted; their records are left out,
    and so are Kafka's own marks. Raises CorruptBatchError.
    """
    tables: list[pa.Table] = []
    together: list[tuple[_Batch, bytes | memoryview]] = []
    size, following, is_wanted = 0, offset, _committed(aborted or {})
    for batch in _batches(fetched):
        following = max(following, batch.last_offset + 1)
        if is_wanted(batch):
            together.append((batch, _uncompressed(batch)))
            size += len(together[-1][1])
        if size >= _TOGETHER_BYTES:
            tables.append(_table(together, offset))
            together, size = [], 0
    if together:
        tables.append(_table(together, offset))
    return Decoded(pa.concat_tables(tables) if tables else BATCH_SCHEMA.empty_table(), following)


def _batches(fetched: bytes) -> Iterator[_Batch]:
    from crc32c import crc32c

    view, at = memoryview(fetched), 0
    while len(view) - at >= _HEADER.size:
        base, length, _, form, crc, attributes, last, base_time, max_time, producer, _, _, records = (
            _HEADER.unpack_from(view, at)
        )
        end = at + _LENGTH_ENDS + length
        if end > len(view):
            return
        if form != _FORMAT:
            raise CorruptBatchError(f"a batch in format {form}; known is {_FORMAT}, which Kafka writes since 0.11")
        if crc32c(view[at + _CRC_ENDS : end]) != crc:
            raise CorruptBatchError(f"the checksum of the batch at offset {base} is wrong")
        body = view[at + _HEADER.size : end]
        yield _Batch(base, base + last, attributes, base_time, max_time, producer, records, body)
        at = end


def _committed(aborted: Mapping[int, Sequence[int]]) -> Callable[[_Batch], bool]:
    """Whether a batch holds records that count; to be asked for all batches in their order.

    A transaction is open from its first offset to its mark.
    """
    pending = {producer: sorted(firsts) for producer, firsts in aborted.items()}
    dropping: set[int] = set()

    def is_wanted(batch: _Batch) -> bool:
        if not batch.attributes & _TRANSACTIONAL:
            return not batch.attributes & _CONTROL
        firsts = pending.get(batch.producer, [])
        while firsts and firsts[0] <= batch.last_offset:
            dropping.add(batch.producer)
            firsts.pop(0)
        if batch.attributes & _CONTROL:
            if _mark(batch) == _ABORT:
                dropping.discard(batch.producer)
            return False
        return batch.producer not in dropping

    return is_wanted


def _mark(batch: _Batch) -> int:
    """How a transaction ended: a mark is a record whose key is a version and that, two bytes each."""
    content = _uncompressed(batch)
    data = np.frombuffer(content, np.uint8)
    _, at = _varints(data, np.array(_starts([(batch, content)])) + 1)
    _, at = _varints(data, at)
    _, key_at = _varints(data, at)
    return int.from_bytes(content[key_at[0] + 2 : key_at[0] + 4], "big")


def _table(together: Sequence[tuple[_Batch, bytes | memoryview]], offset: int) -> pa.Table:
    """All records of these batches from `offset` on."""
    content = together[0][1] if len(together) == 1 else b"".join(content for _, content in together)
    batches = [batch for batch, _ in together]
    counts = [batch.records for batch in batches]
    starts = np.array(_starts(together), np.int64)
    data = np.frombuffer(content, np.uint8)
    time_deltas, at = _varints(data, starts + 1)
    offsets, at = _varints(data, at)
    key_sizes, key_at = _varints(data, at)
    value_sizes, value_at = _varints(data, key_at + np.maximum(key_sizes, 0))
    offsets += np.repeat(np.array([batch.base_offset for batch in batches]), counts)
    times = np.repeat(np.array([_base_time(batch) for batch in batches]), counts)
    times += np.where(np.repeat([bool(batch.attributes & _APPEND_TIME) for batch in batches], counts), 0, time_deltas)
    columns = [
        _int64(offsets),
        _int64(times * 1000),
        _texts(content, key_at, key_sizes),
        _texts(content, value_at, value_sizes),
    ]
    return pa.table(columns, schema=BATCH_SCHEMA).slice(int(np.searchsorted(offsets, offset)))


def _base_time(batch: _Batch) -> int:
    return batch.max_time if batch.attributes & _APPEND_TIME else batch.base_time


def _uncompressed(batch: _Batch) -> bytes | memoryview:
    codec = batch.attributes & 0x07
    if codec == 0:
        return batch.body
    try:
        if codec == _SNAPPY:
            return _from_snappy(batch.body)
        content: bytes = pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(batch.body)), _CODECS[codec]).read()
        return content
    except KeyError:
        raise CorruptBatchError(f"the batch at offset {batch.base_offset} is compressed with codec {codec}") from None
    except (OSError, IndexError, ValueError, struct.error) as error:
        raise CorruptBatchError(f"the batch at offset {batch.base_offset} cannot be unpacked: {error}") from None


def _from_snappy(body: memoryview) -> bytes:
    if bytes(body[: len(_SNAPPY_BLOCKS)]) != _SNAPPY_BLOCKS:
        return _block(body)
    blocks, at = [], _SNAPPY_BLOCKS_FROM
    while at < len(body):
        (size,) = struct.unpack_from(">i", body, at)
        blocks.append(_block(body[at + 4 : at + 4 + size]))
        at += 4 + size
    return b"".join(blocks)


def _block(body: memoryview) -> bytes:
    """A block begins with the size of its content, a varint."""
    size = shift = 0
    for byte in body:
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    content: bytes = pa.Codec("snappy").decompress(pa.py_buffer(body), size, asbytes=True)
    return content


def _starts(together: Sequence[tuple[_Batch, bytes | memoryview]]) -> list[int]:
    """Where each record's attributes are, in the contents one after the other.

    A record begins with its length: a zigzag varint, which is never negative.
    """
    starts: list[int] = []
    base = 0
    for batch, content in together:
        at = 0
        try:
            for _ in range(batch.records):
                low = content[at]
                if low < 0x80:
                    length, at = low >> 1, at + 1
                elif (high := content[at + 1]) < 0x80:
                    length, at = (low & 0x7F | high << 7) >> 1, at + 2
                else:
                    length, at = _long_length(content, at)
                starts.append(base + at)
                at += length
        except IndexError:
            at = -1
        if at != len(content):
            raise CorruptBatchError(f"the records of the batch at offset {batch.base_offset} do not fill it")
        base += at
    return starts


def _long_length(content: bytes | memoryview, at: int) -> tuple[int, int]:
    length = shift = 0
    while True:
        byte = content[at]
        length |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return length >> 1, at


def _varints(data: _Bytes, at: _Ints) -> tuple[_Ints, _Ints]:
    """The zigzag varints at these places, and where each ends."""
    byte = data[at]
    values = (byte & 0x7F).astype(np.int64)
    ends = at + 1
    longer = np.flatnonzero(byte & 0x80)
    shift = 7
    while longer.size:
        byte = data[ends[longer]]
        values[longer] |= (byte & 0x7F).astype(np.int64) << shift
        ends[longer] += 1
        longer = longer[(byte & 0x80).astype(bool)]
        shift += 7
    return (values >> 1) ^ -(values & 1), ends


def _int64(values: _Ints) -> pa.Array:
    """Not pa.array: given numpy it imports pandas."""
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def _texts(content: bytes | memoryview, at: _Ints, sizes: _Ints) -> pa.Array:
    """The slices as text, null where a size is negative."""
    missing = sizes < 0
    sizes = np.maximum(sizes, 0)
    body = b"".join([content[start:end] for start, end in zip(at.tolist(), (at + sizes).tolist(), strict=True)])
    ends = np.zeros(len(at) + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    if ends[-1] >= 1 << 31:
        raise CorruptBatchError("a batch whose records have 2 GiB")
    nulls = int(missing.sum())
    valid = pa.py_buffer(np.packbits(~missing, bitorder="little")) if nulls else None
    buffers = [valid, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(body)]
    raw = pa.Array.from_buffers(pa.binary(), len(at), buffers, nulls)
    if ESCAPE.encode() not in body:
        try:
            return raw.cast(pa.string())
        except pa.ArrowInvalid:
            pass  # some of it is no UTF-8
    return pa.array([None if each is None else to_text(each) for each in raw.to_pylist()], pa.string())
