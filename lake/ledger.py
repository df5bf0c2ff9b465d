"""The build ledger: what each asset was last built from, so that a run rebuilds only what changed.

A fingerprint digests everything that an output depends on (code version, versions of its inputs, settings that matter).
`unchanged` is true when the last completed build had the same one; the record is written after the output, so a crash
in between rebuilds, never skips.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Build", "Ledger", "fingerprint"]


def fingerprint(parts: Mapping[str, Any]) -> str:
    """A digest of named parts; each must be JSON-serialisable."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Build:
    """The last completed build of one thing: its fingerprint and what it reported."""

    fingerprint: str
    outcome: Mapping[str, Any]


@dataclass(frozen=True)
class Ledger:
    """Builds by name in a SQLite file."""

    path: Path

    def last(self, name: str) -> Build | None:
        """The last completed build, or None."""
        with closing(self._open()) as db:
            row = db.execute("SELECT fingerprint, outcome FROM builds WHERE name = ?", (name,)).fetchone()
        return Build(row[0], json.loads(row[1])) if row else None

    def unchanged(self, name: str, fingerprint: str) -> Build | None:
        """The last build when it had this very fingerprint, else None."""
        build = self.last(name)
        return build if build and build.fingerprint == fingerprint else None

    def record(self, name: str, fingerprint: str, outcome: Mapping[str, Any]) -> None:
        """Write down a completed build."""
        with closing(self._open()) as db, db:
            db.execute(
                "INSERT OR REPLACE INTO builds (name, fingerprint, outcome) VALUES (?, ?, ?)",
                (name, fingerprint, json.dumps(outcome, default=str)),
            )

    def forget(self, name: str) -> None:
        """The next build of `name` is a full one."""
        with closing(self._open()) as db, db:
            db.execute("DELETE FROM builds WHERE name = ?", (name,))

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, timeout=30)
        db.execute("CREATE TABLE IF NOT EXISTS builds (name TEXT PRIMARY KEY, fingerprint TEXT, outcome TEXT)")
        return db
