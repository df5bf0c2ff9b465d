"""Kafka's broker and a group's members die, or fall silent, while records go through: nothing acknowledged is lost."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headwater.stack.server import Server, find_server, kill, restart
from streaming.kafka_config import KafkaAddress, TopicShape, parse_log_url
from streaming.kafka_log import KafkaLog
from streaming.kafka_writer import KafkaWriter
from streaming.log import Membership, TopicPartition, next_offset
from streaming.log_writer import LogError, RetryableLogError

pytest_plugins = ["kafka_broker"]

PROJECT = Path(__file__).resolve().parents[2]
Name = Callable[[str], str]
SHAPE = TopicShape(partitions=3)


def numbers(log: KafkaLog, topic: str) -> dict[TopicPartition, list[int]]:
    """The numbers that each partition holds, in its order."""
    found: dict[TopicPartition, list[int]] = {}
    for source in log.partitions(topic):
        offset, found[source] = 0, []
        while (batch := log.read(source, offset, 10_000)).num_rows:
            found[source] += [int(value) for value in batch["value"].to_pylist()]
            offset = next_offset(batch, offset)
    return found


@contextmanager
def away(broker: Server) -> Iterator[None]:
    """`kill -9` of the broker; it is started again at the end, whatever happens."""
    running = find_server(broker.kind, broker.directory)  # a test before may have started it again
    assert running is not None
    kill(running)
    try:
        yield
    finally:
        restart(broker)


@dataclass
class Sending:
    """Numbers from 0 on, flushed now and then; after a failure from the last flush on, as a connector does."""

    url: str
    topic: str
    patience_s: float
    durable: int = 0
    failures: list[LogError] = field(default_factory=list)
    wanted: int = 1 << 60
    time_us: Callable[[], int] = lambda: time.time_ns() // 1_000

    def run(self) -> None:
        while self.durable < self.wanted:
            try:
                self._go_on()
            except RetryableLogError as error:
                self.failures.append(error)

    def _go_on(self) -> None:
        with closing(KafkaWriter(parse_log_url(self.url), SHAPE, patience_s=self.patience_s)) as writer:
            writer.ensure([self.topic])
            while self.durable < self.wanted:
                for number in range(self.durable, self.durable + 500):
                    writer.send(self.topic, b"%d" % (number % 97), b"%d" % number, self.time_us())
                writer.flush()
                self.durable += 500


@dataclass
class Heard:
    assigned_: set[TopicPartition] = field(default_factory=set)
    gone: list[str] = field(default_factory=list)

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        self.assigned_ |= set(partitions)

    def revoked(self, partitions: Collection[TopicPartition]) -> None:
        self.gone.append("revoked")

    def lost(self, partitions: Collection[TopicPartition]) -> None:
        self.gone.append("lost")


MEMBER = """
    import sys
    from streaming.kafka_config import parse_log_url
    from streaming.kafka_log import KafkaLog
    from streaming.log_writer import RetryableLogError

    class Told:
        def assigned(self, partitions): say("assigned", partitions)
        def revoked(self, partitions): say("revoked", partitions)
        def lost(self, partitions): say("lost", partitions)

    def say(word, partitions): print(word, *sorted(p.partition for p in partitions), flush=True)

    url, group, topic = sys.argv[1:]
    log = KafkaLog(parse_log_url(url), silence_s=2.5)
    member = log.join(group, [topic], Told())
    for _ in sys.stdin:
        try:
            member.poll(0.2)
            member.commit({p: log.end(p) for p in member.partitions})
            say("polled", member.partitions)
        except RetryableLogError as error:
            print("refused", error, flush=True)
"""


@contextmanager
def member_process(url: str, group: str, topic: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", textwrap.dedent(MEMBER), url, group, topic]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def polled(process: subprocess.Popen[str]) -> list[str]:
    """One poll of the process, and all that it said."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    said = []
    while not said or said[-1].split()[0] not in ("polled", "refused"):
        said.append(process.stdout.readline().strip())
    return said


@pytest.mark.parametrize("dies", [True, False], ids=["killed", "stalled"])
def test_the_partitions_of_a_member_that_is_gone_go_to_the_others(broker: Server, fresh: Name, dies: bool) -> None:
    topic, group = fresh("members"), fresh("group")
    Sending(broker.url, topic, 30, wanted=1_000).run()
    heard = Heard()
    with (
        KafkaLog(parse_log_url(broker.url), silence_s=2.5) as log,
        closing(log.join(group, [topic], heard)) as heir,
        member_process(broker.url, group, topic) as process,
    ):
        _until(lambda: polled(process)[-1] == "polled 0 1 2")
        with polling(heir):
            _until(lambda: polled(process) and len(heir.partitions) == 1)
            held = heir.partitions
            process.send_signal(signal.SIGKILL if dies else signal.SIGSTOP)
            _until(lambda: len(heir.partitions) == 3)
            assert held < heir.partitions
            assert heard.gone == []  # what was ours stayed ours
            if not dies:
                Sending(broker.url, topic, 30, wanted=1_000).run()  # so that it has something to commit
                process.send_signal(signal.SIGCONT)
                said = polled(process)
                while not any(line.startswith("lost") for line in said):
                    assert said[-1].startswith("refused")  # it may not commit before it has heard
                    said = polled(process)
        if dies:  # else the group changes again, and takes no offsets meanwhile
            heir.commit({source: log.end(source) for source in heir.partitions})
            assert {lag.records for lag in log.lag(group, topic).values()} == {0}


