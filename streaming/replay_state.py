"""What a replay remembers beside the log: a JSON file that is written after the log, and may be behind it.

`last_event_at` in it is the replay's clock (catalog.clock.ReplayClock). The log is the truth about what was emitted;
this file is the truth about which file it came from.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.clock import DamagedClockError
from catalog.keys import cdc_topic
from streaming.log import ChangeLog, TopicPartition
from streaming.shop import TABLES

__all__ = ["SYSTEM", "Injection", "ReplayState", "digest", "ends", "last_landing", "topics"]

SYSTEM = "shop"


@dataclass(frozen=True)
class Injection:
    """One stretch of injected changes: its first log sequence number, and what was asked for."""

    first_lsn: int
    weeks: int
    factor: float
    seed: int


@dataclass(frozen=True)
class ReplayState:
    """`input_*` describe the file as given, `lines` and `digest` the prefix (in stream order) that was emitted.

    `ends` are the log's ends by topic after the replay, before any injection; `next_landing_at` is the landing time of
    the first line held back by `until`, None when all were emitted. `injections` are written before their changes.
    """

    input_digest: str
    input_lines: int
    digest: str
    lines: int
    ends: Mapping[str, int]
    last_event_at: str
    next_landing_at: str | None = None
    injections: tuple[Injection, ...] = field(default=())

    @classmethod
    def load(cls, path: Path) -> ReplayState | None:
        """None when no replay has completed. Raises DamagedClockError."""
        try:
            tree: dict[str, Any] = json.loads(path.read_text())
            return cls(**{**tree, "injections": tuple(Injection(**i) for i in tree["injections"])})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedClockError(path, repr(error)) from None

    def injected(self, log: ChangeLog) -> bool:
        """Whether the log goes on after the replay's own changes because changes were injected."""
        return bool(self.injections) and ends(log) != self.ends

    def save(self, path: Path) -> None:
        """Replace the file atomically: a reader sees the old state or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        with draft.open("w") as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


def topics() -> dict[str, str]:
    """The topic of each table of the shop."""
    return {table: cdc_topic(SYSTEM, table) for table in TABLES}


def ends(log: ChangeLog) -> dict[str, int]:
    """The end of each of the shop's topics, by table."""
    return {table: log.end(TopicPartition(topic, 0)) for table, topic in topics().items()}


def last_landing(log: ChangeLog) -> datetime | None:
    """The landing time of the newest record in the shop's topics; None when there is none."""
    newest = [
        log.read(TopicPartition(topic, 0), end - 1, 1)["timestamp_us"][0].cast(pa.timestamp("us")).as_py()
        for (_, topic), end in zip(topics().items(), ends(log).values(), strict=True)
        if end
    ]
    return max(newest, default=None)


def digest(lines: pa.Table) -> str:
    """SHA-256 over names, types and every value, independent of chunks, slices and what lies under nulls.

    `unread` counts only where it says something: a home keeps the digests of lines from before it was a column.
    """
    total = hashlib.sha256(str(lines.num_rows).encode())
    for name in lines.column_names:
        column = lines[name].combine_chunks()
        if name == "unread" and column.null_count == len(column):
            continue
        total.update(f"{name}:{column.type}".encode())
        total.update(np.packbits(pc.is_valid(column).to_numpy(zero_copy_only=False)).tobytes())
        for part in _content(column):
            total.update(part.tobytes())
    return total.hexdigest()


def _content(column: pa.Array) -> list[np.ndarray[Any, Any]]:
    """The values as plain arrays, null as zero or empty."""
    if pa.types.is_string(column.type):
        filled = pc.fill_null(column, "")
        offsets = np.frombuffer(filled.buffers()[1], np.int32)[filled.offset : filled.offset + len(filled) + 1]
        text = filled.buffers()[2]
        data = np.frombuffer(text, np.uint8) if text else np.empty(0, np.uint8)
        return [offsets - offsets[:1], data[offsets[0] : offsets[-1]] if len(offsets) else data]
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return [pc.fill_null(column, 0).to_numpy()]
