"""Our connectors beside Debezium's asynchronous engine: one PostgreSQL, one MariaDB, one Kafka, one run.

For each repetition and database, one connector at a time, and the other one first in every second repetition:
  backlog   row changes (60 inserts, 30 updates, 10 deletes in a transaction) written while both were stopped
            s to the first record and to the last; CPU-s and rows per CPU-s of the whole run, start included, and
            ("warm") of the second half; peak memory
  steady    inserts at a rate, ten rows in a transaction: ms from sending a row to having its record, CPU-s a minute
  snapshot  a connector that has never run reads the table
  kill      `kill -9` after a third of the backlog: changes that are missing, records that came again, and those that
            are still there after what landing drops (for Debezium nothing is dropped: its records have no such order)
Both write JSON without schemas, acks=all, lz4, to topics of the same shape. CPU and memory are the process's own, from
/proc. Each measurement is a line of JSON; the last line has the ratios of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.capture.connectors import Connector, Debezium, Ours
from bench.capture.table import DELETED, INSERTED, UPDATED, Table, fresh_table
from bench.capture.topic import Arrived, Topic
from headwater.stack import kafka, mariadb, postgresql
from headwater.stack.packages import ensure
from headwater.stack.place import HOST
from headwater.stack.server import Server, remove

_MODULES: dict[str, Any] = {"postgresql": postgresql, "mariadb": mariadb, "kafka": kafka}
# Both connectors read what has been committed; how fast that is on disk is not measured here.
_SETTINGS = {
    "postgresql": {"fsync": "off", "max_wal_size": "8GB", "autovacuum": "off"},
    "mariadb": {"sync_binlog": "0", "innodb_flush_log_at_trx_commit": "0"},
    "kafka": {},
}
_PARTITIONS = 4
_WARM_UP_S = 3.0
_BLOCK = INSERTED + UPDATED + DELETED
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What one repetition on one database has: `records` of a backlog are its changes and a tombstone per delete."""

    table: Table
    changes: int
    rate: int
    seconds: float

    @property
    def records(self) -> int:
        return self.changes + self.changes // _BLOCK * DELETED


def prepare(bench: Bench, runs: Sequence[tuple[Connector, Topic]]) -> None:
    """Let each connector begin, and stop when it streams: what is committed from here on is its backlog."""
    for connector, _ in runs:
        connector.start()
    for _ in range(2):  # the first may have been read by a snapshot, the second is streamed
        before = [topic.count() for _, topic in runs]
        bench.table.mark(bench.table.next_mark())
        for (connector, topic), count in zip(runs, before, strict=True):
            topic.wait_for(count + 1, connector.alive)
    for connector, _ in runs:
        connector.stop()


