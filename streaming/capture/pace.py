"""How far the log is behind the database: since when, and about how many rows."""

from __future__ import annotations

from streaming.capture.source import Retained

__all__ = ["Pace"]


class Pace:
    """What a connector knows of it from its looks at the server, some seconds apart.

    `level_us`: the last look, in microseconds since 1970, of which everything that the server had then is in the log;
    0 before there was one. `behind`: whether something of the last look is not, or there was none yet.
    """

    def __init__(self) -> None:
        self.level_us = 0
        self._awaited: tuple[int, int] | None = None

    @property
    def behind(self) -> bool:
        return self._awaited is not None or not self.level_us

    def look(self, server: Retained, position: int, now_us: int) -> None:
        """The server's log ends there now, and ours stands at `position`."""
        self.reach(position)
        if self._awaited is None:
            self._awaited = server.end, now_us
            self.reach(position)

    def reach(self, position: int) -> None:
        """Everything up to `position` is in the log."""
        if self._awaited is not None and position >= self._awaited[0]:
            self.level_us, self._awaited = self._awaited[1], None
