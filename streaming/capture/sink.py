"""Turns captured rows into Debezium-compatible records and sends them: the hot path of every connector.

A record's place in the source's history is (epoch, commit, order): `commit` labels its transaction and grows from one
to the next, `order` counts within it. The same row gets the same place however often it is read again, so what is
already in the log is recognised: here after a restart, and once more when it is landed.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streaming.capture.tables import SchemaHistory, TableSchema
from streaming.dead_letters import Origin, dead_letter, put
from streaming.log_writer import LogWriter, Record, RecordTooLargeError

__all__ = ["SNAPSHOT_ORDER", "UNAVAILABLE", "Sink", "Table", "Window"]

# The order of rows that a snapshot read: after every change of the transactions up to their position.
SNAPSHOT_ORDER = 0x3FFFFFFF
# What stands for a value that the database did not send (an unchanged TOAST column), as in Debezium.
UNAVAILABLE = b'"__debezium_unavailable_value"'
_VERSION = "0.1.0"
_NULL = b"null"
# A transaction is streamed moments before others see it as ended: this many later ones are more than that.
_REMEMBERED_TRANSACTIONS = 20_000

# (epoch, commit, order) of a change, and 1 for the tombstone that follows a deletion.
Place = tuple[int, int, int, int]


@dataclass
class Window:
    """What was streamed of a table since a chunk of it was asked for.

    `touched`: the last transaction (as given to `begin`) of each key; `held`: records of a table without primary key,
    kept back until the chunk is emitted. More than `limit` entries: `overflowed`, and the chunk is worth nothing.
    """

    limit: int
    touched: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    truncated: tuple[int, int] | None = None
    held: list[tuple[tuple[int, int], bytes | None, bytes | None, int]] | None = None
    overflowed: bool = False


class Table:
    """A captured table while it is captured: where its records go, and what all of them have in common."""

    __slots__ = ("collection_order", "partitions", "prefix", "schema", "source", "topic", "tx", "version", "window")

    def __init__(self, schema: TableSchema, topic: str, partitions: int, version: int, source: bytes) -> None:
        self.schema = schema
        self.topic = topic
        self.partitions = partitions
        self.version = version
        self.source = source
        self.prefix = b""
        self.tx = -1
        self.collection_order = 0
        self.window: Window | None = None


class Sink:
    """Rows in, records out. Belongs to the thread that polls the source.

    A source calls `begin`, then `row`, `rekeyed`, `truncate`, then `end`; `advance` when it has moved without a change;
    `schema` before the first row of a table and whenever the table looks different.
    """

    def __init__(
        self,
        system: str,
        connector: str,
        database: str,
        writer: LogWriter,
        history: SchemaHistory,
        *,
        epoch: int = 1,
        topic: Callable[[str], str],
        now_ns: Callable[[], int] = time.time_ns,
        refused: Mapping[tuple[str, bytes | None], int] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`database`: empty where a table's schema is its database (MariaDB).

        `refused`: by topic and key, from which size on (bytes) the log has refused a record after it was queued; it is
        not tried again.
        """
        self.system, self.epoch, self.writer, self.history = system, epoch, writer, history
        self.tables: dict[str, Table] = {}
        self.position = 0
        self.resume: Mapping[str, Any] = {}
        self.rows = self.read_rows = 0
        self.last_event_us = 0
        self.recent: deque[int] = deque(maxlen=_REMEMBERED_TRANSACTIONS)
        self.at_boundary: Callable[[], None] | None = None
        self.in_transaction = False
        self.rereads: dict[str, str] = {}
        self._connector, self._database, self._topic, self._now_ns = connector, database, topic, now_ns
        self._refused, self._say = refused or {}, say
        self._floors: dict[str, Sequence[Place | None]] = {}
        self._catching_up = False
        self._tx, self._tx_number, self._commit, self._order = 0, 0, 0, 0
        self._tx_id, self._tx_source, self._event_us = b"", b"", 0
        self._now_us, self._tail = 0, b""
        self.tick()

    def tick(self) -> None:
        """Take the time anew: once for each buffer that arrives is enough."""
        self._at(self._now_ns() // 1000)

    def _at(self, us: int) -> None:
        self._now_us = us
        self._tail = b',"ts_ms":%d,"ts_us":%d,"ts_ns":%d}' % (us // 1000, us, us * 1000)

    def schema(self, schema: TableSchema) -> Table:
        """Make the table known, or known anew after it was altered; a new version is recorded before this returns."""
        table = self.tables.get(schema.name)
        before = table.schema if table else self.history.current(schema.name) or schema
        if before.key != schema.key:
            self.reread(schema.name)  # the log has the rows by keys of another form
        version = self.history.version(schema) or self._record(schema)
        if table is None:
            topic = self._topic(schema.name)
            self.writer.ensure([topic])
            table = Table(schema, topic, self.writer.partitions(topic), version, b"")
            self.tables[schema.name] = table
            self._learn_floor(topic, table.partitions)
        if table.window is not None and table.schema.key != schema.key:
            table.window.overflowed = True  # it has keys of another form than the chunk's
        table.schema, table.version, table.tx = schema, version, -1
        fixed = {
            "version": _VERSION,
            "connector": self._connector,
            "name": self.system,
            "db": self._database or schema.schema,
            **({"schema": schema.schema} if self._database else {}),
            "table": schema.table,
        }
        table.source = json.dumps(fixed, separators=(",", ":")).encode()[:-1]
        return table

    def _record(self, schema: TableSchema) -> int:
        place = {"epoch": self.epoch, "commit": max(self._commit, self.position)}
        return self.history.record(schema, self.writer, place, self._now_ns() // 1000)

    def _learn_floor(self, topic: str, partitions: int) -> None:
        """What the log already holds: the place of the last record of each partition."""
        tails = self.writer.tails(topic)
        floors = [_place(tails.get(partition, ())) for partition in range(partitions)]
        if any(floors):
            self._floors[topic] = floors
            self._catching_up = True

    def holds(self, name: str) -> bool:
        """Whether the log held changes of the table when it was made known; ask before anything is streamed."""
        return self.tables[name].topic in self._floors

    @property
    def logged_epoch(self) -> int:
        """The highest epoch at the ends of the log's partitions; 0 when there are no changes."""
        return max((floor[0] for floors in self._floors.values() for floor in floors if floor), default=0)

    def begin(self, tx: int, tx_id: bytes, commit: int, event_us: int, tx_source: bytes) -> None:
        """A transaction begins. `tx`: as `Chunk.sees` knows it; `tx_id`: Debezium's transaction.id; `commit`: its
        label.

        `event_us`: when it was committed at the source; `tx_source`: the source fields of its rows as JSON members,
        each with a comma before it.
        """
        self._tx, self._tx_id, self._commit, self._event_us, self._tx_source = tx, tx_id, commit, event_us, tx_source
        self._tx_number += 1
        self._order = 0
        self.in_transaction = True
        self.last_event_us = event_us
        if self._catching_up and not self._behind_floors():
            self._catching_up = False
            self._floors.clear()

    def clock(self, event_us: int, known_us: int) -> None:
        """The rest of the transaction happened and became known at these instants (a replay's clock)."""
        self._event_us = event_us
        self._tx_number += 1
        self._at(known_us)

    def _behind_floors(self) -> bool:
        place = (self.epoch, self._commit, 0)
        return any(floor is not None and floor >= place for floors in self._floors.values() for floor in floors)

    def row(
        self,
        table: Table,
        op: bytes,
        key: bytes | None,
        before: bytes,
        after: bytes,
        row_source: bytes,
        unsent: bytes = b"",
    ) -> None:
        """One changed row. `op` c, u or d; `before`, `after`: JSON objects or null; `row_source` as `begin`'s.

        `unsent`: the columns that have the placeholder, as JSON strings with commas between them.
        """
        self._emit(table, op, key, before, after, row_source, unsent)
        if op == b"d" and key is not None:
            self._send(table, key, None)

    def rekeyed(
        self,
        table: Table,
        old_key: bytes,
        key: bytes,
        before: bytes,
        after: bytes,
        row_source: bytes,
        unsent: bytes = b"",
    ) -> None:
        """A row whose primary key changed: to whoever reads by key the old row is deleted and a new one made."""
        self._emit(table, b"d", old_key, before, _NULL, row_source)
        self._send(table, old_key, None)
        self._emit(table, b"c", key, _NULL, after, row_source, unsent)

    def truncate(self, table: Table, row_source: bytes) -> None:
        """The table was emptied: said to every partition, for no key is."""
        if table.window is not None:
            table.window.truncated = (self._tx, self._commit)
        self._count(table)
        for partition in range(table.partitions):
            self._emit(table, b"t", None, _NULL, _NULL, row_source, partition=partition)

    def _emit(
        self,
        table: Table,
        op: bytes,
        key: bytes | None,
        before: bytes,
        after: bytes,
        row_source: bytes,
        unsent: bytes = b"",
        partition: int | None = None,
    ) -> None:
        if partition is None:
            self._count(table)
        value = (
            b'{"before":%b,"after":%b,"source":%b%d%b}%b},"transaction":{"id":"%b","total_order":%d,'
            b'"data_collection_order":%d},"op":"%b"%b'
            % (
                before,
                after,
                table.prefix,
                self._order,
                b',"unsent":[%b]' % unsent if unsent else b"",
                row_source,
                self._tx_id,
                self._order,
                table.collection_order,
                op,
                self._tail,
            )
        )
        self._send(table, key, value, partition)

    def _count(self, table: Table) -> None:
        """One more event of the transaction, and of the table in it: however many partitions are told of it."""
        if table.tx != self._tx_number:
            self._first_of_transaction(table)
        self._order += 1
        table.collection_order += 1

    def _first_of_transaction(self, table: Table) -> None:
        table.tx, table.collection_order = self._tx_number, 0
        table.prefix = self._prefix(table, table.version, b"false", self._commit, self._event_us, self._tx_source)

    def _prefix(self, table: Table, version: int, snapshot: bytes, commit: int, event_us: int, more: bytes) -> bytes:
        """The source block up to the value of headwater.order."""
        return (
            b'%b,"snapshot":"%b","ts_ms":%d,"ts_us":%d,"ts_ns":%d%b,'
            b'"headwater":{"epoch":%d,"commit":%d,"schema":%d,"order":'
            % (
                table.source,
                snapshot,
                event_us // 1000,
                event_us,
                event_us * 1000,
                more,
                self.epoch,
                commit,
                version,
            )
        )

    def _send(self, table: Table, key: bytes | None, value: bytes | None, partition: int | None = None) -> None:
        if table.window is not None and self._kept_back(table, table.window, key, value, partition):
            return
        if self._catching_up and self._already_there(table, key, value, partition):
            return
        self.rows += 1
        self._put(table.topic, key, value, partition)

    def _put(self, topic: str, key: bytes | None, value: bytes | None, partition: int | None = None) -> None:
        """Send a record, or a dead letter with it when the log does not take a record of its size."""
        try:
            if self._refused:
                self._expect_taken(topic, key, value)
            self.writer.send(topic, key, value, self._now_us, partition)
        except RecordTooLargeError as error:
            if error.spent:
                raise
            self._put_aside(topic, key, value, str(error))

    def _expect_taken(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        size, least = len(key or b"") + len(value or b""), self._refused.get((topic, key))
        if least is not None and size >= least:
            said = f"topic {topic}: a record of {size} bytes with this key was refused; raise its max.message.bytes"
            raise RecordTooLargeError(said, topic=topic, key=key, size=size)

    def _put_aside(self, topic: str, key: bytes | None, value: bytes | None, why: str) -> None:
        place = _place([Record(0, 0, key, value)])
        origin = Origin(self.system, topic, self.writer.partition(topic, key), None, place[:3] if place else None)
        now_us = self._now_ns() // 1000
        letter = dead_letter(origin, f"too large: {why}", key=key, value=value, timestamp_us=self._now_us, at_us=now_us)
        put([letter], self.writer)
        self._say(f"{letter.reason}; it is dead letter {letter.id} (`headwater dlq list {self.system}`)")

    def _kept_back(
        self, table: Table, window: Window, key: bytes | None, value: bytes | None, partition: int | None
    ) -> bool:
        place = (self._tx, self._commit)
        if window.held is not None:
            if len(window.held) < window.limit:
                window.held.append((place, key, value, -1 if partition is None else partition))
                return True
            self.release(table)
            window.overflowed = True
            return False
        if key is not None:
            window.touched[key] = place
            window.overflowed = window.overflowed or len(window.touched) > window.limit
            if window.overflowed:
                window.touched.clear()
        return False

    def release(self, table: Table, sees: Callable[[int, int], bool] | None = None) -> None:
        """Send what was kept back, but for what `sees` says is in the chunk; nothing is kept back from here on."""
        window, table.window = table.window, None
        for (tx, commit), key, value, partition in window.held or () if window else ():
            if sees is None or not sees(tx, commit):
                self._put(table.topic, key, value, None if partition < 0 else partition)
                self.rows += 1

    def _already_there(self, table: Table, key: bytes | None, value: bytes | None, partition: int | None) -> bool:
        floors = self._floors.get(table.topic)
        if floors is None:
            return False
        chosen = self.writer.partition(table.topic, key) if partition is None else partition
        floor = floors[chosen]
        return floor is not None and (self.epoch, self._commit, self._order, int(value is None)) <= floor

    def end(self, position: int, resume: Mapping[str, Any]) -> None:
        """The transaction is complete; the source stands at `position`, and would resume after it with `resume`."""
        self.recent.append(self._tx)
        self.in_transaction = False
        self.advance(position, resume)

    def advance(self, position: int, resume: Mapping[str, Any]) -> None:
        """The source has moved on without a captured change."""
        self.position, self.resume = position, resume
        if self.at_boundary is not None:
            self.at_boundary()

    def reread(self, name: str, *, emptied: bool = True) -> None:
        """Rows of the table came or went unseen by the stream: at the next boundary it is emptied, and read anew.

        Not `emptied`: their values have changed, but not which rows there are.
        """
        if emptied or name not in self.rereads:
            self.rereads[name] = "void" if emptied else "pending"

    def read(
        self, table: Table, rows: Iterable[tuple[bytes | None, bytes]], commit: int, schema: TableSchema | None = None
    ) -> int:
        """Emit rows that a snapshot read, as of `commit`. Returns how many.

        `schema`: how the table looked when they were read, which the stream may not have come to, or be beyond.
        """
        self.tick()
        version = table.version
        if schema is not None and schema != table.schema:
            version = self.history.seen(schema) or self._record(schema)
        prefix = self._prefix(table, version, b"incremental", commit, self._now_us, b"")
        count = 0
        for key, after in rows:
            value = b'{"before":null,"after":%b,"source":%b%d}},"transaction":null,"op":"r"%b' % (
                after,
                prefix,
                SNAPSHOT_ORDER,
                self._tail,
            )
            self._put(table.topic, key, value)
            count += 1
        self.rows += count
        self.read_rows += count
        return count

    def empty(self, table: Table, commit: int) -> None:
        """Say that the table starts from nothing: before the rows of a table without primary key are read again."""
        self.tick()
        prefix = self._prefix(table, table.version, b"incremental", commit, self._now_us, b"")
        value = b'{"before":null,"after":null,"source":%b%d}},"transaction":null,"op":"t"%b' % (
            prefix,
            SNAPSHOT_ORDER,
            self._tail,
        )
        for partition in range(table.partitions):
            self.writer.send(table.topic, None, value, self._now_us, partition)


def _place(tail: Sequence[Record]) -> Place | None:
    """The place of the last record: a tombstone says none itself, it has that of the deletion before it."""
    for record in reversed(tail):
        if record.value is None:
            continue
        try:
            found = json.loads(record.value)["source"]["headwater"]
            return (int(found["epoch"]), int(found["commit"]), int(found["order"]), int(tail[-1].value is None))
        except (ValueError, KeyError, TypeError):
            return None  # somebody else's record: landing will say what it thinks of it
    return None
