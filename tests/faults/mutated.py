"""`headwater` broken on purpose, as a process: `python -m tests.faults.mutated MUTATION capture shop`.

A harness that finds nothing wrong has to be seen to find something when there is. Each mutation is a mistake that a
change stream can be built with; the pauses make wide what would otherwise be a matter of microseconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

__all__ = ["MUTATIONS"]


def offset_before_write() -> None:
    """Landing commits how far it has read, and writes the rows after that."""
    from lake.tables import Lake

    write = Lake.append

    def append(self: Lake, key: Any, rows: pa.Table, offsets: Any = None, *, onto: Any = None) -> int:
        if key.layer == "raw" and offsets and rows.num_rows:
            write(self, key, rows.slice(0, 0), offsets, onto=onto)
            time.sleep(0.2)
            offsets = None
        return write(self, key, rows, offsets, onto=onto)

    Lake.append = append  # type: ignore[method-assign]


def no_dedupe() -> None:
    """Neither does the connector see what is in the log already, nor landing what has landed."""
    from streaming import contract, landing_order
    from streaming.capture.sink import Sink

    def repeated(places: pa.Table, watermark: Any) -> Any:
        return places.slice(0, 0), landing_order.repeated(places, watermark)[1]

    vars(contract)["repeated"] = repeated
    Sink._already_there = lambda *_: False  # type: ignore[method-assign]


def checkpoint_before_send() -> None:
    """The connector says how far it has come, and sends what it has read with the next word of that kind."""
    from streaming.capture import service

    open_writer = vars(service)["open_writer"]
    vars(service)["open_writer"] = lambda settings: _Late(open_writer(settings))


class _Late:
    """A writer that keeps changes beyond the checkpoint that covers them: until the next one."""

    def __init__(self, writer: Any) -> None:
        self._writer, self._covered = writer, False
        self._held: list[tuple[Any, ...]] = []
        self._due: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def send(self, topic: str, *record: Any) -> None:
        if topic.startswith("cdc."):
            self._held.append((topic, *record))
        else:
            self._covered = self._covered or topic.endswith(".state")
            self._writer.send(topic, *record)

    def flush(self) -> None:
        self._writer.flush()
        if self._covered:
            for record in self._due:
                self._writer.send(*record)
            self._due, self._held, self._covered = self._held, [], False
            self._writer.flush()


MUTATIONS: Mapping[str, Callable[[], None]] = {
    mutation.__name__: mutation for mutation in (offset_before_write, no_dedupe, checkpoint_before_send)
}


if __name__ == "__main__":
    from headwater.cli import main

    MUTATIONS[sys.argv.pop(1)]()
    main()
