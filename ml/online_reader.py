"""Reads features online: the serving path. No Feast, no DataFrame; after `preload` no SQL either.

A reader answers for any instant from what is stored, without a new materialisation: it looks up the change point that
holds at `now`, applies the time to live, and computes what grows with time.
"""

from __future__ import annotations

import sqlite3
import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ml.feature_plan import BeforeHorizonError, FeaturePlan, OnlineStoreError, elapsed_days
from ml.packed import StoredView, read_view, views_in

__all__ = ["OnlineReader", "OnlineRow", "micros", "unpack_at"]

EPOCH = datetime(1970, 1, 1)
MICROSECOND = timedelta(microseconds=1)

_PLAIN, _ELAPSED, _STRING, _BOOL = range(4)


@dataclass(frozen=True, slots=True)
class OnlineRow:
    """Features in the plan's order, and for each view that knows the customer the time of the latest event behind them.

    That is None once the event is older than the view's time to live: its features are null, nothing is behind them.
    """

    values: tuple[Any, ...]
    as_of: Mapping[str, datetime | None]


@dataclass(frozen=True)
class _Access:
    """How one view's part of a plan is read: (position in the plan, in the row, of the mask, mask bit, kind)."""

    view: StoredView
    ttl_us: int | None
    fields: tuple[tuple[int, int, int, int, int], ...]


@dataclass(frozen=True)
class _Loaded:
    """A view held in memory: for each entity its `holds_from` as integers, and its blob."""

    view: StoredView
    points: Mapping[int | str, tuple[memoryview, bytes]]


def micros(instant: datetime) -> int:
    """Naive UTC as microseconds since 1970."""
    return (instant - EPOCH) // MICROSECOND


class OnlineReader:
    """Reads of the online store at `path`; may be shared between threads.

    Without `preload` each read is SQL and always sees the latest file. After `preload` reads are in memory, and
    `refresh` picks up a new materialisation.
    """

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError when nothing was ever materialised."""
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no online store yet; run `headwater run` first")
        self._path = path
        self._lock = threading.Lock()
        self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=30)
        self._loaded: dict[str, _Loaded] | None = None
        self._compiled: dict[str, tuple[FeaturePlan, tuple[StoredView, ...], tuple[_Access, ...]]] = {}

    def close(self) -> None:
        """Close the file; the reader is of no use afterwards."""
        with self._lock:
            self._db.close()

    def generations(self) -> dict[str, int]:
        """The generation of each view in the file: it grows with every materialisation."""
        with self._lock:
            return views_in(self._db)

    def preload(self) -> int:
        """Hold every view in memory from now on. Returns the number of entities held, over all views."""
        with self._lock, self._snapshot():
            loaded = {name: self._load(name) for name in views_in(self._db)}
        self._loaded = loaded
        return sum(len(view.points) for view in loaded.values())

    def refresh(self) -> bool:
        """After `preload`: load again what was materialised since. Returns whether anything was."""
        held = self._loaded
        if held is None:
            return False
        with self._lock, self._snapshot():
            there = views_in(self._db)
            if there == {name: each.view.generation for name, each in held.items()}:
                return False
            self._loaded = {
                name: held[name] if name in held and held[name].view.generation == generation else self._load(name)
                for name, generation in there.items()
            }
        return True

    def read(self, plan: FeaturePlan, customer_ids: Sequence[int], now: datetime) -> list[OnlineRow | None]:
        """The plan's features of each customer as of `now` (naive UTC), in order; None: never seen by then.

        Raises OnlineStoreError when the store lacks a view or column of the plan, BeforeHorizonError.
        """
        now_us = micros(now)
        loaded = self._loaded
        if loaded is not None:
            accesses = self._accesses(plan, tuple(_held(loaded, v.name) for v in plan.views), now)
            sources = [loaded[a.view.name].points for a in accesses]
            return [_row(plan, accesses, [points.get(c) for points in sources], now_us) for c in customer_ids]
        with self._lock, self._snapshot():
            accesses = self._accesses(plan, tuple(read_view(self._db, v.name) for v in plan.views), now)
            sources = [self._fetch(a.view, customer_ids) for a in accesses]
        return [_row(plan, accesses, [points.get(c) for points in sources], now_us) for c in customer_ids]

    def lookup(
        self, view: str, entities: Sequence[int | str], now: datetime, ttl_us: int | None
    ) -> list[tuple[datetime, dict[str, Any] | None] | None]:
        """Every stored column of one view (timestamps as microseconds), for Feast; (event time, None): expired."""
        now_us = micros(now)
        with self._lock, self._snapshot():
            stored = read_view(self._db, view)
            _expect_exact(stored, now)
            points = self._fetch(stored, entities)
        access = _Access(replace(stored, ttl_us=ttl_us), ttl_us, ())
        return [_columns(access, points.get(entity), now_us) for entity in entities]

    def _snapshot(self) -> _Snapshot:
        return _Snapshot(self._db)

    def _load(self, name: str) -> _Loaded:
        view = read_view(self._db, name)
        rows = self._db.execute("SELECT entity, packed FROM points WHERE view = ?", (name,))
        return _Loaded(view, {entity: _split(view, blob) for entity, blob in rows})

    def _fetch(self, view: StoredView, entities: Sequence[int | str]) -> dict[int | str, tuple[memoryview, bytes]]:
        found = {}
        for entity in dict.fromkeys(entities):
            query = "SELECT packed FROM points WHERE view = ? AND entity = ?"
            for (blob,) in self._db.execute(query, (view.name, entity)):
                found[entity] = _split(view, blob)
        return found

    def _accesses(self, plan: FeaturePlan, views: tuple[StoredView, ...], now: datetime) -> tuple[_Access, ...]:
        for view in views:
            _expect_exact(view, now)
        known = self._compiled.get(plan.service)
        if known is not None and known[0] is plan and known[1] == views:
            return known[2]
        accesses = tuple(_access(plan, view) for view in views)
        self._compiled[plan.service] = (plan, views, accesses)
        return accesses


class _Snapshot:
    """One read transaction: the views and their points belong to the same generation."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN")

    def __exit__(self, *_: object) -> None:
        self._db.execute("ROLLBACK")


