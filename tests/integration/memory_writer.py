"""A `LogWriter` that keeps records in memory, and what its readers can say of a captured table.

What was sent and not flushed is lost with `close`, as a crash would lose it.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from streaming.log_writer import Record

UNAVAILABLE = "__debezium_unavailable_value"
Log = dict[tuple[str, int], list[Record]]


class MemoryWriter:
    """Topics have `partitions` partitions; several writers may share one `log`, one after the other."""

    def __init__(self, log: Log | None = None, partitions: int = 3) -> None:
        self.log: Log = {} if log is None else log
        self._partitions = partitions
        self._sent: list[tuple[tuple[str, int], int, bytes | None, bytes | None]] = []

    def ensure(self, topics: Sequence[str], *, compacted: bool = False) -> None:
        """Nothing to make."""

    def partitions(self, topic: str) -> int:
        return 1 if topic.startswith("capture.") else self._partitions

    def partition(self, topic: str, key: bytes | None) -> int:
        return zlib.crc32(key or b"") % self.partitions(topic)

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, timestamp_us: int, partition: int | None = None
    ) -> None:
        place = (topic, self.partition(topic, key) if partition is None else partition)
        self._sent.append((place, timestamp_us, key, value))
        if len(self._sent) > 10_000:
            self.flush()

    def flush(self) -> None:
        for place, timestamp_us, key, value in self._sent:
            kept = self.log.setdefault(place, [])
            kept.append(Record(len(kept), timestamp_us, key, value))
        self._sent.clear()

    def tails(self, topic: str, records: int = 2) -> Mapping[int, Sequence[Record]]:
        return {p: kept[-records:] for (name, p), kept in self.log.items() if name == topic and kept}

    def close(self) -> None:
        self._sent.clear()


def changes(log: Log, topic: str) -> Iterator[tuple[int, bytes | None, dict[str, Any]]]:
    """(partition, key, envelope) of every record but tombstones, partition by partition."""
    for (name, partition), kept in sorted(log.items()):
        for record in kept if name == topic else ():
            if record.value is not None:
                yield partition, record.key, json.loads(record.value)


def fold(log: Log, topic: str) -> dict[bytes, dict[str, Any]]:
    """The current rows of a table by key: what a reader has who takes what was not sent from the row before."""
    rows: dict[int, dict[bytes, dict[str, Any]]] = {}
    for partition, key, change in changes(log, topic):
        mine = rows.setdefault(partition, {})
        if change["op"] == "t":
            mine.clear()
        elif key is not None and change["op"] == "d":
            mine.pop(key, None)
        elif key is not None:
            old = mine.get(key, {})
            after = change["after"]
            mine[key] = {name: old.get(name) if value == UNAVAILABLE else value for name, value in after.items()}
    return {key: row for mine in rows.values() for key, row in mine.items()}


def bag(log: Log, topic: str) -> Counter[str]:
    """How often each row is in a table without primary key."""
    rows: Counter[str] = Counter()
    for partition, _, change in changes(log, topic):
        if change["op"] == "t" and partition == 0:  # every partition says it; keyless rows are in one
            rows.clear()
        for image, count in ((change["before"], -1), (change["after"], 1)):
            if image is not None:
                rows[json.dumps(image, sort_keys=True)] += count
    return Counter({row: count for row, count in rows.items() if count})


def places(log: Log, topic: str) -> list[tuple[int, tuple[int, int, int]]]:
    """(partition, place) of every streamed change, in the order in which they lie there."""
    found = []
    for partition, _, change in changes(log, topic):
        if change["op"] != "r" and change["source"]["snapshot"] == "false":
            here = change["source"]["headwater"]
            found.append((partition, (here["epoch"], here["commit"], here["order"])))
    return found
