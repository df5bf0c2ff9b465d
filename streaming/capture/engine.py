"""Runs a connector: recover, snapshot while streaming, make durable, confirm; again from the start after what passes.

Records are sent as they come; a few times a second everything sent is flushed, and only then a checkpoint is written
and the database told that it may forget. So whatever is killed whenever, the checkpoint never says more than the log
holds, and the database never keeps less than the checkpoint needs.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from streaming.capture.checkpoint import Checkpoint, TableProgress, state_topic
from streaming.capture.errors import AnotherServer, Halt, Retryable
from streaming.capture.pace import Pace
from streaming.capture.sink import Sink
from streaming.capture.snapshot import Snapshotter
from streaming.capture.source import Retained, Source
from streaming.capture.tables import SchemaHistory, TableSchema, schemas_topic
from streaming.log_writer import LogWriter, RecordTooLargeError, RetryableLogError, UnknownTopicError

__all__ = ["Capture", "Options", "Status"]

# Pauses after something retryable: doubled from the first to the longest, each cut at random to half or more.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 15.0


@dataclass(frozen=True)
class Options:
    """How a connector runs. Times in seconds; `retained_alarm`: the share of the server's bound that raises it.

    Every `look_s` it looks at what the server keeps for it, and whether the tables are still what they were.
    """

    flush_s: float = 0.1
    checkpoint_s: float = 1.0
    heartbeat_s: float = 10.0
    poll_s: float = 0.05
    look_s: float = 5.0
    chunk_rows: int = 5_000
    retained_alarm: float = 0.8
    from_scratch: bool = False
    accept_identity: bool = False
    resnapshot: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """What a connector is doing, for whoever asks: `state` streaming, snapshotting, waiting (with `problem`).

    `refused`: declared tables that are not captured, each with the fields of its Halt. `level_us`, `behind`: see Pace.
    `row_bytes`: of the server's log, whosever changes are in it, for each row that was streamed; None before the first.
    """

    system: str
    state: str
    position: int
    resume: Mapping[str, Any]
    epoch: int
    rows: int
    last_event_us: int
    level_us: int
    behind: bool
    row_bytes: float | None
    tables: Mapping[str, TableProgress]
    refused: Mapping[str, Mapping[str, str]]
    retained: Retained | None
    problem: str | None
    at_us: int


class Capture:
    """One source into one log. `open_writer` makes a new writer after the old one failed."""

    def __init__(
        self,
        source: Source,
        open_writer: Callable[[], LogWriter],
        options: Options,
        *,
        topic: Callable[[str], str],
        database: str,
        say: Callable[[str], None],
        publish: Callable[[Status], None] = lambda _: None,
    ) -> None:
        """`topic` of a table's name; `say` gets what a person should read, `publish` the status about once a second."""
        self._source, self._open_writer, self._options = source, open_writer, options
        self._topic, self._database, self._say, self._publish = topic, database, say, publish
        self.from_scratch = options.from_scratch
        self.connected = False
        # By topic and key, the size of the smallest record that the broker has refused after it was queued.
        self.refused: dict[tuple[str, bytes | None], int] = {}
        self._requests: list[str] = list(options.resnapshot)
        self._requested = threading.Lock()

    def resnapshot(self, table: str) -> None:
        """Ask for a table to be read again; from any thread. It is `asked` until the checkpoint says so."""
        with self._requested:
            self._requests.append(table)

    @property
    def asked(self) -> Sequence[str]:
        """The tables that are still to be read again, and of which nothing but this process knows."""
        with self._requested:
            return tuple(self._requests)

    def run(self, stop: threading.Event, *, once: bool = False) -> None:
        """Capture until `stop` is set; with `once` until what there was at the beginning is in the log.

        Raises Halt when a person must decide, PermanentLogError; waits and retries for what passes.
        """
        pause = _FIRST_PAUSE_S
        while not stop.is_set():
            attempt = _Attempt(self._source, self._options)
            try:
                attempt.run(self, stop, once=once)
                return
            except RecordTooLargeError as error:
                if not attempt.of_a_table(error) or error.size >= self.refused.get((error.topic, error.key), math.inf):
                    raise
                self.refused[error.topic, error.key] = error.size  # next time it becomes a dead letter
            except UnknownTopicError as error:
                raise Halt(
                    f"{error}: the topic was deleted, or is of another cluster",
                    "Started again the connector makes it anew; what it had is in the lake as far as it was landed. "
                    "How its table goes on is on the page",
                    "landing_lost_log",
                ) from None
            except (Retryable, RetryableLogError) as error:
                pause = _FIRST_PAUSE_S if attempt.progressed else min(2 * pause, _LONGEST_PAUSE_S)
                wait = pause * random.uniform(0.5, 1)
                self._say(f"{error}; trying again in {wait:.1f} s")
                self._publish(attempt.status(f"{error}"))
                stop.wait(wait)


