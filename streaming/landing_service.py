"""Lands every declared table until told to stop; any number of processes share the topics' partitions.

Who reads which partition is the group's matter and may be wrong for a while: that each change lands once is seen to
where it is written (see landing_batches). A table that cannot be landed does not keep the others from it.

Errors: what passes (the log is away) is tried again with growing pauses, for ever. What does not ends the landing of
that table only, and is told in the result.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from catalog.keys import Key
from catalog.spec import Source
from lake.tables import Lake, LakeError
from streaming.landing import GROUP, LandingReport, contract_of, land
from streaming.landing_batches import LandingError, PartitionLanding, Step, make_tables, refusal
from streaming.landing_schemas import SchemaChange, Schemas, land_schemas
from streaming.log import ChangeLog, LogError, Membership, TopicPartition
from streaming.log_writer import RetryableLogError, UnknownTopicError

__all__ = ["Lander", "Options", "Say", "land_once"]

_LONGEST_PAUSE_S = 30.0
_COMPACT_EVERY = 32


class Say(Protocol):
    """Told what happens, as a line for whoever collects logs."""

    def __call__(self, event: str, **more: Any) -> None: ...


@dataclass(frozen=True)
class Options:
    """`batch_rows` changes at most in a Delta transaction; a partition that is behind by less waits `every_s`."""

    batch_rows: int = 250_000
    every_s: float = 1.0


def land_once(
    sources: Sequence[Source], log: ChangeLog, lake: Lake, options: Options, say: Say
) -> Mapping[Key, LandingReport | str]:
    """Land what there is now: the report of each table, or why it was refused. Raises RetryableLogError."""
    found: dict[Key, LandingReport | str] = {}
    for source in sources:
        table = contract_of(source).table
        try:
            report = land(source, log, lake, options.batch_rows)
        except RetryableLogError:
            raise
        except (LogError, LandingError, LakeError) as error:
            found[table] = str(error)
            _say_refused(say, table, error)
            continue
        found[table] = report
        for change in report.schema_changes:
            _say_change(say, table, change)
        say(
            "landed",
            table=table.dotted,
            rows=report.landed,
            quarantined=report.quarantined,
            repeated=report.repeated,
            version=report.version,
        )
    return found


class Lander:
    """A process's share of the landing. `run` belongs to one thread."""

    def __init__(
        self,
        sources: Callable[[], Sequence[Source]],
        log: ChangeLog,
        lake: Lake,
        options: Options,
        say: Say,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sources` gives what is declared; the same object as long as that is the same."""
        self.refused: dict[Key, str] = {}
        self._sources, self._log, self._lake, self._options, self._say = sources, log, lake, options, say
        self._clock = clock
        self._by_topic: dict[str, Source] = {}
        self._landings: dict[TopicPartition, PartitionLanding] = {}
        self._landed_at: dict[TopicPartition, float] = {}
        self._told: dict[TopicPartition, int] = {}
        self._is_untold = False
        self._left: set[str] = set()
        self._changes_told: set[tuple[Key, int]] = set()
        self._commits: Counter[Key] = Counter()

    def run(self, stop: threading.Event) -> Mapping[Key, str]:
        """Land until `stop` is set. Returns why tables were refused, by table."""
        pause_s = 0.0
        while not stop.is_set():
            declared = self._sources()
            try:
                self._declare(declared)
                for _ in self._joined(stop, declared):
                    pause_s = 0.0
            except RetryableLogError as error:
                pause_s = min(max(2 * pause_s, 0.5), _LONGEST_PAUSE_S)
                self._say("the change log is away", error=str(error), pause_s=pause_s)
                stop.wait(pause_s * random.uniform(0.5, 1.0))
        return self.refused

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        """A Listener's: what is in the lake is looked at anew."""
        for partition in partitions:
            self._landings.pop(partition, None)
            self._told.pop(partition, None)
        self._say("partitions assigned", partitions=sorted(map(str, partitions)))

    def revoked(self, partitions: Collection[TopicPartition]) -> None:
        """A Listener's: a batch in the making is written or refused, whatever the group thinks."""
        for partition in partitions:
            self._landings.pop(partition, None)
            self._left.add(partition.topic)
        self._say("partitions revoked", partitions=sorted(map(str, partitions)))

    def lost(self, partitions: Collection[TopicPartition]) -> None:
        """A Listener's."""
        self.revoked(partitions)

    def _declare(self, sources: Sequence[Source]) -> None:
        self._by_topic, self.refused = {contract_of(source).topic: source for source in sources}, {}
        self._landings.clear()
        for topic, source in self._by_topic.items():
            with self._refusing(source):
                make_tables(contract_of(source), self._log.partitions(topic), self._lake)

    def _joined(self, stop: threading.Event, declared: Sequence[Source]) -> Iterator[None]:
        """Be a member of the group until told to stop, or until something else is declared; yields after each round."""
        membership = self._log.join(GROUP, list(self._by_topic), self)
        try:
            while not stop.is_set() and self._sources() is declared:
                behind = self._round(membership, stop)
                membership.poll(0.0 if behind else self._options.every_s / 4)
                yield
        finally:
            membership.close()

    def _round(self, membership: Membership, stop: threading.Event) -> bool:
        """Land a batch of each partition that is due. Returns whether any is still behind."""
        self._look_at_what_left()
        behind = False
        for partition, end in self._ends(membership.partitions).items():
            source = self._by_topic[partition.topic]
            if stop.is_set() or contract_of(source).table in self.refused:
                continue
            with self._refusing(source):
                behind |= self._land(partition, source, end)
        self._tell_group(membership)
        return behind

    def _look_at_what_left(self) -> None:
        """The group takes away the partitions of a topic that is gone, maybe before anybody asks for their ends."""
        while self._left:
            source = self._by_topic.get(topic := next(iter(self._left)))
            if source is not None and contract_of(source).table not in self.refused:
                with self._refusing(source):
                    if lost := refusal(contract_of(source), self._log, self._lake):
                        raise lost
            self._left.discard(topic)

    def _ends(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Of the tables that are not refused. A topic that is gone is its own table's matter."""
        by_topic: dict[str, list[TopicPartition]] = {}
        for partition in partitions:
            if contract_of(self._by_topic[partition.topic]).table not in self.refused:
                by_topic.setdefault(partition.topic, []).append(partition)
        try:
            return self._log.ends([each for those in by_topic.values() for each in those])
        except UnknownTopicError:
            ends: dict[TopicPartition, int] = {}
            for topic, those in by_topic.items():
                with self._refusing(source := self._by_topic[topic]):
                    if lost := refusal(contract_of(source), self._log, self._lake):
                        raise lost from None
                    ends |= self._log.ends(those)
            return ends

    def _land(self, partition: TopicPartition, source: Source, end: int) -> bool:
        landing = self._landings.get(partition)
        if landing is None:
            landing = self._landings[partition] = PartitionLanding(
                contract_of(source), partition, self._log, self._lake, Schemas(source, self._log)
            )
        waiting, since = end - landing.offset, self._clock() - self._landed_at.get(partition, -1e9)
        if waiting == 0 or (waiting < self._options.batch_rows and since < self._options.every_s):
            return False
        began = self._clock()
        step = landing.step(self._options.batch_rows)
        if step is None:
            return False
        self._landed_at[partition] = began
        self._tell(partition, source, step)
        self._settle(source, step)
        return end - step.until >= self._options.batch_rows

    def _settle(self, source: Source, step: Step) -> None:
        """What follows a batch now and then."""
        table = contract_of(source).table
        self._commits[table] += 1
        if self._commits[table] % _COMPACT_EVERY == 0 and (gone := self._lake.compact(table)):
            self._say("compacted", table=table.dotted, files_fewer=gone)
        if step.changes or self._commits[table] == 1:
            land_schemas(source.system, self._log, self._lake)

    def _tell_group(self, membership: Membership) -> None:
        """Commit what has landed, by whomever, until the group knows it: the lag that others see depends on it alone.

        While the group changes Kafka takes no commit, and nothing may come afterwards that would bring another.
        """
        offsets = {
            partition: landing.offset
            for partition, landing in self._landings.items()
            if landing.offset != self._told.get(partition)
            and partition in membership.partitions
            and contract_of(self._by_topic[partition.topic]).table not in self.refused
        }
        if not offsets:
            return
        try:
            membership.commit(offsets)
        except LogError as error:  # a topic that is gone is noticed where its end is asked for
            if not self._is_untold:
                self._say("offsets not committed", partitions=sorted(map(str, offsets)), error=str(error))
            self._is_untold = True
            return
        self._told |= offsets
        self._is_untold = False

    def _tell(self, partition: TopicPartition, source: Source, step: Step) -> None:
        table, checked = contract_of(source).table, step.checked
        for change in step.changes:
            if (table, change.version) not in self._changes_told:  # each partition comes to it
                self._changes_told.add((table, change.version))
                _say_change(self._say, table, change)
        self._say(
            "landed",
            table=table.dotted,
            partition=partition.partition,
            offset=step.until,
            rows=checked.landed.num_rows,
            quarantined=checked.quarantined.num_rows,
            repeated=checked.repeated,
        )

    def _refusing(self, source: Source) -> _Refusing:
        return _Refusing(self, contract_of(source).table, self._say)


@dataclass(frozen=True)
class _Refusing:
    """Whatever is permanent ends the landing of one table, and is told."""

    lander: Lander
    table: Key
    say: Say

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> bool:
        refused = isinstance(error, LogError | LandingError | LakeError) and not isinstance(error, RetryableLogError)
        if refused:
            self.lander.refused[self.table] = str(error)
            _say_refused(self.say, self.table, error)
        return refused


def _say_refused(say: Say, table: Key, error: BaseException | None) -> None:
    remedy = {"remedy": error.remedy, "runbook": error.runbook} if isinstance(error, LandingError) else {}
    say("refused", table=table.dotted, error=str(error), **remedy)


def _say_change(say: Say, table: Key, change: SchemaChange) -> None:
    say(
        "schema changed",
        table=table.dotted,
        version=change.version,
        position=change.position,
        changed=list(change.changed),
        added=list(change.added),
        refused=change.refused,
    )
