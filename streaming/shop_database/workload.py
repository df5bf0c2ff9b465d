"""A living shop: several connections that trade at once until told to stop, whatever happens to the database.

Each worker draws its transactions from a generator of its own, seeded by (seed, worker); one more has transactions that
stay open for seconds while the others commit. When the connection is lost
the worker comes back with growing pauses and goes on; whether a transaction whose commit was not answered has happened
is for the database to know, and the worker does not ask.

Errors: ShopDatabaseError when the database cannot be reached at the start, or rejects one transaction after the other.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random, uniform

from streaming.capture.credentials import Address
from streaming.shop_database.connect import Conflict, Database, Rejected, ShopDatabaseError, Unreachable, open_database
from streaming.shop_database.ddl import create_statements
from streaming.shop_database.trade import DECK, LONG, CalledOff, Trader, open_shop

__all__ = ["Totals", "Workload"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
# A worker that fell behind makes up for no more than that, and one that wrote many rows at once waits no longer.
_BEHIND_S, _AHEAD_S = 1.0, 3.0
_LOCK_WAIT_S = 3
_REJECTED_IN_A_ROW = 20


@dataclass(frozen=True)
class Totals:
    """What was done so far. `transactions` are committed, `kinds` counts them and the rolled back ones by kind.

    `rows` were written by committed transactions; `conflicts` (deadlocks, lock timeouts) and `rejected` transactions
    were rolled back besides `rollbacks`; of the `unknown` the commit was sent and never answered.
    """

    transactions: int = 0
    rows: int = 0
    rollbacks: int = 0
    conflicts: int = 0
    rejected: int = 0
    unknown: int = 0
    reconnects: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)


class Workload:
    """`workers` connections that write about `rate` rows a second together, and one whose transactions stay open."""

    def __init__(self, place: str | Address, seed: int = 7, workers: int = 4, rate: float = 200) -> None:
        self._place, self._seed, self._workers, self._rate = place, seed, workers, rate
        self._counts: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._lock = threading.Lock()

    def run(
        self,
        stop: threading.Event,
        *,
        seconds: float | None = None,
        on_second: Callable[[Totals], None] = lambda _: None,
    ) -> Totals:
        """Trade until `stop` is set (or for `seconds`); transactions that are open are ended first.

        Makes the tables and the first customers and products if missing. Raises ShopDatabaseError.
        """
        with open_database(self._place) as database:
            for statement in create_statements(database.dialect, replay=False):
                database.script(statement)
            open_shop(database)
        with ThreadPoolExecutor(self._workers + 1) as pool:
            working = [pool.submit(_Worker(self, number, stop).run) for number in range(self._workers + 1)]
            for worker in working:
                worker.add_done_callback(lambda _: stop.set())  # of itself a worker ends by an error alone
            try:
                self._watch(stop, seconds, on_second)
            finally:
                stop.set()
        for worker in working:
            worker.result()
        return self.totals()

    def _watch(self, stop: threading.Event, seconds: float | None, on_second: Callable[[Totals], None]) -> None:
        end = time.monotonic() + seconds if seconds is not None else float("inf")
        while not stop.wait(min(1.0, max(0.0, end - time.monotonic()))):
            on_second(self.totals())
            if time.monotonic() >= end:
                return

    def totals(self) -> Totals:
        """What was done so far; from any thread."""
        with self._lock:
            return Totals(**self._counts, kinds=dict(self._kinds))

    def _count(self, kind: str | None = None, **counts: int) -> None:
        with self._lock:
            self._counts.update(counts)
            if kind:
                self._kinds[kind] += 1


class _Worker:
    """One connection's worth of trading."""

    def __init__(self, shop: Workload, worker: int, stop: threading.Event) -> None:
        self._shop, self._worker, self._stop = shop, worker, stop
        self._random = Random(f"{shop._seed}-{worker}")
        self._rate = shop._rate / shop._workers
        self._hand: list[str] = []
        self._due = time.monotonic()
        self._rejected = 0

    def run(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                with open_database(self._shop._place) as database:
                    trader = self._trader(database)
                    pause = _FIRST_PAUSE_S
                    while not self._stop.is_set():
                        self._transact(database, trader)
            except Unreachable:
                self._shop._count(reconnects=1)
                self._stop.wait(pause * uniform(0.5, 1))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            except Rejected as error:  # numbers taken by another shop, a table that was altered: look anew
                self._reject(error)

    def _trader(self, database: Database) -> Trader:
        if database.dialect == "postgresql":
            database.script(f"SET lock_timeout = '{_LOCK_WAIT_S}s'")
        else:  # without locks on the gaps between rows, as PostgreSQL
            database.script(f"SET innodb_lock_wait_timeout = {_LOCK_WAIT_S}")
            database.script("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        return Trader(database, self._random, self._worker, self._pause)

    def _pause(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _transact(self, database: Database, trader: Trader) -> None:
        kind, trader.rows = self._next_kind(), 0
        database.script("BEGIN")
        try:
            trader.deal(kind)
            self._commit(database, kind, trader.rows)
        except CalledOff:
            database.script("ROLLBACK")
            self._shop._count(kind, rollbacks=1)
        except Conflict:
            database.script("ROLLBACK")
            self._shop._count(conflicts=1)
        self._wait(trader.rows)

    def _commit(self, database: Database, kind: str, rows: int) -> None:
        try:
            database.script("COMMIT")
        except Unreachable:
            self._shop._count(unknown=1)
            raise
        self._rejected = 0
        self._shop._count(kind, transactions=1, rows=rows)

    def _next_kind(self) -> str:
        if self._worker == self._shop._workers:
            return LONG
        if not self._hand:
            self._hand = [kind for kind, count in DECK.items() for _ in range(count)]
            self._random.shuffle(self._hand)
        return self._hand.pop()

    def _wait(self, rows: int) -> None:
        now = time.monotonic()
        self._due = min(max(self._due + rows / self._rate, now - _BEHIND_S), now + _AHEAD_S)
        if self._due > now:
            self._stop.wait(self._due - now)

    def _reject(self, error: ShopDatabaseError) -> None:
        self._shop._count(rejected=1)
        self._rejected += 1
        if self._rejected >= _REJECTED_IN_A_ROW:
            raise error
        self._stop.wait(_FIRST_PAUSE_S)
