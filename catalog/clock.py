"""One clock. Every business decision (online features, freshness, mature labels, TTL, cooldowns) asks it.

A live source runs on the wall clock. A replayed file runs on its own time: now is the instant of the last event that
the replay has emitted, unless `HEADWATER_NOW` fixes it. Instants are naive datetimes in UTC, microsecond precision.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

__all__ = ["Clock", "ClockError", "DamagedClockError", "FixedClock", "ReplayClock", "WallClock", "parse_instant"]


class ClockError(RuntimeError):
    """The replay has not emitted anything yet, so there is no now."""


class DamagedClockError(ClockError):
    """What the replay kept about itself cannot be read."""

    def __init__(self, path: Path, found: object) -> None:
        super().__init__(
            f"{path}: tried to read where the replay is, found {found}; move the file away and run `headwater run`: it "
            "continues from what is in the change log"
        )


class Clock(Protocol):
    """Anything that tells the business instant."""

    def now(self) -> datetime:
        """The present instant: naive UTC."""


@dataclass(frozen=True)
class WallClock:
    """The system's time: for a live source."""

    def now(self) -> datetime:
        return datetime.now(UTC).replace(tzinfo=None)


@dataclass(frozen=True)
class FixedClock:
    """An instant that does not move (`HEADWATER_NOW`, tests)."""

    instant: datetime

    def now(self) -> datetime:
        return self.instant


@dataclass(frozen=True)
class ReplayClock:
    """The instant of the last event that a replay emitted, which the replay keeps in `path` (JSON, `last_event_at`)."""

    path: Path

    def now(self) -> datetime:
        try:
            return datetime.fromisoformat(json.loads(self.path.read_text())["last_event_at"])
        except FileNotFoundError:
            raise ClockError(
                f"no replay has run in {self.path.parent}: run `headwater run` first, or set HEADWATER_NOW"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedClockError(self.path, repr(error)) from None


def parse_instant(text: str) -> datetime:
    """Read an ISO 8601 instant into naive UTC; without an offset it is taken as UTC. Raises ValueError."""
    instant = datetime.fromisoformat(text)
    return instant.astimezone(UTC).replace(tzinfo=None) if instant.tzinfo else instant
