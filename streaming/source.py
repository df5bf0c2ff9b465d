"""Where changes come from: the database that HEADWATER_SHOP_URL names, else a replay of the retail file, else of the
simulated shop.

A file is read once, then from a cache: its normalised lines as parquet below `HEADWATER_HOME/source`, named by a digest
of what they came from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.keys import cdc_topic
from catalog.load import Catalog
from catalog.settings import Settings
from streaming.log import ChangeLog
from streaming.replay import replay
from streaming.retail import NOTES, read_retail
from streaming.simulator import simulate

__all__ = ["Advance", "advance", "source_lines"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Advance:
    """`appended`: records that the log has got, by topic; `ends`: each topic's ends by partition.

    `now`: the business instant; None while nothing has happened.
    """

    appended: Mapping[str, int]
    ends: Mapping[str, tuple[int, ...]]
    now: datetime | None


def advance(settings: Settings, catalog: Catalog, log: ChangeLog) -> Advance:
    """Bring the change log up to what the sources have by now.

    Raises RetailFileError, ReplayError, DamagedClockError; for a database CaptureError; LogError.
    """
    topics = [cdc_topic(source.system, source.table) for source in catalog.sources]
    before = _ends(log, topics)
    if settings.shop_url is None:
        now = replay(source_lines(settings), log, settings.replay_path, until=settings.now).last_event_at
    else:
        _capture(settings, {source.system for source in catalog.sources})
        now = settings.clock().now()
    ends = _ends(log, topics)
    return Advance({topic: sum(ends[topic]) - sum(before[topic]) for topic in topics}, ends, now)


def _capture(settings: Settings, systems: set[str]) -> None:
    from streaming.capture.engine import Options
    from streaming.capture.service import AlreadyRunning, capture

    for system in sorted(systems):
        try:
            capture(settings, system, Options(), threading.Event(), _LOG.info, once=True)
        except AlreadyRunning as error:
            _LOG.info("%s: it captures what there is", error)


def _ends(log: ChangeLog, topics: list[str]) -> dict[str, tuple[int, ...]]:
    partitions = {topic: log.partitions(topic) for topic in topics}
    ends = log.ends([one for each in partitions.values() for one in each])
    return {topic: tuple(ends[one] for one in each) for topic, each in partitions.items()}


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