def backlog(bench: Bench, connector: Connector, topic: Topic) -> Row:
    """Everything that was written while it was stopped; it runs on afterwards."""
    base = topic.count()
    began = connector.start()
    first = topic.wait_for(base + 1, connector.alive)
    topic.wait_for(base + bench.records // 2, connector.alive)
    half, at_half = connector.usage(), topic.count() - base
    last = topic.wait_for(base + bench.records, connector.alive)
    used, changes = connector.usage(), bench.changes
    warm = (bench.records - at_half) / bench.records * changes
    return {
        "changes": changes,
        "first_s": round(first - began, 3),
        "last_s": round(last - began, 3),
        "rows_per_s": round(changes / (last - began)),
        "cpu_s": round(used.cpu_s, 2),
        "rows_per_cpu_s": round(changes / used.cpu_s),
        "warm_rows_per_cpu_s": round(warm / max(used.cpu_s - half.cpu_s, 0.01)),
        "peak_rss_mb": round(used.peak_rss_mb),
    }


def steady(bench: Bench, connector: Connector, topic: Topic) -> Row:
    """With the connector running and caught up."""
    table, mark = bench.table, bench.table.next_mark()
    begin = topic.ends()
    topic_at, rows = sum(begin), table.write_steadily(bench.rate, _WARM_UP_S)
    topic.wait_for(topic_at + rows, connector.alive)
    begin, before, began = topic.ends(), connector.usage(), time.monotonic()

    def write() -> None:
        table.write_steadily(bench.rate, bench.seconds)
        table.mark(mark)

    writer = threading.Thread(target=write)
    writer.start()
    arrived = list(topic.until(mark, begin, connector.alive))
    writer.join()
    used_s, seconds = connector.usage().cpu_s - before.cpu_s, time.monotonic() - began
    waits = sorted(_waited_ms(record) for record in arrived if record.id != mark)
    return {
        "rows": len(waits),
        "p50_ms": round(waits[len(waits) // 2], 2),
        "p99_ms": round(waits[len(waits) * 99 // 100], 2),
        "max_ms": round(waits[-1], 2),
        "cpu_s_per_minute": round(used_s / seconds * 60, 2),
        "peak_rss_mb": round(connector.usage().peak_rss_mb),
    }


def _waited_ms(record: Arrived) -> float:
    return float(record.at_us - orjson.loads(record.value or b"")["after"]["sent_us"]) / 1000


def snapshot(bench: Bench, connector: Connector, topic: Topic) -> Row:
    """Of the table as the backlog left it."""
    rows = bench.table.rows()
    began = connector.start()
    first = topic.wait_for(1, connector.alive)
    last = topic.wait_for(rows, connector.alive)
    used = connector.usage()
    return {
        "rows": rows,
        "first_s": round(first - began, 3),
        "last_s": round(last - began, 3),
        "rows_per_s": round(rows / (last - began)),
        "cpu_s": round(used.cpu_s, 2),
        "rows_per_cpu_s": round(rows / used.cpu_s),
        "peak_rss_mb": round(used.peak_rss_mb),
    }


def killed(bench: Bench, connector: Connector, topic: Topic) -> Row:
    """Killed in the backlog, started again, and everything read that it wrote."""
    begin, mark = topic.ends(), bench.table.next_mark()
    connector.start()
    topic.wait_for(sum(begin) + bench.records // 3, connector.alive)
    connector.kill()
    at_kill = topic.count() - sum(begin)
    bench.table.mark(mark)  # something comes even where all else was sent and known to be
    again = connector.start()
    topic.wait_for(sum(begin) + at_kill + 1, connector.alive)
    recovered_s = time.monotonic() - again
    changes = [_change(each) for each in topic.until(mark, begin, connector.alive) if each.value is not None]
    ours = [each for each in changes if 0 < each[1] <= bench.changes // _BLOCK * INSERTED]
    kept = list(_landed(ours)) if connector.who == "ours" else ours
    distinct = len({each[1:] for each in kept})
    return {
        "changes": bench.changes,
        "records_at_kill": at_kill,
        "recovered_s": round(recovered_s, 3),
        "missing": bench.changes - distinct,
        "duplicates": len(ours) - len({each[1:] for each in ours}),
        "visible_duplicates": len(kept) - distinct,
    }


Change = tuple[int, int, str, tuple[Any, ...]]


def _change(record: Arrived) -> Change:
    """(partition, id, op, place): which change it is, by what its source says of it."""
    value = orjson.loads(record.value or b"")
    source = value["source"]
    if "headwater" in source:
        place = tuple(source["headwater"][name] for name in ("epoch", "commit", "order"))
    else:
        place = tuple(source.get(name) for name in ("lsn", "file", "pos", "row"))
    return record.partition, record.id, value["op"], place


def _landed(changes: Sequence[Change]) -> Iterator[Change]:
    """What landing keeps: in each partition only what is beyond the last place."""
    last: dict[int, tuple[Any, ...]] = {}
    for each in changes:
        if each[0] not in last or each[3] > last[each[0]]:
            last[each[0]] = each[3]
            yield each


def repetition(
    number: int, kind: str, servers: dict[str, Server], home: Path, options: argparse.Namespace
) -> Iterator[Row]:
    """Every measurement of one database, in the order in which it is made."""
    with ExitStack() as stack:
        bench = Bench(
            stack.enter_context(fresh_table(kind, servers[kind])), options.changes, options.rate, options.seconds
        )

        def pair(purpose: str) -> list[tuple[Connector, Topic]]:
            name = f"{purpose}_{kind}_{number}"
            made: list[Connector] = [
                Ours(f"ours_{name}", kind, servers[kind], servers["kafka"], home, _PARTITIONS),
                Debezium(f"debezium_{name}", kind, servers[kind], servers["kafka"], home, options.poll_interval_ms),
            ]
            bootstrap = f"{HOST}:{servers['kafka'].port}"
            runs = [(one, stack.enter_context(closing(Topic(bootstrap, one.topic, _PARTITIONS)))) for one in made]
            for connector in made:
                stack.callback(bench.table.forget, connector.slot, connector.publication)
                stack.callback(connector.kill)
            return runs if number % 2 else runs[::-1]

        def rows(what: Callable[[Bench, Connector, Topic], Row], connector: Connector, topic: Topic) -> Row:
            head = {"repetition": number, "database": kind, "who": connector.who, "what": what.__name__}
            return head | what(bench, connector, topic)

        running, to_kill = pair("run"), pair("kill")
        prepare(bench, [*running, *to_kill])
        bench.table.backlog(bench.changes)
        for connector, topic in running:
            yield rows(backlog, connector, topic)
            connector.stop()
        for connector, topic in running:
            connector.start()
            mark, begin = bench.table.next_mark(), topic.ends()
            bench.table.mark(mark)
            for _ in topic.until(mark, begin, connector.alive):
                pass  # until it has caught up
            yield rows(steady, connector, topic)
            connector.stop()
        for connector, topic in pair("snapshot"):
            yield rows(snapshot, connector, topic)
            connector.stop()
        for connector, topic in to_kill:
            yield rows(killed, connector, topic)
            connector.stop()


def ratios(rows: Sequence[Row], kind: str) -> str:
    """How often better we are in the median: more rows for a CPU-second, less time, memory and CPU."""

    def median(who: str, what: str, figure: str) -> float:
        found = [row[figure] for row in rows if (row["database"], row["who"], row["what"]) == (kind, who, what)]
        return float(statistics.median(found))

    def more(what: str, figure: str) -> str:
        return f"{median('ours', what, figure) / median('debezium', what, figure):.2f}x"

    def less(what: str, figure: str) -> str:
        return f"{median('debezium', what, figure) / max(median('ours', what, figure), 0.01):.2f}x"

    lost = {
        figure: sum(
            row[figure] for row in rows if (row["database"], row["who"], row["what"]) == (kind, "ours", "killed")
        )
        for figure in ("missing", "visible_duplicates")
    }
    return (
        f"{kind}: rows per CPU-s {more('backlog', 'rows_per_cpu_s')} (warm {more('backlog', 'warm_rows_per_cpu_s')}, "
        f"snapshot {more('snapshot', 'rows_per_cpu_s')}), rows/s {more('backlog', 'rows_per_s')}, memory 1/"
        f"{less('backlog', 'peak_rss_mb')}, first record 1/{less('backlog', 'first_s')}, p99 "
        f"{median('ours', 'steady', 'p99_ms'):g} ms to {median('debezium', 'steady', 'p99_ms'):g} ms at 1/"
        f"{less('steady', 'cpu_s_per_minute')} CPU, killed: {lost['missing']} missing, "
        f"{lost['visible_duplicates']} visible duplicates"
    )


@contextmanager
def started(names: Sequence[str], directory: Path) -> Iterator[dict[str, Server]]:
    """Servers that are removed at the end."""
    ensure(*names)
    with ExitStack() as stack:
        servers = {}
        for name in names:
            servers[name] = _MODULES[name].start(directory / name, settings=_SETTINGS[name])
            stack.callback(remove, servers[name])
        yield servers


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--changes", type=int, default=1_000_000, help=f"row changes of the backlog, by {_BLOCK}")
    parser.add_argument("--rate", type=int, default=2_000, help="rows per second of the steady load")
    parser.add_argument("--seconds", type=float, default=30, help="of the steady load")
    parser.add_argument(
        "--poll-interval-ms", type=int, default=10, help="Debezium's poll.interval.ms; its default is 500"
    )
    parser.add_argument("--databases", nargs="+", default=["postgresql", "mariadb"], choices=["postgresql", "mariadb"])
    found = parser.parse_args()
    if found.changes < _BLOCK or found.changes % _BLOCK:
        parser.error(f"--changes: found {found.changes}, allowed is a multiple of {_BLOCK}")
    return found


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    load = os.getloadavg()[0]
    print(json.dumps({"cpus": os.cpu_count(), "load_before": round(load, 2), **vars(options)}), flush=True)
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as scratch:
        home = Path(scratch)
        with started(["kafka", *options.databases], home / "servers") as servers:
            for number in range(1, options.repetitions + 1):
                for kind in options.databases:
                    for row in repetition(number, kind, servers, home, options):
                        found.append(row)
                        print(json.dumps(row), flush=True)
    print("; ".join(ratios(found, kind) for kind in options.databases))


if __name__ == "__main__":
    main()
