"""Places in a binary log: as one growing number, as what to resume from, as GTIDs.

A place is the number of the file above 40 bits of the position in it: it grows with every transaction, and survives
restarts of the server. Positions in the log's events have 32 bits; a file that one giant transaction has made longer
than 4 GiB is counted on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Gtid", "GtidState", "Resume", "extended", "file_number", "place"]

_POSITION_BITS = 40
_WRAP = 1 << 32
# What dump requests can name.
LARGEST_POSITION = _WRAP - 1


def file_number(name: str) -> int:
    """123 of `mariadb-bin.000123`."""
    return int(name.rpartition(".")[2])


def place(file: str, position: int) -> int:
    """One growing number for a place in the log."""
    return file_number(file) << _POSITION_BITS | position


def extended(low: int, before: int) -> int:
    """The position whose lowest 32 bits are `low`, at or after `before`."""
    found = before & ~(_WRAP - 1) | low
    return found if found >= before else found + _WRAP


@dataclass(frozen=True, order=True)
class Gtid:
    """MariaDB's transaction identifier: within a domain the sequence grows, whichever server wrote it."""

    domain: int
    server: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.domain}-{self.server}-{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> Gtid:
        domain, server, sequence = text.split("-")
        return cls(int(domain), int(server), int(sequence))


class GtidState:
    """The last transaction of each domain, as MariaDB writes it: `0-1-55,7-2-3`."""

    def __init__(self, gtids: Iterable[Gtid] = ()) -> None:
        self._last = {gtid.domain: gtid for gtid in gtids}
        self._text: str | None = None

    @classmethod
    def parse(cls, text: str) -> GtidState:
        return cls(Gtid.parse(part) for part in re.split(r"[,\s]+", text.strip()) if part)

    def add(self, gtid: Gtid) -> None:
        self._last[gtid.domain] = gtid
        self._text = None

    def before(self, gtid: Gtid) -> GtidState:
        """The state a transaction earlier, when the same server wrote the one before it too."""
        others = [last for last in self if last.domain != gtid.domain]
        earlier = [replace(gtid, sequence=gtid.sequence - 1)] if gtid.sequence > 1 else []
        return GtidState(others + earlier)

    def __getitem__(self, domain: int) -> Gtid | None:
        return self._last.get(domain)

    def __iter__(self) -> Iterator[Gtid]:
        return iter(self._last.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GtidState) and self._last == other._last

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        if self._text is None:
            self._text = ",".join(str(self._last[domain]) for domain in sorted(self._last))
        return self._text


@dataclass(frozen=True)
class Resume:
    """From where to go on: a boundary between transactions.

    `gtid`: the state there, and `before` the one a transaction earlier, for another server of the same history. `born`:
    when the file was begun, in seconds: one of that name that was begun at another time is not this file. `written`:
    when the last transaction was, in seconds. `server`: which one it was. `prepared`: XA transactions that are prepared
    and not ended yet, each with the file, start and end of its rows (no file: none of a captured table).
    """

    file: str
    pos: int
    gtid: str = ""
    before: str = ""
    born: int = 0
    written: int = 0
    server: str = ""
    prepared: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)

    def token(self) -> Mapping[str, Any]:
        """As JSON values, for the checkpoint."""
        token = {name: value for name, value in vars(self).items() if name != "prepared"}
        return {**token, "prepared": {xid: list(rows) for xid, rows in self.prepared.items()}}

    @classmethod
    def read(cls, token: Mapping[str, Any]) -> Resume:
        """From a checkpoint's token."""
        prepared = {xid: (str(file), int(start), int(end)) for xid, (file, start, end) in token["prepared"].items()}
        return cls(**{**token, "prepared": prepared})

    @property
    def place(self) -> int:
        return place(self.file, self.pos)