class _Attempt:
    """One connection's worth of capturing."""

    def __init__(self, source: Source, options: Options) -> None:
        self.progressed = False
        self._source, self._options = source, options
        self._sink: Sink | None = None
        self._snapshotter: Snapshotter | None = None
        self._saved: Checkpoint | None = None
        self._retained: Retained | None = None
        self._pace = Pace()

    def run(self, capture: Capture, stop: threading.Event, *, once: bool) -> None:
        writer = capture._open_writer()
        try:
            sink, snapshotter = self._start(capture, writer)
            capture.connected = True
            try:
                self._loop(capture, sink, snapshotter, stop, once=once)
            finally:
                self._source.interrupt()
                snapshotter.close()
        finally:
            self._source.close()
            writer.close()

    def of_a_table(self, error: RecordTooLargeError) -> bool:
        """Whether the record was a captured table's, and no checkpoint or dead letter."""
        return self._sink is not None and any(table.topic == error.topic for table in self._sink.tables.values())

    def _start(self, capture: Capture, writer: LogWriter) -> tuple[Sink, Snapshotter]:
        system, options = self._source.system, self._options
        writer.ensure([state_topic(system), schemas_topic(system)], compacted=True)
        checkpoint = None if capture.from_scratch else Checkpoint.load(system, writer)
        identity, anew = self._source.identify(), capture.from_scratch
        epoch = checkpoint.epoch if checkpoint else 1
        try:
            schemas = self._prepared(checkpoint, identity)
        except AnotherServer:
            if not options.accept_identity:
                raise
            capture._say("another server was accepted: every table is read again")
            checkpoint, anew = None, True
            schemas = self._source.prepare(None)
        history = SchemaHistory.load(system, _bodies(writer, schemas_topic(system)))
        sink = Sink(
            system,
            self._source.connector,
            capture._database,
            writer,
            history,
            epoch=epoch,
            topic=capture._topic,
            refused=capture.refused,
            say=capture._say,
        )
        self._sink = sink
        if checkpoint:
            sink.position = checkpoint.commit
        before: dict[str, TableSchema | None] = {}
        if checkpoint:  # of a table that is gone by now something may be streamed again
            place = checkpoint.epoch, checkpoint.commit
            before = {name: history.begin(name, place) for name in checkpoint.tables}
        for schema in schemas:
            sink.schema(before.get(schema.name) or schema)
        if anew:  # places of another history, or of this one after it was reset, are not to be compared
            sink.epoch = max(_last_epoch(system, writer), sink.logged_epoch) + 1
        known = checkpoint.tables if checkpoint else {}
        # What the log has of a table without a checkpoint for it may be of rows that were deleted since.
        fresh = {schema.name: TableProgress("void" if sink.holds(schema.name) else "pending") for schema in schemas}
        progress = {name: known.get(name, begun) for name, begun in fresh.items()}
        self._source.open(sink, checkpoint)
        self._saved = Checkpoint(identity, sink.resume, sink.position, sink.epoch, dict(progress))
        self._snapshotter = Snapshotter(self._source, sink, progress, chunk_rows=options.chunk_rows, say=capture._say)
        return sink, self._snapshotter

    def _prepared(self, checkpoint: Checkpoint | None, identity: Mapping[str, str]) -> Sequence[TableSchema]:
        if checkpoint and dict(checkpoint.identity) != dict(identity):
            raise AnotherServer(_differences(checkpoint.identity, identity))
        return self._source.prepare(checkpoint)

    def _loop(
        self, capture: Capture, sink: Sink, snapshotter: Snapshotter, stop: threading.Event, *, once: bool
    ) -> None:
        options = self._options
        end: int | None = None
        flushed = saved = published = measured = time.monotonic()
        self._save(sink, snapshotter)
        capture.from_scratch = False
        self._take_requests(capture, sink, snapshotter)  # before the first look whether everything is done
        while not stop.is_set():
            busy = self._source.poll(0.002 if snapshotter.busy else options.poll_s)
            self.progressed = self.progressed or busy
            snapshotter.step()
            now = time.monotonic()
            if now - flushed >= options.flush_s:
                sink.writer.flush()
                flushed = now
            if now - saved >= (options.checkpoint_s if self._moved(sink, snapshotter) else options.heartbeat_s):
                self._save(sink, snapshotter)
                saved = now
            if now - measured >= options.look_s:
                self._measure(capture, sink)
                measured = now
            if now - published >= 1:
                self._take_requests(capture, sink, snapshotter)
                self._pace.reach(sink.position)
                capture._publish(self.status(None))
                published = now
            if once and not snapshotter.busy:
                end = self._source.retained().end if end is None else end
                if sink.position >= end:
                    break
        self._save(sink, snapshotter)
        capture._publish(self.status("stopped"))

    def _moved(self, sink: Sink, snapshotter: Snapshotter) -> bool:
        assert self._saved is not None
        return self._saved.commit != sink.position or dict(self._saved.tables) != snapshotter.progress

    def _save(self, sink: Sink, snapshotter: Snapshotter) -> None:
        """Make durable what was sent, say so in the log, then let the server forget."""
        assert self._saved is not None
        (position, resume), tables = snapshotter.safe, dict(snapshotter.progress)
        sink.writer.flush()
        saved = Checkpoint(self._saved.identity, dict(resume), position, sink.epoch, tables)
        if saved != self._saved or not self.progressed:
            saved.save(self._source.system, sink.writer, time.time_ns() // 1000)
        self._saved = saved
        self._source.confirm(resume)

    def _measure(self, capture: Capture, sink: Sink) -> None:
        self._retained = found = self._source.retained()
        self._pace.look(found, sink.position, time.time_ns() // 1000)
        if found.limit_bytes and found.retained_bytes > self._options.retained_alarm * found.limit_bytes:
            capture._say(
                f"ALARM: the server keeps {found.retained_bytes} bytes for this connector, and at {found.limit_bytes} "
                "it stops keeping them (docs/runbooks/retained_wal.md)"
            )

    def _take_requests(self, capture: Capture, sink: Sink, snapshotter: Snapshotter) -> None:
        requests = capture.asked
        for name in requests:
            found = [known for known in snapshotter.progress if name in (known, known.split(".")[-1])]
            if not found:
                capture._say(f"no table {name} to snapshot again; captured are {', '.join(snapshotter.progress)}")
            for known in found:
                snapshotter.again(known)
        if requests:
            self._save(sink, snapshotter)
            with capture._requested:
                del capture._requests[: len(requests)]

    def status(self, problem: str | None) -> Status:
        sink, snapshotter = self._sink, self._snapshotter
        streamed = sink.rows - sink.read_rows if sink else 0
        state = "waiting" if problem else "snapshotting" if snapshotter and snapshotter.busy else "streaming"
        return Status(
            system=self._source.system,
            state=state,
            position=sink.position if sink else 0,
            resume=dict(sink.resume) if sink else {},
            epoch=sink.epoch if sink else 0,
            rows=sink.rows if sink else 0,
            last_event_us=sink.last_event_us if sink else 0,
            level_us=self._pace.level_us,
            behind=self._pace.behind,
            row_bytes=self._source.read_bytes / streamed if streamed else None,
            tables=dict(snapshotter.progress) if snapshotter else {},
            refused={
                name: {"found": error.found, "remedy": error.remedy, "runbook": error.runbook}
                for name, error in self._source.refused.items()
            },
            retained=self._retained,
            problem=problem,
            at_us=time.time_ns() // 1000,
        )


def _last_epoch(system: str, writer: LogWriter) -> int:
    """The checkpoint's; 0 when there is none that can be read."""
    try:
        checkpoint = Checkpoint.load(system, writer)
    except Halt:
        return 0
    return checkpoint.epoch if checkpoint else 0


def _differences(known: Mapping[str, str], found: Mapping[str, str]) -> str:
    if known.keys() != found.keys():
        return "its kind of database is another one"
    return "; ".join(f"{name} was {known.get(name)}, is {now}" for name, now in found.items() if known.get(name) != now)


def _bodies(writer: LogWriter, topic: str) -> list[Any]:
    """Every record of a small topic with one partition."""
    tail = writer.tails(topic, 1_000_000).get(0, ())
    return [orjson.loads(record.value) for record in tail if record.value is not None]
