"""Events of the binary log: their numbers, their common header, and what each says beside the rows in it.

An event is a packet of the protocol: a byte of status, the header, the body, four bytes of checksum. Functions here
take the whole packet, and `end`, where the checksum begins.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from streaming.mysql.positions import Gtid

__all__ = [
    "ARTIFICIAL",
    "BODY",
    "HEADER",
    "Begin",
    "Query",
    "RowsEvent",
    "read_gtid",
    "read_gtid_list",
    "read_mysql_gtid",
    "read_query",
    "read_rotate",
    "read_rows",
    "read_xid",
]

# When (seconds), type, server, size, where the next event begins (its lowest 32 bits), flags.
HEADER = struct.Struct("<IBIIIH")
BODY = 1 + HEADER.size
# Made up by the server for whoever reads; not in the file.
ARTIFICIAL = 0x20

QUERY, STOP, ROTATE, FORMAT, XID, TABLE_MAP, INCIDENT, HEARTBEAT = 2, 3, 4, 15, 16, 19, 26, 27
XA_PREPARE, PARTIAL_UPDATE, TRANSACTION_PAYLOAD = 38, 39, 40
MYSQL_GTID, MYSQL_ANONYMOUS = 33, 34
BINLOG_CHECKPOINT, GTID, GTID_LIST, START_ENCRYPTION, QUERY_COMPRESSED = 161, 162, 163, 164, 165
# Of the row events: the second form has more in its header; MariaDB compresses when asked to.
WRITES, UPDATES, DELETES = (23, 30, 166, 169), (24, 31, 167, 170), (25, 32, 168, 171)
ROWS = (*WRITES, *UPDATES, *DELETES)
_EXTENDED = (30, 31, 32, 169, 170, 171)
_COMPRESSED = (166, 167, 168, 169, 170, 171)

_STANDALONE, _GROUP_COMMIT, _PREPARED_XA, _COMPLETED_XA = 1, 2, 64, 128


@dataclass(frozen=True)
class Begin:
    """A transaction begins. `standalone`: it is one statement; `prepares`: it will not end, only be prepared (XA)."""

    gtid: Gtid | None
    name: str
    standalone: bool = False
    prepares: bool = False
    commit_us: int = 0


@dataclass(frozen=True)
class Query:
    """A statement and the schema it was carried out in."""

    sql: str
    schema: str


@dataclass(frozen=True)
class RowsEvent:
    """Where the rows are in `data`. `partial`: some columns of some image are missing."""

    table_id: bytes
    data: bytes
    start: int
    end: int
    partial: bool


def read_xid(event: bytes) -> str:
    """The identifier of the XA transaction that is prepared, as statements write it."""
    kind, first, second = struct.unpack_from("<III", event, BODY + 1)
    names = event[BODY + 13 : BODY + 13 + first + second]
    return f"X'{names[:first].hex()}',X'{names[first:].hex()}',{kind}".upper()


def read_rotate(event: bytes, end: int) -> tuple[str, int]:
    """The next file and the position in it."""
    return event[BODY + 8 : end].decode(), int.from_bytes(event[BODY : BODY + 8], "little")


def read_gtid(event: bytes, server: int) -> Begin:
    """MariaDB's."""
    sequence, domain, flags = struct.unpack_from("<QIB", event, BODY)
    gtid = Gtid(domain, server, sequence)
    return Begin(gtid, str(gtid), bool(flags & _STANDALONE), bool(flags & _PREPARED_XA))


def read_mysql_gtid(event: bytes, end: int) -> Begin:
    """MySQL's, with the microsecond of the commit; an anonymous one has number 0."""
    source, number = event[BODY + 1 : BODY + 17].hex(), int.from_bytes(event[BODY + 17 : BODY + 25], "little")
    uuid = f"{source[:8]}-{source[8:12]}-{source[12:16]}-{source[16:20]}-{source[20:]}"
    at = BODY + 25 + 17  # the two numbers of its logical clock, and before them their kind
    commit_us = int.from_bytes(event[at : at + 7], "little") & ~(1 << 55) if end >= at + 7 else 0
    return Begin(None, f"{uuid}:{number}" if number else "", commit_us=commit_us)


def read_gtid_list(event: bytes) -> list[Gtid]:
    """The state at the beginning of a file."""
    count = int.from_bytes(event[BODY : BODY + 4], "little") & 0x0FFFFFFF
    found = (struct.unpack_from("<IIQ", event, BODY + 4 + 16 * number) for number in range(count))
    return [Gtid(domain, server, sequence) for domain, server, sequence in found]


def read_query(event: bytes, end: int, *, compressed: bool) -> Query:
    """Statements are in the client's character set: what is not UTF-8 is none of the names we look for."""
    schema_bytes, variables = event[BODY + 8], int.from_bytes(event[BODY + 11 : BODY + 13], "little")
    start = BODY + 13 + variables
    schema = event[start : start + schema_bytes].decode(errors="replace")
    sql = event[start + schema_bytes + 1 : end]
    return Query((uncompressed(sql) if compressed else sql).decode(errors="replace"), schema)


def uncompressed(data: bytes) -> bytes:
    """What MariaDB compressed with log_bin_compress: in how many bytes the length stands, the length, zlib."""
    size = data[0] & 7
    return zlib.decompress(data[1 + size :], bufsize=int.from_bytes(data[1 : 1 + size], "big") or 1)


def read_rows(event: bytes, kind: int, end: int) -> RowsEvent:
    """Where an event's rows are, whichever of the row events it is."""
    at = BODY + 8
    if kind in _EXTENDED:
        at += int.from_bytes(event[at : at + 2], "little")
    columns = event[at]
    at += 1
    if columns >= 0xFB:  # more than 250 columns
        columns = int.from_bytes(event[at : at + 2], "little")
        at += 2
    size = (columns + 7) // 8
    images = 2 if kind in UPDATES else 1
    bits = (
        int.from_bytes(event[at : at + size], "little"),
        int.from_bytes(event[at + size : at + images * size], "little"),
    )
    whole = (1 << columns) - 1
    partial = any(each & whole != whole for each in bits[:images])
    at += images * size
    table_id = event[BODY : BODY + 6]
    if kind in _COMPRESSED:
        data = uncompressed(event[at:end])
        return RowsEvent(table_id, data, 0, len(data), partial)
    return RowsEvent(table_id, event, at, end, partial)
