"""A topic as who waits for records sees it: how many there are, each as it arrives, all of them at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import orjson

__all__ = ["Arrived", "NotThere", "Topic"]

_WITHIN_S = 600.0
_LED_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.01


class NotThere(RuntimeError):
    """What was waited for did not come in time; the message says what had come."""


@dataclass(frozen=True)
class Arrived:
    """A record as a consumer got it, at an instant in microseconds."""

    partition: int
    key: bytes | None
    value: bytes | None
    at_us: int

    @property
    def id(self) -> int:
        """The key's."""
        return int(orjson.loads(self.key or b'{"id":0}')["id"])


class Topic:
    """A topic that is made here, so that both connectors' have the same shape."""

    def __init__(self, bootstrap: str, name: str, partitions: int) -> None:
        from confluent_kafka import Consumer
        from confluent_kafka.admin import AdminClient, NewTopic

        self.name, self._partitions = name, range(partitions)
        self._settings = {"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False}
        admin = AdminClient({"bootstrap.servers": bootstrap})
        admin.create_topics([NewTopic(name, partitions, 1)])[name].result()
        self._watcher: Any = Consumer(self._settings)
        self._wait_until_led()

    def _wait_until_led(self) -> None:
        """A topic is made some moments before each of its partitions has a leader to ask."""
        from confluent_kafka import KafkaException

        deadline = time.monotonic() + _LED_WITHIN_S
        while True:
            try:
                self.ends()
                return
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_LOOK_EVERY_S)

    def close(self) -> None:
        self._watcher.close()

    def ends(self) -> list[int]:
        """The offset after the last record of each partition."""
        from confluent_kafka import TopicPartition

        found = (self._watcher.get_watermark_offsets(TopicPartition(self.name, each), 10) for each in self._partitions)
        return [end for _, end in found]

    def count(self) -> int:
        """How many records there are."""
        return sum(self.ends())

    def wait_for(self, count: int, alive: Callable[[], object]) -> float:
        """Return the monotonic instant at which there are so many; `alive` raises when waiting is in vain."""
        deadline = time.monotonic() + _WITHIN_S
        while (found := self.count()) < count:
            alive()
            if time.monotonic() > deadline:
                raise NotThere(f"{self.name}: {found} of {count} records within {_WITHIN_S:g} s")
            time.sleep(_LOOK_EVERY_S)
        return time.monotonic()

    def until(self, mark: int, begin: list[int], alive: Callable[[], object]) -> Iterator[Arrived]:
        """Records from those offsets on, as they arrive, until the one with this id has; then what else is there."""
        from confluent_kafka import Consumer, TopicPartition

        with closing(Consumer({**self._settings, "fetch.wait.max.ms": 5, "check.crcs": False})) as consumer:
            places = [TopicPartition(self.name, each, begin[each]) for each in self._partitions]
            consumer.assign(places)
            deadline, left, seen = time.monotonic() + _WITHIN_S, None, sum(begin)
            while left is None or seen < left:
                # One by one: `consume` waits for as many as it is asked for, and what waits has arrived already.
                while (message := consumer.poll(0.005)) is not None:
                    if message.error() is None:
                        seen += 1
                        at_us = time.time_ns() // 1000
                        record = Arrived(message.partition(), message.key(), message.value(), at_us)
                        if left is None and record.id == mark:
                            left = self.count()
                        yield record
                alive()
                if time.monotonic() > deadline:
                    raise NotThere(f"{self.name}: mark {mark} did not come within {_WITHIN_S:g} s")
