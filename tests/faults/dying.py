"""`headwater` that gets `kill -9` at exactly one point: `python -m tests.faults.dying POINT capture shop`.

Random moments seldom hit what lies between two lines of code. Nothing but the death is added to what the process does.
With POINT:stalled it is stopped there instead (SIGSTOP), and goes on for good when it gets SIGCONT.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

__all__ = ["POINTS"]


_signals = [signal.SIGKILL]


def _die(*_: object) -> None:
    if _signals:
        os.kill(os.getpid(), _signals.pop())


def before_checkpoint() -> None:
    """What was sent is durable in the log, and no checkpoint says so."""
    from streaming.capture.engine import _Attempt

    save = _Attempt._save

    def dying(self: _Attempt, sink: Any, snapshotter: Any) -> None:
        if sink.rows:
            sink.writer.flush()
            _die()
        save(self, sink, snapshotter)

    _Attempt._save = dying  # type: ignore[method-assign]


def before_confirm() -> None:
    """The checkpoint is durable, and the database was not told."""
    from streaming.capture.engine import _Attempt

    save = _Attempt._save

    def dying(self: _Attempt, sink: Any, snapshotter: Any) -> None:
        if sink.rows:
            vars(self._source)["confirm"] = _die
        save(self, sink, snapshotter)

    _Attempt._save = dying  # type: ignore[method-assign]


def in_chunk() -> None:
    """Half of a snapshot's chunk is in the log."""
    from streaming.capture.sink import Sink

    read = Sink.read

    def dying(self: Sink, table: Any, rows: Any, *more: Any) -> int:
        chunk = list(rows)
        read(self, table, chunk[: len(chunk) // 2], *more)
        self.writer.flush()
        _die()

    Sink.read = dying  # type: ignore[method-assign]


def before_landing() -> None:
    """The batch's rejected records are in quarantine, its rows are not in the table."""
    from lake.tables import Lake

    append = Lake.append

    def dying(self: Lake, key: Any, rows: pa.Table, offsets: Any = None, *, onto: Any = None) -> int:
        if key.layer == "raw" and rows.num_rows:
            _die()
        return append(self, key, rows, offsets, onto=onto)

    Lake.append = dying  # type: ignore[method-assign]


def after_landing() -> None:
    """The rows are in the table, and the log was not told how far."""
    from lake.tables import Lake

    append = Lake.append

    def dying(self: Lake, key: Any, rows: pa.Table, offsets: Any = None, *, onto: Any = None) -> int:
        version = append(self, key, rows, offsets, onto=onto)
        if key.layer == "raw" and rows.num_rows:
            _die()
        return version

    Lake.append = dying  # type: ignore[method-assign]


POINTS: Mapping[str, Callable[[], None]] = {
    point.__name__: point for point in (before_checkpoint, before_confirm, in_chunk, before_landing, after_landing)
}


if __name__ == "__main__":
    from headwater.cli import main

    chosen, _, fate = sys.argv.pop(1).partition(":")
    if fate == "stalled":
        _signals[:] = [signal.SIGSTOP]
    POINTS[chosen]()
    main()
