"""A chunk merged with the stream: whatever the interleaving, the log folds to the source's rows. A model, no server.

The model keeps what makes this hard: a transaction is in the database's log, and may be streamed, before a snapshot
that begins later can see it; and a snapshot sees transactions that were not streamed yet.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from streaming.capture.checkpoint import TableProgress
from streaming.capture.sink import Sink
from streaming.capture.snapshot import Snapshotter
from streaming.capture.source import Chunk
from streaming.capture.tables import CapturedColumn, SchemaHistory, TableSchema
from streaming.log_writer import Record

ROWS, PARTITIONS = 40, 3
COLUMNS = (CapturedColumn("id", "integer", "int64", False), CapturedColumn("v", "integer", "int64"))


class Log:
    """A writer that keeps its records."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, int], list[Record]] = {}

    def ensure(self, topics: Sequence[str], *, compacted: bool = False) -> None:
        """Nothing to make."""

    def partitions(self, topic: str) -> int:
        return PARTITIONS

    def partition(self, topic: str, key: bytes | None) -> int:
        return zlib.crc32(key or b"") % PARTITIONS

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, timestamp_us: int, partition: int | None = None
    ) -> None:
        place = (topic, self.partition(topic, key) if partition is None else partition)
        kept = self.records.setdefault(place, [])
        kept.append(Record(len(kept), timestamp_us, key, value))

    def flush(self) -> None:
        """Everything is kept at once."""

    def tails(self, topic: str, records: int = 2) -> Mapping[int, Sequence[Record]]:
        return {p: kept[-records:] for (name, p), kept in self.records.items() if name == topic and kept}

    def close(self) -> None:
        """Nothing to give back."""

    def fold(self, topic: str) -> dict[Any, int]:
        """Current rows by key, or the number of each row where there is no key."""
        rows: dict[Any, int] = {}
        for (name, _), kept in self.records.items():
            found: dict[Any, int] = {}
            for record in kept if name == topic else ():
                if record.value is not None:
                    _apply(found, record.key, json.loads(record.value))
            for key, value in found.items():
                rows[key] = rows.get(key, 0) + value
        return {key: value for key, value in rows.items() if value}


def _apply(rows: dict[Any, int], key: bytes | None, change: Mapping[str, Any]) -> None:
    op, before, after = change["op"], change["before"], change["after"]
    if op == "t":
        rows.clear()
    elif key is not None and op == "d":
        rows.pop(key, None)
    elif key is not None:
        rows[key] = after["v"]
    else:
        for image, count in ((before, -1), (after, 1)):
            if image is not None:
                bag = (image["id"], image["v"])
                rows[bag] = rows.get(bag, 0) + count


