"""The messages of the replication protocol and of pgoutput, version 1: read from bytes, written to bytes. Pure.

Rows are not here: their tuples are for `decoders`. Instants on the wire are microseconds since 2000.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "BEGIN",
    "BETWEEN",
    "COMMIT",
    "DELETE",
    "HEADER",
    "INSERT",
    "KEEPALIVE",
    "RELATION",
    "ROW_START",
    "TRUNCATE",
    "TUPLE",
    "UPDATE",
    "WAL_DATA",
    "Begin",
    "Relation",
    "RelationColumn",
    "begin",
    "commit",
    "keepalive",
    "last_written",
    "lsn_text",
    "parse_lsn",
    "relation",
    "standby_status",
    "texts",
    "truncated",
]

# The first byte of what the server sends while it streams.
WAL_DATA, KEEPALIVE = ord("w"), ord("k")
# The first byte of a pgoutput message.
BEGIN, COMMIT, RELATION, INSERT, UPDATE, DELETE, TRUNCATE = map(ord, "BCRIUDT")

# WAL_DATA with the start of a message about a row: w, LSN, (the server's end and clock), kind, relation.
HEADER = struct.Struct(">xQ16xBI").unpack_from
MESSAGE = 25
"""Where a pgoutput message begins in WAL_DATA."""
TUPLE = 30
"""Where INSERT, UPDATE and DELETE say what tuple comes first: N new, K key, O old."""
ROW_START = 33
"""Where that tuple's values begin, after the number of columns."""
BETWEEN = 3
"""Bytes between two tuples: N and the number of columns."""

_EPOCH_US = 946_684_800_000_000  # 2000-01-01, in microseconds since 1970
_BEGIN = struct.Struct(">QqI")
_COMMIT = struct.Struct(">BQQq")
_KEEPALIVE = struct.Struct(">xQqB")
_STATUS = struct.Struct(">cQQQqB")
# The log is written in pages, each with a header; a segment's first page has a longer one.
_PAGE_BYTES, _HEADER_BYTES, _LONG_HEADER_BYTES = 8192, 24, 40
_COLUMN = struct.Struct(">Ii")


class Begin(NamedTuple):
    """A transaction's start; all of it follows. `commit`: its commit record's position; `xid` has 32 bits."""

    commit: int
    event_us: int
    xid: int


class RelationColumn(NamedTuple):
    """A column that is sent; `is_identity`: part of the replica identity."""

    name: str
    type_oid: int
    typmod: int
    is_identity: bool


@dataclass(frozen=True)
class Relation:
    """What the rows of a table look like from here on. `identity`: d default, n nothing, f full, i an index."""

    oid: int
    schema: str
    table: str
    identity: str
    columns: tuple[RelationColumn, ...]

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"


def begin(d: bytes) -> Begin:
    """Read BEGIN."""
    commit_lsn, at, xid = _BEGIN.unpack_from(d, MESSAGE + 1)
    return Begin(commit_lsn, at + _EPOCH_US, xid)


def commit(d: bytes) -> int:
    """Read COMMIT: the position after the transaction."""
    return int(_COMMIT.unpack_from(d, MESSAGE + 1)[2])


def texts(d: bytes, at: int, count: int) -> tuple[list[bytes | None], int]:
    """The values of a tuple that begins there, as the server wrote them, and where it ends; None: null, or not sent."""
    found: list[bytes | None] = []
    for _ in range(count):
        kind, at = d[at : at + 1], at + 1
        size = int.from_bytes(d[at : at + 4]) if kind == b"t" else None
        found.append(None if size is None else d[at + 4 : at + 4 + size])
        at += 0 if size is None else 4 + size
    return found, at


def relation(d: bytes) -> Relation:
    """Read RELATION."""
    oid = int.from_bytes(d[MESSAGE + 1 : TUPLE])
    schema, at = _string(d, TUPLE)
    table, at = _string(d, at)
    identity, count, at = chr(d[at]), int.from_bytes(d[at + 1 : at + 3]), at + 3
    columns = []
    for _ in range(count):
        flags = d[at]
        name, at = _string(d, at + 1)
        type_oid, typmod = _COLUMN.unpack_from(d, at)
        columns.append(RelationColumn(name, type_oid, typmod, bool(flags & 1)))
        at += _COLUMN.size
    return Relation(oid, schema or "pg_catalog", table, identity, tuple(columns))


def truncated(d: bytes) -> tuple[int, ...]:
    """Read TRUNCATE: the relations that were emptied."""
    count = int.from_bytes(d[MESSAGE + 1 : MESSAGE + 5])
    return struct.unpack_from(f">{count}I", d, MESSAGE + 6)


def keepalive(d: bytes) -> tuple[int, bool]:
    """Read KEEPALIVE: everything up to this position was sent; whether an answer is asked for."""
    position, _, asked = _KEEPALIVE.unpack_from(d)
    return position, bool(asked)


def standby_status(received: int, confirmed: int, now_us: int, *, ask: bool) -> bytes:
    """Tell how far we are; `ask` for a KEEPALIVE in return."""
    return _STATUS.pack(b"r", received, confirmed, confirmed, now_us - _EPOCH_US, ask)


def lsn_text(position: int) -> str:
    """PostgreSQL's way to write a position: 16/B374D848."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> int:
    """A position as a number."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def last_written(insert: int, segment_bytes: int) -> int:
    """The end of the last record, of where the next one is inserted: at a page's start that is behind its header, a
    position which the stream reaches only with the next record.
    """
    if insert % segment_bytes == _LONG_HEADER_BYTES:
        return insert - _LONG_HEADER_BYTES
    return insert - _HEADER_BYTES if insert % _PAGE_BYTES == _HEADER_BYTES else insert


def _string(d: bytes, at: int) -> tuple[str, int]:
    end = d.index(b"\0", at)
    return d[at:end].decode(errors="surrogateescape"), end + 1