@contextmanager
def polling(member: Membership) -> Iterator[None]:
    """It stays in the group meanwhile: a member that joins waits for all others to say that they know."""
    done = threading.Event()

    def poll() -> None:
        while not done.is_set():
            member.poll(0.1)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_broker_that_is_killed_loses_nothing(broker: Server, fresh: Name) -> None:
    """A patient writer waits for it and repeats nothing; one that gave up repeats from its last flush on."""
    patient, impatient = Sending(broker.url, fresh("patient"), 60), Sending(broker.url, fresh("impatient"), 0.3)
    senders = [threading.Thread(target=each.run) for each in (patient, impatient)]
    for sender in senders:
        sender.start()
    _until(lambda: min(patient.durable, impatient.durable) >= 2_000)
    with away(broker):
        _until(lambda: impatient.failures)
    for sending, sender in zip((patient, impatient), senders, strict=True):
        sending.wanted = sending.durable + 5_000
        sender.join(60)
        assert not sender.is_alive()
    assert patient.failures == []
    with KafkaLog(parse_log_url(broker.url)) as log:
        assert sum(map(len, numbers(log, patient.topic).values())) == patient.durable
        for sending in (patient, impatient):
            found = numbers(log, sending.topic).values()
            assert sorted({n for partition in found for n in partition}) == list(range(sending.durable))
            for partition in found:
                # Repeated from some flush on, never with a gap: the first time that a number comes, it comes in order.
                firsts = list(dict.fromkeys(partition))
                assert firsts == sorted(firsts)


def test_who_asks_while_the_broker_is_away_is_told_so_and_goes_on_when_it_is_back(broker: Server, fresh: Name) -> None:
    topic, address = fresh("away"), parse_log_url(broker.url)
    Sending(broker.url, fresh("first"), 30, wanted=500).run()  # a broker that has just started takes its time
    with (
        closing(KafkaWriter(address, SHAPE, patience_s=1.5)) as writer,
        closing(KafkaWriter(address, SHAPE, patience_s=1.5)) as full,
        KafkaLog(address, patience_s=60) as log,
    ):
        writer.ensure([topic])
        writer.send(topic, b"k", b"0", 1_000_000)
        writer.flush()
        full.ensure([topic])
        (source,) = [each for each, found in numbers(log, topic).items() if found]
        with away(broker):
            writer.send(topic, b"k", b"1", 1_000_000)
            with pytest.raises(RetryableLogError, match=r"1 records that were sent are not acknowledged for 1\.5 s"):
                writer.flush()
            with pytest.raises(RetryableLogError):
                writer.tails(topic)
            _memory_is_bounded(full, topic)
            _nothing_is_left_behind(address)
        with pytest.raises(RetryableLogError, match="not acknowledged"):
            writer.send(topic, b"k", b"2", 1_000_000)
        with pytest.raises(RetryableLogError, match="not acknowledged"):
            writer.flush()
        assert log.read(source, 0, 10)["value"].to_pylist() in (["0"], ["0", "1"])
        log.commit("reader", {source: log.end(source)})
        assert log.lag("reader", topic)[source].records == 0


def _memory_is_bounded(writer: KafkaWriter, topic: str) -> None:
    value, before = os.urandom(4_000), _resident_bytes()
    with pytest.raises(RetryableLogError, match="no record is acknowledged while"):
        _send_for_ever(writer, topic, value)
    assert _resident_bytes() - before < 64 << 20


def _send_for_ever(writer: KafkaWriter, topic: str, value: bytes) -> None:
    while True:
        writer.send(topic, None, value, 1_000_000)


def _nothing_is_left_behind(address: KafkaAddress) -> None:
    """By a log that could not connect: neither sockets nor threads."""
    gc.disable()
    try:
        before = _held()
        with pytest.raises(RetryableLogError), KafkaLog(address, patience_s=0.5) as log:
            log.topics()
        # The writers beside it go on trying to connect: a socket of theirs comes and goes.
        _until(lambda: all(now <= then for now, then in zip(_held(), before, strict=True)))
    finally:
        gc.enable()


def _held() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _until(holds: Callable[[], object], within_s: float = 60) -> None:
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)
