"""A living shop whose stream is killed at random moments, and at the end nothing is lost and nothing is there twice.

    python -m tests.faults.random_kills --seed 1 --kills 200 --database postgresql

Rounds: `kill -9` of one of connector, landers, broker and database, sometimes of a second one soon after; they are
started again; then rows are written, and recovery is the time from the kill until these have landed. When all kills are
done the shop closes, the stream has to catch up by itself, and source and lake are compared row for row. Prints every
row of it. Exit code 1 unless nothing was lost, nothing was there twice, no process ended by itself and every recovery
was within the bound.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from catalog.keys import raw
from lake.tables import Lake, quoted
from streaming.shop_database.workload import Workload
from tests.faults.mutated import MUTATIONS
from tests.faults.stand import MARKERS, Stand, Stuck, say, standing, wait_until
from tests.faults.verdict import TableVerdict, judge

__all__ = ["Kill", "Plan", "Result", "play"]

_SECOND_KILL = 0.3
_WEIGHTS = {"connector": 3, "lander": 3, "database": 2, "broker": 2}


@dataclass(frozen=True)
class Plan:
    """What to do. `gap_s`: the longest quiet time between two rounds; `rate`: the shop's rows a second; `only`: what is
    killed, where not all; `patience_s`: how long a recovery is waited for.
    """

    database: str
    seed: int
    kills: int
    log: str = "kafka"
    landers: int = 2
    rate: float = 200
    gap_s: float = 3.0
    within_s: float = 30.0
    patience_s: float = 90.0
    only: str = ""
    mutation: str | None = None


@dataclass(frozen=True)
class Kill:
    """One `kill -9`: when, in seconds since the start, and how long until what was written after it had landed."""

    number: int
    victim: str
    at_s: float
    recovered_s: float

    def __str__(self) -> str:
        return f"kill {self.number}  {self.victim}  at_s {self.at_s:.1f}  recovered_s {self.recovered_s:.2f}"


@dataclass
class Result:
    """What came of it; `problems` is empty when all is well."""

    kills: list[Kill] = field(default_factory=list)
    tables: Sequence[TableVerdict] = ()
    problems: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return sum(table.lost for table in self.tables)

    @property
    def duplicates(self) -> int:
        return sum(table.duplicates for table in self.tables)

    def __str__(self) -> str:
        times = sorted(kill.recovered_s for kill in self.kills) or [0.0]
        return (
            f"kills {len(self.kills)}  lost {self.lost}  duplicates {self.duplicates}  "
            f"recovery_s median {times[len(times) // 2]:.2f} longest {times[-1]:.2f}  problems {len(self.problems)}"
        )


def play(plan: Plan, directory: Path) -> Result:
    """Do it, in a directory that is left without servers."""
    result = Result()
    with standing(directory, plan.database, log=plan.log, mutation=plan.mutation) as stand:
        Workload(stand.url, plan.seed, rate=1e6).run(threading.Event(), seconds=2)  # something for a snapshot
        stand.open_shop(plan.rate, plan.seed)
        for name in ("connector", *(f"lander-{number + 1}" for number in range(plan.landers))):
            stand.start(name)
        for part in (_rounds, _close):  # what was lost is counted too when the kills had to end early
            try:
                part(plan, stand, result)
            except Stuck as error:
                result.problems.append(str(error))
                words = (f"the last that {name} said: {stand.last_words(name)}" for name in ("connector", "lander-1"))
                result.problems += words
        result.problems += stand.ended
    slow = [kill for kill in result.kills if kill.recovered_s > plan.within_s]
    result.problems += [f"not recovered within {plan.within_s:g} s: {kill}" for kill in slow]
    result.problems += [f"not as the source: {table}" for table in result.tables if not table.is_right]
    return result


def _rounds(plan: Plan, stand: Stand, result: Result) -> None:
    rng, began, number = Random(plan.seed), time.monotonic(), 0
    lake = Lake(stand.home / "lake")
    while len(result.kills) < plan.kills:
        time.sleep(rng.uniform(0, plan.gap_s))
        stand.expect_alive()
        count = 2 if rng.random() < _SECOND_KILL and plan.kills - len(result.kills) > 1 else 1
        victims, killed_at = _chosen(rng, [each for each in stand.victims if each.startswith(plan.only)], count), []
        for place, victim in enumerate(victims):
            time.sleep(rng.uniform(0, 1) if place else 0)
            killed_at.append(time.monotonic())
            stand.kill(victim)
        for victim in victims:
            stand.revive(victim)
        _await_markers(plan, stand, lake, number)
        for victim, at in zip(victims, killed_at, strict=True):
            kill = Kill(len(result.kills) + 1, victim, at - began, time.monotonic() - at)
            result.kills.append(kill)
            say([str(kill)])
        number += 1


def _chosen(rng: Random, victims: Sequence[str], count: int) -> list[str]:
    """Different ones, the processes more often than the servers."""
    left = list(victims)
    chosen: list[str] = []
    for _ in range(min(count, len(left))):
        weights = [_WEIGHTS[name.partition("-")[0]] for name in left]
        chosen.append(left.pop(rng.choices(range(len(left)), weights)[0]))
    return chosen


def _await_markers(plan: Plan, stand: Stand, lake: Lake, number: int) -> None:
    first, last = stand.mark(number)
    customers = raw("shop", "customers")
    query = f"SELECT count(DISTINCT customer_id) FROM {quoted(customers)} WHERE customer_id BETWEEN {first} AND {last}"

    def landed() -> bool:
        stand.expect_alive()
        if not lake.exists(customers):
            return False
        with lake.connect([customers]) as db:
            return bool(db.sql(query).fetchall()[0][0] == MARKERS)

    what = f"rows {first} to {last} of customers, written after the kills, have landed"
    wait_until(landed, what, plan.patience_s, every_s=0.2)


def _close(plan: Plan, stand: Stand, result: Result) -> None:
    """The shop stops; the stream catches up as it runs; then it stops, and is compared once more when all is still."""
    if (code := stand.stop("shop")) != 0:
        result.problems.append(f"the shop ended with exit code {code}: {stand.last_words('shop')}")
    lake = Lake(stand.home / "lake")

    def equal() -> bool:
        stand.expect_alive()
        return all(table.missing == table.surplus == 0 for table in judge(stand.url, lake, stand.catalog))

    try:
        say([f"caught_up_s {wait_until(equal, 'the lake is as the source', plan.patience_s, every_s=0.5):.2f}"])
    except Stuck as error:
        result.problems.append(str(error))
    running = list(stand.processes)
    codes = {name: stand.stop(name) for name in running} | {n: stand.finish(n) for n in ("connector", "lander-1")}
    result.problems += [f"{name} ended with exit code {code}" for name, code in codes.items() if code]
    result.tables = judge(stand.url, lake, stand.catalog)


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.random_kills", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--database", choices=("postgresql", "mariadb"), default="postgresql")
    parser.add_argument("--log", choices=("kafka", "embedded"), default="kafka")
    parser.add_argument("--landers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=200, help="rows a second that the shop writes")
    parser.add_argument("--gap", type=float, default=3.0, dest="gap_s", help="longest quiet time between rounds, in s")
    parser.add_argument("--within", type=float, default=30.0, dest="within_s", help="bound of a recovery, in s")
    parser.add_argument("--only", default="", help="kill only these: connector, lander, database or broker")
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="break the code, to see this fail")
    plan = Plan(**vars(parser.parse_args(arguments)))
    say([str(plan)])
    with tempfile.TemporaryDirectory(prefix="headwater-kills-") as directory:
        Path(directory).chmod(0o755)  # the database's own account has to get through
        result = play(plan, Path(directory))
    say([*(f"table {table}" for table in result.tables), *result.problems, str(result)])
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