def unpack_at(view: StoredView, points: tuple[memoryview, bytes] | None, now_us: int) -> tuple[Any, ...] | None:
    """The packed row that holds at `now_us`; None before the first."""
    if points is None:
        return None
    holds_from, blob = points
    position = bisect_right(holds_from, now_us) - 1
    if position < 0:
        return None
    row = view.layout.row
    return row.unpack_from(blob, 8 * len(holds_from) + row.size * position)


def _row(
    plan: FeaturePlan,
    accesses: tuple[_Access, ...],
    points: Sequence[tuple[memoryview, bytes] | None],
    now_us: int,
) -> OnlineRow | None:
    values: list[Any] = [None] * len(plan.features)
    as_of: dict[str, datetime | None] = {}
    for access, found in zip(accesses, points, strict=True):
        row = unpack_at(access.view, found, now_us)
        if row is None:
            continue
        if access.ttl_us is not None and now_us - row[0] > access.ttl_us:
            as_of[access.view.name] = None
            continue
        as_of[access.view.name] = EPOCH + timedelta(microseconds=row[0])
        for out, place, mask, bit, kind in access.fields:
            if not row[mask] & bit:
                values[out] = row[place] if kind == _PLAIN else _decoded(access.view, row[place], kind, now_us)
    return OnlineRow(tuple(values), as_of) if as_of else None


def _decoded(view: StoredView, value: Any, kind: int, now_us: int) -> Any:
    if kind == _ELAPSED:
        return elapsed_days(now_us, value)
    return view.vocabulary[value] if kind == _STRING else bool(value)


def _columns(
    access: _Access, points: tuple[memoryview, bytes] | None, now_us: int
) -> tuple[datetime, dict[str, Any] | None] | None:
    view = access.view
    row = unpack_at(view, points, now_us)
    if row is None:
        return None
    event_at = EPOCH + timedelta(microseconds=row[0])
    if access.ttl_us is not None and now_us - row[0] > access.ttl_us:
        return event_at, None
    values = {}
    for name, dtype in view.layout.columns:
        place, mask, bit = view.layout.place[name]
        value = None if row[mask] & bit else row[place]
        kind = {"string": _STRING, "bool": _BOOL}.get(dtype)
        values[name] = value if value is None or kind is None else _decoded(view, value, kind, now_us)
    return event_at, values


def _access(plan: FeaturePlan, view: StoredView) -> _Access:
    dtypes = dict(view.layout.columns)
    fields = []
    for out, feature in enumerate(plan.features):
        if feature.view != view.name:
            continue
        column = feature.elapsed_since or feature.column
        wanted = "timestamp" if feature.elapsed_since else feature.dtype
        if dtypes.get(column) != wanted:
            raise OnlineStoreError(
                f"{plan.service} needs {view.name}:{column} as {wanted}; the online store has "
                f"{dtypes.get(column, 'no such column')}: run `headwater run` to materialise it again"
            )
        kind = _ELAPSED if feature.elapsed_since else {"string": _STRING, "bool": _BOOL}.get(feature.dtype, _PLAIN)
        fields.append((out, *view.layout.place[column], kind))
    return _Access(view, plan.ttl_us[view.name], tuple(fields))


def _held(loaded: Mapping[str, _Loaded], name: str) -> StoredView:
    if name not in loaded:
        there = ", ".join(sorted(loaded)) or "none"
        raise OnlineStoreError(f"the online store has no view {name!r} (there are: {there}): run `headwater run` first")
    return loaded[name].view


def _expect_exact(view: StoredView, now: datetime) -> None:
    if view.exact_from_us is not None and micros(now) < view.exact_from_us:
        oldest = EPOCH + timedelta(microseconds=view.exact_from_us)
        raise BeforeHorizonError(
            f"the online store answers for {view.name} from {oldest.isoformat()} on, asked was {now.isoformat()}: "
            "use `headwater features historical` for the past"
        )


def _split(view: StoredView, blob: bytes) -> tuple[memoryview, bytes]:
    return memoryview(blob)[: 8 * view.layout.points_in(blob)].cast("q"), blob
