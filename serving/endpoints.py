"""Which package and which features answer right now: loaded once, watched, replaced whole, never taken away.

A watcher looks at `endpoints/<model>/current` and at the online store. When either changes it loads the new one beside
the old one and swaps one reference, so that a request sees either all of the old or all of the new. What cannot be
loaded is reported and the last good one goes on. Nothing here scores.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

__all__ = ["Refreshable", "Slot", "Watched", "Watcher", "stamp"]

logger = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")
# A refusal may pass (a file that is still being copied): look again after so many rounds even if nothing changed.
_RETRY_ROUNDS = 30


def stamp(paths: Iterable[Path]) -> tuple[tuple[str, int, int, int], ...]:
    """Changes when one of the files does: real path, inode, size and modification time; absent ones are left out."""
    found = []
    for path in paths:
        try:
            real = path.resolve()
            stat = real.stat()
        except OSError:
            continue
        found.append((str(real), stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


@dataclass(frozen=True)
class Slot(Generic[Loaded]):
    """What serves now (`loaded`, None before the first), and why the newest does not (`problem`, None when it does).

    `failures` counts refused loads. That nothing is there yet is a problem for who asks, not a failure.
    """

    loaded: Loaded | None = None
    problem: str | None = None
    failures: int = 0

    @property
    def stale(self) -> bool:
        """The newest was refused."""
        return self.problem is not None and (self.failures > 0 or self.loaded is not None)


class Watched(Generic[Loaded]):
    """One thing on disk and its last good loaded form.

    `files` gives what it is made of, `load` reads it or raises one of `errors`.
    """

    def __init__(
        self,
        name: str,
        files: Callable[[], Iterable[Path]],
        load: Callable[[], Loaded],
        errors: tuple[type[Exception], ...],
        describe: Callable[[Loaded], str] = str,
    ) -> None:
        self.name = name
        self._files = files
        self._load = load
        self._errors = errors
        self._describe = describe
        self._seen: object = None
        self._rounds_until_retry = 0
        self.slot: Slot[Loaded] = Slot()

    def refresh(self) -> bool:
        """Load again if what is on disk changed; True when something new serves."""
        seen = stamp(self._files())
        self._rounds_until_retry -= 1
        retry = self.slot.problem is not None and self._rounds_until_retry <= 0
        if seen == self._seen and not retry:
            return False
        self._seen, self._rounds_until_retry = seen, _RETRY_ROUNDS
        try:
            loaded = self._load()
        except self._errors as error:
            self._refused(str(error), absent=not seen)
            return False
        self.slot = Slot(loaded, None, self.slot.failures)
        logger.info("%s: %s", self.name, self._describe(loaded))
        return True

    def _refused(self, problem: str, absent: bool) -> None:
        if absent and self.slot.loaded is None:
            self.slot = Slot(None, problem)
            return
        if problem != self.slot.problem:
            goes_on = "the last good one goes on" if self.slot.loaded is not None else "nothing serves"
            logger.error("%s: %s; %s", self.name, problem, goes_on)
        self.slot = replace(self.slot, problem=problem, failures=self.slot.failures + 1)


class Refreshable(Protocol):
    """What a watcher watches."""

    def refresh(self) -> bool:
        """Look again; True when something new serves."""


class Watcher:
    """A thread that refreshes everything watched each `interval_s`."""

    def __init__(self, watched: Iterable[Refreshable], interval_s: float) -> None:
        self._watched = tuple(watched)
        self._interval_s = interval_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="endpoint-watcher", daemon=True)

    def start(self) -> None:
        """Begin watching."""
        self._thread.start()

    @property
    def stopped(self) -> bool:
        """Whether it ended by itself, by an error that no `Watched` expects: nothing new is picked up any more."""
        return self._thread.ident is not None and not self._thread.is_alive() and not self._closing.is_set()

    def close(self) -> None:
        """Stop and wait for the round in progress."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._interval_s):
            for watched in self._watched:
                watched.refresh()