class Shop:
    """A table under transactions: `log` is in commit order; `visible` follows it, a little late and out of order."""

    def __init__(self, rng: random.Random, keyed: bool) -> None:
        self.rng, self.keyed = rng, keyed
        self.log: list[tuple[int, list[tuple[str, int, int | None, int | None]]]] = []
        self.visible: set[int] = set()
        self.rows = {i: rng.randrange(1000) for i in range(0, ROWS, 2)}
        self.first, self.streamed, self.lagging = dict(self.rows), 0, True

    def commit(self) -> None:
        changes: list[tuple[str, int, int | None, int | None]] = []
        if self.rng.random() < 0.03:
            self.rows.clear()
            changes.append(("t", 0, None, None))
        for _ in range(self.rng.randrange(1, 4)):
            key, old = self.rng.randrange(ROWS), None
            old, new = self.rows.get(key), self.rng.randrange(1000)
            if old is not None and self.rng.random() < 0.3:
                del self.rows[key]
                changes.append(("d", key, old, None))
            else:
                self.rows[key] = new
                changes.append(("u" if old is not None else "c", key, old, new))
        self.log.append((len(self.log) + 1, changes))

    def show(self) -> None:
        """Some of what was committed becomes visible to others."""
        hidden = [tx for tx, _ in self.log if tx not in self.visible]
        # Row locks: what changes a row after another transaction is not seen before it.
        if hidden:
            self.visible.add(hidden[0])
            if len(hidden) > 1 and self._apart(hidden[0], hidden[1]) and self.rng.random() < 0.3:
                self.visible.discard(hidden[0])
                self.visible.add(hidden[1])

    def _apart(self, one: int, other: int) -> bool:
        touched = [{key for _, key, _, _ in self.log[tx - 1][1]} for tx in (one, other)]
        truncates = any(op == "t" for tx in (one, other) for op, *_ in self.log[tx - 1][1])
        return not truncates and not touched[0] & touched[1]

    def read(self, cursor: tuple[Any, ...] | None, limit: int) -> Chunk:
        rows = dict(self.first)
        seen = frozenset(self.visible)
        for tx, changes in self.log:
            if tx in seen:
                for op, key, _, new in changes:
                    if op == "t":
                        rows.clear()
                    elif new is None:
                        rows.pop(key, None)
                    else:
                        rows[key] = new
        after = -1 if cursor is None else cursor[0]
        keys = sorted(k for k in rows if k > after)
        chosen = keys[:limit] if self.keyed else keys
        done = not self.keyed or len(keys) <= limit
        return Chunk(
            rows=[(_key(k) if self.keyed else None, _row(k, rows[k])) for k in chosen],
            cursor=None if done else (chosen[-1],),
            high=max(seen, default=0),
            sees=lambda tx, commit: tx in seen,
            in_progress=frozenset(tx for tx, _ in self.log if tx not in seen),
        )

    def stream(self, sink: Sink) -> None:
        """One more transaction reaches the connector."""
        if self.streamed == len(self.log):
            return
        tx, changes = self.log[self.streamed]
        table = sink.tables["public.t"]
        sink.begin(tx, b"%d" % tx, tx, tx * 1000, b"")
        for op, key, old, new in changes:
            if op == "t":
                sink.truncate(table, b"")
            else:
                images = (_row(key, old), _row(key, new))
                sink.row(table, op.encode(), _key(key) if self.keyed else None, *images, b"")
        self.streamed += 1
        sink.end(tx, {"at": tx})


def _key(key: int) -> bytes:
    return b'{"id":%d}' % key


def _row(key: int, value: int | None) -> bytes:
    return b"null" if value is None else b'{"id":%d,"v":%d}' % (key, value)


class Later:
    """A thread pool of which the test says when a chunk is read and when it is ready."""

    def __init__(self) -> None:
        self.asked: list[tuple[Future[Chunk], Any]] = []
        self.read: list[tuple[Future[Chunk], Chunk]] = []

    def submit(self, work: Any, *given: Any) -> Future[Chunk]:
        future: Future[Chunk] = Future()
        self.asked.append((future, lambda: work(*given)))
        return future

    def shutdown(self, **_: Any) -> None:
        """No thread to end."""

    def step(self, rng: random.Random) -> None:
        if self.asked and rng.random() < 0.5:
            future, work = self.asked.pop()
            self.read.append((future, work()))
        elif self.read and rng.random() < 0.5:
            future, chunk = self.read.pop()
            future.set_result(chunk)


