"""In what our envelopes are not Debezium's, and why: which records there are, their keys, the fields around a row."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.debezium.compare import ABSENT
from bench.debezium.difference import MARIADB, POSTGRESQL, Difference

__all__ = ["ENVELOPE"]

# Which records a key has: no op of their own.
_COUNTS = "-"
_PLACEHOLDER = '"__debezium_unavailable_value"'

ENVELOPE: Sequence[Difference] = (
    Difference(
        ("source.version",),
        "the version of Debezium",
        "the version of Headwater",
        "each says who wrote the record",
        wrote=r'"\d+\.\d+\.\d+"',
    ),
    Difference(
        ("ts_ms", "ts_us", "ts_ns"),
        "when Debezium made the record",
        "when our connector received the change; `ts_ns` is `ts_us` times 1000",
        "two processes see a change at two moments",
        wrote=r"\d+",
    ),
    Difference(
        ("transaction.id",),
        "`txId:lsn` with the LSN of the row itself: it differs from row to row of one transaction",
        "`txId:lsn` with the LSN of the transaction's commit: all rows of a transaction have the same",
        "what is one transaction at the source can be put together again",
        wrote=r'"\d+:\d+"',
        database=POSTGRESQL,
    ),
    Difference(
        ("records",),
        "BEGIN and END records in a topic of transactions",
        "none",
        "`transaction.id`, `total_order` and `source.headwater.commit` are in every row; whether a transaction is "
        "complete is known from the next commit",
        tables=("transaction",),
    ),
    Difference(
        ("records",),
        "one record (op t), to a partition chosen at random",
        "one to every partition of the topic, all with the same place",
        "a reader of one partition must learn of it, and in order with the changes that it reads",
        ops="t",
        tables=("whole", "part"),
    ),
    Difference(
        ("records",),
        "none",
        "the snapshot of a table without primary key begins with op t",
        "its rows cannot be told from those that an earlier snapshot read",
        ops="t",
        tables=("keyless",),
    ),
    Difference(
        ("records",),
        "a delete from a table without primary key is followed by a record with neither key nor value",
        "no such record",
        "a tombstone without a key says nothing, and some readers fail on it",
        tables=("keyless",),
        ops=_COUNTS,
    ),
    Difference(
        ("records",),
        "keyed by the primary key, which in a delete is 0: the server does not send it",
        "keyed by the columns of the replica identity",
        "a table whose replica identity is another index than its primary key: what it deletes must be found by what "
        "the server says of it",
        database=POSTGRESQL,
        tables=("indexed",),
        ops=_COUNTS,
    ),
    Difference(
        ("key", "partition"),
        "characters beyond U+FFFF are escaped in JSON",
        "they are UTF-8",
        "the same key as JSON, but other bytes: such a key may go to another partition than Debezium's",
        tables=("whole", "part"),
    ),
    Difference(
        ("source.sequence", "source.lsn", "source.txId", "source.xmin"),
        "position and transaction of the snapshot",
        "absent; the position is `source.headwater.commit`",
        "a table is read in chunks while changes are streamed: there is no one transaction that read it",
        wrote=re.escape(ABSENT),
        database=POSTGRESQL,
        ops="r",
    ),
    Difference(
        (
            "source.file",
            "source.pos",
            "source.row",
            "source.gtid",
            "source.server_id",
            "source.thread",
            "source.query",
            "source.sequence",
        ),
        "position of the snapshot; server_id, row 0; the rest null",
        "absent; the position is `source.headwater.commit`",
        "as on PostgreSQL",
        wrote=re.escape(ABSENT),
        database=MARIADB,
        ops="r",
    ),
    Difference(
        ("source.sequence",),
        "null",
        "absent",
        "it never has a value on MariaDB",
        wrote=re.escape(ABSENT),
        database=MARIADB,
        ops="cudt",
    ),
    Difference(
        ("source.snapshot",),
        "first, first_in_data_collection, true, last_in_data_collection, last",
        "incremental",
        "what Debezium writes for its own incremental snapshots, which read as ours do",
        wrote='"incremental"',
        ops="r",
    ),
    Difference(
        ("source.ts_ms", "source.ts_us", "source.ts_ns"),
        "when the snapshot began",
        "when the chunk was emitted",
        "each chunk is a snapshot of its own",
        wrote=r"\d+",
        ops="r",
    ),
    Difference(
        ("after.bin",),
        "null",
        "`__debezium_unavailable_value`",
        "an unchanged TOAST value of type bytea that the server did not send: Debezium means its placeholder and "
        "writes null (with binary.handling.mode=base64), which cannot be told from a null",
        wrote=_PLACEHOLDER,
        database=POSTGRESQL,
        tables=("part",),
    ),
    Difference(
        ("after.list",),
        "an array with the placeholder as its element",
        "`__debezium_unavailable_value`",
        "an unchanged TOAST value of an array type: one placeholder for all types, which no array can be",
        wrote=_PLACEHOLDER,
        database=POSTGRESQL,
        tables=("part",),
    ),
    Difference(
        ("after.big", "after.bin", "after.list", "after.doc"),
        "as for an unchanged TOAST value",
        "the value, where the row is found as that transaction left it",
        "of a row whose key was changed: under its new key nobody has an earlier value",
        wrote=f"(?!{_PLACEHOLDER}).*",
        database=POSTGRESQL,
        ops="c",
        tables=("part",),
        sometimes=True,
    ),
    Difference(
        ("after.d", "after.at", "after.ts"),
        "1970-01-01",
        "the database's text",
        "a zero date in a column that must not be null is no day in 1970",
        wrote='"0000-00-00( 00:00:00)?"',
        database=MARIADB,
        tables=("strict",),
    ),
)
