"""The online store's file: every customer's change points, packed, so that any later instant is one look-up.

A SQLite file. Table `views` has a row for each view with its columns and a generation that grows with every write;
table `points` has one blob for each (view, entity):

    holds_from   int64 x n      ascending: the instant from which row i holds, microseconds since 1970 UTC
    rows         n x row        event_at int64, null mask(s) uint64, one 8-byte value for each column

Little-endian. Timestamps and booleans are stored as int64, strings as int64 codes of the view's vocabulary. Here are
the layout and the reading of the file; ml/online_writer.py writes it, ml/online_reader.py looks things up.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from struct import Struct

import numpy as np

from ml.feature_plan import OnlineStoreError

__all__ = ["Layout", "StoredView", "open_file", "read_view", "views_in"]

MASK_BITS = 64


@dataclass(frozen=True)
class Layout:
    """Columns of a packed row in order, as (name, dtype); dtype int64, float64, string, bool or timestamp."""

    columns: tuple[tuple[str, str], ...]

    @property
    def masks(self) -> int:
        return -(-len(self.columns) // MASK_BITS)

    @cached_property
    def row(self) -> Struct:
        """A packed row: event time, null masks, values."""
        return Struct("<q" + "Q" * self.masks + "".join("d" if d == "float64" else "q" for _, d in self.columns))

    @cached_property
    def numpy(self) -> np.dtype[np.void]:
        """The same row for bulk work."""
        values = [(name, "<f8" if dtype == "float64" else "<i8") for name, dtype in self.columns]
        masks = [(f"mask {n}", "<u8") for n in range(self.masks)]
        return np.dtype([("event at", "<i8"), *masks, *values])

    @cached_property
    def place(self) -> dict[str, tuple[int, int, int]]:
        """For each column: its position in an unpacked row, the position of its null mask, and its bit there."""
        return {
            name: (1 + self.masks + n, 1 + n // MASK_BITS, 1 << (n % MASK_BITS))
            for n, (name, _) in enumerate(self.columns)
        }

    def points_in(self, blob: bytes) -> int:
        """How many change points `blob` has."""
        return len(blob) // (8 + self.row.size)


@dataclass(frozen=True)
class StoredView:
    """One view in the file. Reads before `exact_from_us` are refused: what they would need was dropped."""

    name: str
    layout: Layout
    ttl_us: int | None
    exact_from_us: int | None
    vocabulary: tuple[str, ...]
    generation: int

    @cached_property
    def codes(self) -> dict[str, int]:
        return {text: code for code, text in enumerate(self.vocabulary)}


_SCHEMA = """
CREATE TABLE IF NOT EXISTS views (
    view TEXT PRIMARY KEY, columns TEXT NOT NULL, ttl_us INTEGER, exact_from_us INTEGER, vocabulary TEXT NOT NULL,
    generation INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS points (
    view TEXT NOT NULL, entity NOT NULL, packed BLOB NOT NULL, PRIMARY KEY (view, entity)
);
"""


@contextmanager
def open_file(path: Path) -> Iterator[sqlite3.Connection]:
    """The file for writing, made if missing; one transaction, so that readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(_SCHEMA)
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")


def views_in(db: sqlite3.Connection) -> dict[str, int]:
    """The generation of each view."""
    return dict(db.execute("SELECT view, generation FROM views"))


def read_view(db: sqlite3.Connection, name: str) -> StoredView:
    """Raises OnlineStoreError that names the views there are."""
    found = db.execute(
        "SELECT columns, ttl_us, exact_from_us, vocabulary, generation FROM views WHERE view = ?", (name,)
    ).fetchone()
    if found is None:
        there = ", ".join(sorted(views_in(db))) or "none"
        raise OnlineStoreError(f"the online store has no view {name!r} (there are: {there}): run `headwater run` first")
    columns, ttl_us, exact_from_us, vocabulary, generation = found
    layout = Layout(tuple((c, d) for c, d in json.loads(columns)))
    return StoredView(name, layout, ttl_us, exact_from_us, tuple(json.loads(vocabulary)), generation)
