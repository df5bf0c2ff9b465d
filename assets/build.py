"""What makes every asset incremental: it is rebuilt only when what it depends on has changed.

An asset's fingerprint digests its code, the versions of its inputs and whatever else it names. When the ledger holds a
completed build with the same fingerprint, the asset reports that build again (version, metadata) and does no work; so
`dagster asset materialize --select '*'` over unchanged data takes seconds, whoever starts it. Two run tags override
this: `headwater/full` rebuilds everything, `headwater/cause_id` (set by the drift sensor) rebuilds what it selects.
"""

import hashlib
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg

from catalog.keys import Key
from lake.ledger import Build, Ledger, fingerprint
from resources.platform import Platform
from streaming.locks import exclusive

__all__ = ["CAUSE_TAG", "FULL_TAG", "Built", "Stopwatch", "build", "code_version", "forced", "last_version", "versions"]

FULL_TAG = "headwater/full"
CAUSE_TAG = "headwater/cause_id"
PROJECT = Path(__file__).resolve().parents[1]
_SOURCE_SUFFIXES = (".py", ".sql", ".yml", ".yaml")


@dataclass(frozen=True)
class Built:
    """What a build made: the version of its output and the numbers worth showing."""

    version: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@cache
def code_version(*parts: str) -> str:
    """A digest of the source below the given folders of the project (`streaming`, `dbt_project/models/marts`)."""
    digest = hashlib.sha256()
    for part in parts:
        root = PROJECT / part
        files = [root] if root.is_file() else sorted(f for f in root.rglob("*") if f.suffix in _SOURCE_SUFFIXES)
        for file in files:
            if "target" not in file.parts:
                digest.update(str(file.relative_to(PROJECT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def last_version(ledger: Ledger, key: Key) -> str | None:
    """The version of the asset's last completed build."""
    last = ledger.last(key.slashed)
    return str(last.outcome["version"]) if last else None


def versions(platform: Platform, keys: Iterable[Key]) -> dict[str, str | None]:
    """The versions of several assets' last builds, by key: what a downstream fingerprint is made of."""
    return {key.slashed: last_version(platform.ledger, key) for key in keys}


def forced(context: dg.AssetExecutionContext) -> bool:
    """Whether this run rebuilds what it selects although nothing has changed."""
    return FULL_TAG in context.run.tags or CAUSE_TAG in context.run.tags


class Stopwatch:
    """Wall and CPU seconds since it was made; CPU includes finished child processes (dbt runs as one)."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()

    def metadata(self) -> dict[str, float]:
        return {
            "wall_s": round(time.perf_counter() - self._wall, 3),
            "cpu_s": round(_cpu_seconds() - self._cpu, 3),
        }


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def build(
    context: dg.AssetExecutionContext,
    platform: Platform,
    key: Key,
    depends_on: Mapping[str, Any],
    make: Callable[[], Built],
) -> dg.MaterializeResult[Any]:
    """Make the asset, or report its last build when `depends_on` has not changed since."""
    watch = Stopwatch()
    wanted = fingerprint(depends_on)
    # Two runs may come here at once (a sensor's and a person's): the second finds what the first has made.
    with exclusive(platform.settings.locks_dir / f"{key.dotted}.lock"):
        last = None if forced(context) else platform.ledger.unchanged(key.slashed, wanted)
        if last:
            return _result(key, last, {"rebuilt": False, **watch.metadata()})
        made = make()
        outcome = {"version": made.version, "metadata": dict(made.metadata)}
        platform.ledger.record(key.slashed, wanted, outcome)
    return _result(key, Build(wanted, outcome), {"rebuilt": True, **watch.metadata()})


def _result(key: Key, built: Build, extra: Mapping[str, Any]) -> dg.MaterializeResult[Any]:
    return dg.MaterializeResult(
        asset_key=dg.AssetKey(key.path),
        metadata={**_rendered(built.outcome["metadata"]), **extra},
        data_version=dg.DataVersion(str(built.outcome["version"])),
    )


def _rendered(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata is kept in the ledger as JSON; a name's ending tells Dagster how to show it."""
    shown: dict[str, Any] = {}
    for name, value in metadata.items():
        if name.endswith("_md"):
            shown[name.removesuffix("_md")] = dg.MetadataValue.md(str(value))
        elif name.endswith("_path"):
            shown[name] = dg.MetadataValue.path(str(value))
        elif name == "rows":
            shown["dagster/row_count"] = dg.MetadataValue.int(int(value))
        elif value is not None:
            shown[name] = value
    return shown