def run(seed: int, keyed: bool) -> tuple[dict[Any, int], dict[Any, int], Log]:
    """A random interleaving to its end: what the log folds to, and what the source has."""
    rng = random.Random(seed)
    shop, log, later = Shop(rng, keyed), Log(), Later()
    sink = Sink("s", "test", "db", log, SchemaHistory("s"), topic=lambda name: name)
    sink.schema(TableSchema("public", "t", COLUMNS, ("id",) if keyed else ()))

    class Reader:
        def read_chunk(self, table: str, cursor: tuple[Any, ...] | None, limit: int) -> Chunk:
            return shop.read(cursor, limit)

    for _ in range(rng.randrange(30)):
        shop.commit()
        shop.stream(sink)  # streamed before the snapshot begins, and not all of it visible yet
        if rng.random() < 0.9:
            shop.show()
    progress = {"public.t": TableProgress()}
    snapshotter = Snapshotter(Reader(), sink, progress, chunk_rows=5, say=lambda _: None)  # type: ignore[arg-type]
    snapshotter._reader = later  # type: ignore[assignment]
    # Now the stream runs ahead of what others see, now behind it.
    paces = [rng.choice((0.2, 1, 5)) for _ in range(4)]
    for moment in range(100_000):
        busy = moment < 400
        if moment % 50 == 0:
            paces = [rng.choice((0.2, 1, 5)) for _ in paces]
        actions = (shop.commit, shop.show, lambda: shop.stream(sink), lambda: later.step(rng))
        rng.choices(actions[0 if busy else 1 :], paces[0 if busy else 1 :])[0]()
        snapshotter.step()
        if not busy and not snapshotter.busy and shop.streamed == len(shop.log):
            break
    assert progress["public.t"].state == "done"
    wanted = {_key(k): v for k, v in shop.rows.items()} if keyed else dict.fromkeys(shop.rows.items(), 1)
    return log.fold("public.t"), {k: v for k, v in wanted.items() if v}, log


@pytest.mark.parametrize("keyed", [True, False])
def test_every_interleaving_ends_with_the_sources_rows(keyed):
    for seed in range(150):
        found, wanted, _ = run(seed, keyed)
        assert found == wanted, seed


def test_a_truncation_is_one_event_of_its_transaction_however_many_partitions_are_told_of_it():
    log = Log()
    sink = Sink("s", "test", "db", log, SchemaHistory("s"), topic=lambda name: name)
    sink.schema(TableSchema("public", "t", COLUMNS, ("id",)))
    table = sink.tables["public.t"]
    sink.begin(1, b"1", 1, 1000, b"")
    sink.row(table, b"c", _key(1), b"null", _row(1, 1), b"")
    sink.truncate(table, b"")
    sink.row(table, b"c", _key(2), b"null", _row(2, 2), b"")
    sink.end(1, {"at": 1})
    found = {(change["op"], *_numbers(change)) for change in _changes(log)}
    assert found == {("c", 1, 1), ("t", 2, 2), ("c", 3, 3)}
    assert sum(change["op"] == "t" for change in _changes(log)) == PARTITIONS


def test_a_snapshots_rows_have_the_version_that_they_were_read_in_and_the_streams_keep_theirs():
    log = Log()
    sink = Sink("s", "test", "db", log, SchemaHistory("s"), topic=lambda name: name)
    looks = [TableSchema("public", "t", COLUMNS[:count], ("id",)) for count in (1, 2)]
    table = sink.schema(looks[0])
    sink.schema(looks[1])
    third = TableSchema("public", "t", (*COLUMNS, CapturedColumn("w", "integer", "int64")), ("id",))

    def streamed(tx: int, number: int) -> None:
        sink.begin(tx, b"%d" % tx, tx, 1000, b"")
        sink.row(table, b"c", _key(number), b"null", _row(number, 1), b"")
        sink.end(tx, {})

    streamed(1, 1)
    for number, look in ((2, looks[0]), (3, looks[1]), (4, third), (5, None)):
        assert sink.read(table, [(_key(number), _row(number, 1))], 1, look) == 1
    streamed(2, 6)
    sink.schema(third)
    streamed(3, 7)
    versions = {change["after"]["id"]: change["source"]["headwater"]["schema"] for change in _changes(log)}
    assert versions == {1: 2, 2: 1, 3: 2, 4: 3, 5: 2, 6: 2, 7: 3}


def _changes(log: Log) -> list[dict[str, Any]]:
    kept = [record for (topic, _), kept in log.records.items() if topic == "public.t" for record in kept]
    return [json.loads(record.value) for record in kept if record.value is not None]


def _numbers(change: Mapping[str, Any]) -> tuple[int, int]:
    transaction = change["transaction"]
    return transaction["total_order"], transaction["data_collection_order"]
