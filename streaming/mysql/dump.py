"""The server's binary log as a stream of packets: asked for as a replica would, and what it answers when it refuses.

Errors: Halt
          ├─ mariadb_binlog_purged   the place is in a file that the server has deleted
          └─ mariadb_binlog_reset    the place is none of this log: it was reset, or is another server's
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from streaming.capture.errors import CaptureError, Halt, Retryable
from streaming.mysql.connect import Database
from streaming.mysql.packets import Packets

if TYPE_CHECKING:
    import pymysql

__all__ = ["Dump", "purged", "reset"]

_COM_BINLOG_DUMP, _COM_REGISTER_SLAVE = 0x12, 0x15
_END_AT_END = 1
_STALL_S = 30.0
_START = 4
_HEARTBEAT_NS = 1_000_000_000
# The server's own words for a place that it does not have any more, or never had.
_PURGED = ("Could not find first log file", "could not find next log", "have been purged", "too old")
_NO_PLACE = ("impossible position", "bogus data", "not in the master's binlog", "is missing the GTID", "> file size")
_FATAL_READING, _NO_GTID, _NO_RIGHT = 1236, 1945, (1045, 1227)


class Dump:
    """A connection on which the server sends its binary log from a place on."""

    def __init__(
        self,
        database: Database,
        server_id: int,
        *,
        file: str = "",
        pos: int = _START,
        gtid: str | None = None,
        mariadb: bool = True,
        until_end: bool = False,
    ) -> None:
        """From `file` and `pos`, or after the transactions of `gtid`. `until_end`: do not wait for what comes later.

        `server_id` is ours: the server ends an older dump to the same one; 0 is nobody. Raises Retryable, Halt.
        """
        self._database = database
        self._connection: pymysql.Connection = database.connect()
        self._place = f"{file}:{pos}" if gtid is None else f"GTID {gtid}"
        with database.errors():
            self._announce(server_id, gtid, mariadb)
            flags = _END_AT_END if until_end else 0
            request = struct.pack("<IHI", pos, flags, server_id) + file.encode()
            self._connection._execute_command(_COM_BINLOG_DUMP, request)
            self._packets = Packets(self._connection, _STALL_S)

    def _announce(self, server_id: int, gtid: str | None, mariadb: bool) -> None:
        """What a replica says first. Capability 4: it knows MariaDB's GTID events."""
        settings = [
            "@master_binlog_checksum = @@global.binlog_checksum",
            f"@master_heartbeat_period = {_HEARTBEAT_NS}",
            f"@source_heartbeat_period = {_HEARTBEAT_NS}",
        ]
        if mariadb:
            settings += ["@mariadb_slave_capability = 4", "@slave_gtid_strict_mode = 1"]
        with self._connection.cursor() as cursor:
            cursor.execute("SET " + ", ".join(settings))
            if gtid is not None:
                cursor.execute("SET @slave_connect_state = %s, @slave_gtid_ignore_duplicates = 0", (gtid,))
        if server_id:
            name = b"headwater"
            request = struct.pack("<IB", server_id, len(name)) + name + bytes(2 + 2 + 4 + 4)
            self._connection._execute_command(_COM_REGISTER_SLAVE, request)
            self._accepted()

    def _accepted(self) -> None:
        """The server says who may not replicate as if the password were wrong, with which we are in already."""
        import pymysql

        try:
            self._connection._read_packet()
        except pymysql.MySQLError as error:
            if error.args[0] in _NO_RIGHT:
                raise self._database.no_right(f"REPLICATION SLAVE ({error.args[1]})") from None
            raise

    def receive(self, timeout_s: float) -> bool:
        """Wait for packets. False: none came in that time."""
        return self._packets.receive(timeout_s)

    def events(self) -> Iterator[bytes]:
        """The events that have arrived. Raises Retryable, Halt when the server says why there are no more."""
        for packet in self._packets.ready():
            if packet[0]:
                raise self._refused(packet)
            yield packet

    def all_events(self) -> Iterator[bytes]:
        """Everything there is, with `until_end`."""
        while self._packets.receive(_STALL_S):
            for packet in self._packets.ready():
                if packet[0] == 0xFE:
                    return
                if packet[0]:
                    raise self._refused(packet)
                yield packet
        raise Retryable("the database stopped sending its binary log half-way")

    def _refused(self, packet: bytes) -> CaptureError:
        if packet[0] == 0xFE:
            return Retryable("the database ended the stream of its binary log: it shuts down, or a replica has our id")
        code, said = int.from_bytes(packet[1:3], "little"), packet[9:].decode(errors="replace")
        if code in (_FATAL_READING, _NO_GTID):
            if any(words in said for words in _PURGED):
                return purged(self._place, said)
            if any(words in said for words in _NO_PLACE):
                return reset(f"{self._place} is no place in it: {said}")
        if code in _NO_RIGHT:
            return self._database.no_right(f"REPLICATION SLAVE ({said})")
        return Retryable(f"the database ended the stream of its binary log: {said} (error {code})")

    def close(self) -> None:
        """End it, without asking a server that may be away."""
        self._connection._force_close()


def purged(place: str, found: str) -> Halt:
    """What was written since our place is gone."""
    return Halt(
        f"the binary log from {place} on was deleted before it was read: {found}",
        "What changed since then cannot be known from the log: start again with --from-scratch, which reads every "
        "table anew; raise binlog_expire_logs_seconds so that it does not happen again",
        "mariadb_binlog_purged",
    )


def reset(found: str) -> Halt:
    """The log is not the one that was captured."""
    return Halt(
        f"this is not the binary log that was captured so far: {found}. It was reset (RESET MASTER), its server was "
        "restored from a backup, or another one answers here",
        "Start again with --from-scratch, which reads every table anew",
        "mariadb_binlog_reset",
    )
