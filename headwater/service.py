"""What commands that run until they are stopped have in common: how they hear of it, and how they say things."""

from __future__ import annotations

import signal
import sys
import threading
import time
from datetime import UTC, datetime
from types import FrameType
from typing import Any

__all__ = ["log_line", "stopped_by_signals"]


def stopped_by_signals() -> threading.Event:
    """Set when the process is asked to stop, by SIGTERM or ctrl-C."""
    stop = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        # Not here: a signal can come while this very thread holds the event's lock, and would wait for itself.
        threading.Thread(target=stop.set, name="stop", daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    return stop


def log_line(event: str, **more: Any) -> None:
    """One line of JSON on stderr, for whoever collects logs."""
    import orjson

    at = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    sys.stderr.buffer.write(orjson.dumps({"at": at, "event": event, **more}) + b"\n")
    sys.stderr.flush()
