"""Which shop is replayed: the retail file of the settings, else the simulated one. Reads it once, then from a cache.

The cache holds the normalised lines as parquet below `HEADWATER_HOME/source`, named by a digest of what they came from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.settings import Settings
from streaming.log import ChangeLog
from streaming.replay import ReplayReport, replay
from streaming.retail import NOTES, read_retail
from streaming.simulator import simulate

__all__ = ["replay_source", "source_lines"]

_LOG = logging.getLogger(__name__)


def replay_source(settings: Settings, log: ChangeLog) -> ReplayReport:
    """Bring the change log up to what the source has emitted by now. Raises RetailFileError, ReplayError."""
    return replay(source_lines(settings), log, settings.replay_path, until=settings.now)


def source_lines(settings: Settings) -> pa.Table:
    """The source's lines in `retail.LINE_SCHEMA`. Logs, each time, what was assumed to read them.

    Raises RetailFileError.
    """
    lines = _cached_lines(settings)
    if notes := (lines.schema.metadata or {}).get(NOTES):
        for note in notes.decode().splitlines():
            _LOG.warning("%s: %s", settings.retail_data, note)
    return lines


def _cached_lines(settings: Settings) -> pa.Table:
    if settings.retail_data is None:
        name = f"simulated-{settings.simulator_seed}-{settings.simulator_lines}"
    else:
        name = _digest(settings.retail_data)
    cached = settings.home / "source" / f"{name}-{_reader_version()}.parquet"
    if cached.exists():
        return pq.ParquetFile(cached).read()  # read_table would import pyarrow.dataset: a second
    cached.parent.mkdir(parents=True, exist_ok=True)
    lines = read_retail(settings.retail_data) if settings.retail_data else _simulated(settings, cached.parent)
    draft = cached.with_name(f".{cached.name}.{os.getpid()}")
    pq.write_table(lines, draft)
    draft.replace(cached)
    return lines


def _simulated(settings: Settings, directory: Path) -> pa.Table:
    """The simulated lines; what was planted in them is written beside the cache as truth.json."""
    simulation = simulate(settings.simulator_seed, settings.simulator_lines)
    (directory / "truth.json").write_text(json.dumps(asdict(simulation.truth), indent=1, default=str))
    return simulation.lines


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:32]


def _reader_version() -> str:
    """A cache that another version of the reader wrote is not used."""
    here = Path(__file__)
    files = [*sorted(here.parent.glob("retail*.py")), here.with_name("simulator.py"), here.with_name("change.py")]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:8]
