"""A broker refuses the first record that a writer sends to a partition, for a moment, and takes what comes behind it.

A real broker does so while a partition is opened, or its leader moves; here what stands before it does, to make sure of
the moment: it answers one request itself, once the next one is on its way.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pytest
from stack_servers import started

from headwater.stack.place import HOST, free_ports
from streaming import kafka_writer
from streaming.kafka_config import TopicShape, parse_log_url
from streaming.kafka_log import KafkaLog
from streaming.kafka_writer import KafkaWriter
from streaming.log_writer import RecordTooLargeError

TOPIC = "refused"
_FORGOTTEN_MS = 1_000
_PRODUCE, _NOT_LEADER = 0, 6
# How long the next request may take; a writer that waits for the answer sends none.
_NEXT_WITHIN_S = 1.0


@dataclass
class Gate:
    """Stands before a broker, whose clients all come through it."""

    target: int
    refused: int = 0
    _refusing: threading.Event = field(default_factory=threading.Event)
    _listening: socket.socket = field(default_factory=lambda: socket.create_server((HOST, 0)))

    def __post_init__(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"{HOST}:{self._listening.getsockname()[1]}"

    def close(self) -> None:
        self._listening.close()

    def refuse_next(self) -> None:
        """The next request that brings records to the topic's only partition."""
        self._refusing.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((HOST, self.target))
            except OSError:
                client.close()
                continue
            threading.Thread(target=self._answers, args=(server, client), daemon=True).start()
            threading.Thread(target=self._requests, args=(client, server), daemon=True).start()

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with server, client:
            while frame := _frame(server):
                client.sendall(frame)

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            while frame := _frame(client):
                kind, version, number = struct.unpack_from(">hhi", frame, 4)
                if kind == _PRODUCE and TOPIC.encode() in frame and self._refusing.is_set():
                    assert 9 <= version <= 12, version
                    self._refusing.clear()
                    self.refused += 1
                    is_next_here, _, _ = select.select([client], [], [], _NEXT_WITHIN_S)
                    frame = _frame(client) if is_next_here else b""
                    client.sendall(_refusal(number))
                server.sendall(frame)


def _frame(connection: socket.socket) -> bytes:
    """The next message with its length before it; empty when none will come."""
    try:
        found = connection.recv(4, socket.MSG_WAITALL)
        if len(found) == 4:
            found += connection.recv(struct.unpack(">i", found)[0], socket.MSG_WAITALL)
    except OSError:
        return b""
    return found


def _refusal(number: int) -> bytes:
    """That we do not lead the partition, as version 9 to 12 of the answer has it.

    https://kafka.apache.org/protocol#The_Messages_Produce
    """
    partition = struct.pack(">ihqqq", 0, _NOT_LEADER, -1, -1, -1) + b"\x01\0\0"
    topic = bytes([len(TOPIC) + 1]) + TOPIC.encode() + b"\x02" + partition + b"\0"
    answer = struct.pack(">i", number) + b"\0" + b"\x02" + topic + struct.pack(">i", 0) + b"\0"
    return struct.pack(">i", len(answer)) + answer


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    (port,) = free_ports(1)
    with closing(Gate(port)) as found:
        settings = {
            "advertised.listeners": f"PLAINTEXT://{found.address}",
            "producer.id.expiration.ms": str(_FORGOTTEN_MS),
            "producer.id.expiration.check.interval.ms": "100",
        }
        with started("kafka", tmp_path_factory.mktemp("kafka"), port=port, settings=settings):
            yield found


@pytest.fixture
def writer(gate: Gate) -> Iterator[KafkaWriter]:
    address = parse_log_url(f"kafka://{gate.address}")
    with closing(KafkaWriter(address, TopicShape(partitions=1))) as found:
        found.ensure([TOPIC])
        yield found


def send_apart(writer: KafkaWriter, *values: bytes, time_us: int | None = None) -> None:
    for value in values:
        writer.send(TOPIC, b"k", value, time_us or time.time_ns() // 1_000)
        time.sleep(0.1)  # so that they go in two requests
    writer.flush()


def values(gate: Gate) -> list[str]:
    with KafkaLog(parse_log_url(f"kafka://{gate.address}")) as log:
        (source,) = log.partitions(TOPIC)
        return [str(value) for value in log.read(source, log.begin(source), 100)["value"].to_pylist()]


def test_the_first_record_of_a_writer_that_was_refused_is_not_lost(gate: Gate, writer: KafkaWriter) -> None:
    before, refused = values(gate), gate.refused
    gate.refuse_next()
    send_apart(writer, b"first", b"second")
    assert gate.refused == refused + 1
    assert values(gate) == [*before, "first", "second"]


def test_nor_that_of_one_that_was_silent_until_the_broker_forgot_it(
    gate: Gate, writer: KafkaWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_writer, "_REMEMBERED_US", _FORGOTTEN_MS * 500)
    before, refused = values(gate), gate.refused
    send_apart(writer, b"known")
    time.sleep(2 * _FORGOTTEN_MS / 1_000)
    gate.refuse_next()
    send_apart(writer, b"first", b"second")
    assert gate.refused == refused + 1
    assert values(gate) == [*before, "known", "first", "second"]


def test_nor_that_of_one_whose_records_are_so_old_that_the_broker_forgets_it_at_once(
    gate: Gate, writer: KafkaWriter
) -> None:
    before, refused = values(gate), gate.refused
    send_apart(writer, b"now")
    send_apart(writer, b"old", time_us=1_000)
    time.sleep(1)
    gate.refuse_next()
    send_apart(writer, b"first", b"second", time_us=1_000)
    assert gate.refused == refused + 1
    assert values(gate) == [*before, "now", "old", "first", "second"]


def test_nor_that_of_one_whose_records_times_stand_still(
    gate: Gate, writer: KafkaWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_writer, "_REMEMBERED_US", _FORGOTTEN_MS * 500)
    before, refused, now_us = values(gate), gate.refused, time.time_ns() // 1_000
    send_apart(writer, b"known", time_us=now_us)
    time.sleep(2 * _FORGOTTEN_MS / 1_000)
    writer.flush()  # as a connector does that has nothing to send
    gate.refuse_next()
    send_apart(writer, b"first", b"second", time_us=now_us + 1_000)
    assert gate.refused == refused + 1
    assert values(gate) == [*before, "known", "first", "second"]


def test_nor_that_of_one_whose_very_first_was_too_large_to_be_sent(gate: Gate, writer: KafkaWriter) -> None:
    before, refused, now_us = values(gate), gate.refused, time.time_ns() // 1_000
    with pytest.raises(RecordTooLargeError) as found:
        writer.send(TOPIC, b"k", bytes(64 << 20), now_us)
    assert not found.value.spent
    writer.flush()
    gate.refuse_next()
    send_apart(writer, b"first", b"second")
    assert gate.refused == refused + 1
    assert values(gate) == [*before, "first", "second"]


def test_of_a_later_record_that_was_refused_the_broker_sees_that_it_is_missing(gate: Gate, writer: KafkaWriter) -> None:
    before, refused = values(gate), gate.refused
    send_apart(writer, b"known")
    gate.refuse_next()
    send_apart(writer, b"first", b"second")
    assert gate.refused == refused + 1
    assert values(gate) == [*before, "known", "first", "second"]
