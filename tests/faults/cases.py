"""The faults that a change stream must survive, by number, and why some cannot happen to one of the databases."""

from __future__ import annotations

__all__ = ["CASES", "DATABASES", "IMPOSSIBLE"]

DATABASES = ("postgresql", "mariadb")
CASES = {
    1: "`kill -9` between the log's acknowledgement and the checkpoint",
    2: "`kill -9` between the checkpoint and the slot's confirmed position",
    3: "slot dropped while stopped",
    4: "slot invalidated by max_slot_wal_keep_size",
    5: "captured table idle, neighbour busy",
    6: "database idle, sibling database busy",
    7: "binlog purged past our position",
    8: "binlog or GTID state reset",
    9: "same address, different server identity",
    10: "offset store corrupt or truncated",
    11: "stored offset ahead of the server",
    12: "two connectors on one slot",
    13: "part of the log replayed to the lander",
    14: "standby promoted, connector moved to it",
    15: "killed in the middle of a chunk",
    16: "a row updated inside the chunk's window",
    17: "a table added while running",
    18: "table without primary key",
    19: "composite and text keys, collation-dependent order",
    20: "DDL during the snapshot",
    21: "unchanged TOAST column",
    22: "primary key updated",
    23: "TRUNCATE",
    24: "REPLICA IDENTITY nothing, full, index",
    25: "numeric(38,18), NaN, Infinity",
    26: "unsigned bigint above 2^63",
    27: "microseconds; years 0001 and BC; plus and minus infinity",
    28: "zero dates; TIME of plus and minus 838 hours",
    29: "time zones, daylight saving",
    30: "enum value added, arrays, bytea, jsonb, invalid UTF-8, NUL",
    31: "a transaction of 10 million rows, memory bounded",
    32: "rollbacks and savepoints",
    33: "long transactions interleaved",
    34: "column added, dropped, renamed under load",
    35: "type changed",
    36: "DDL and DML in one transaction, then a crash",
    37: "partition attached and detached",
    38: "incompatible change: that table is quarantined, the others go on",
    39: "Kafka away for ten minutes",
    40: "broker's disk full",
    41: "poison message",
    42: "rebalance in the middle of a batch",
    43: "consumer stalled: alert within 60 s",
    44: "late and out-of-order events; clock an hour off either way",
}
_NO_SLOT = "MariaDB has no slots: nothing in the server knows of us"
_NO_PURGE = "PostgreSQL deletes nothing that a slot needs; a slot that lost it is case 4"
IMPOSSIBLE = {
    (2, "mariadb"): f"{_NO_SLOT}; the checkpoint is the only position",
    (3, "mariadb"): _NO_SLOT,
    (4, "mariadb"): f"{_NO_SLOT}; a binary log that was deleted before it was read is case 7",
    (5, "mariadb"): f"{_NO_SLOT}, so it keeps no log for us; how long it does is binlog_expire_logs_seconds",
    (6, "mariadb"): f"{_NO_SLOT}, so it keeps no log for us; how long it does is binlog_expire_logs_seconds",
    (7, "postgresql"): _NO_PURGE,
    (
        8,
        "postgresql",
    ): "the WAL's positions cannot be reset while the cluster is the same one; another cluster is case 9",
    (21, "mariadb"): "every row in the binary log is whole: anything but binlog_row_image FULL is refused (case 24)",
    (26, "postgresql"): "it has no unsigned types",
    (28, "postgresql"): "it has no zero dates, and its time is of one day",
}
