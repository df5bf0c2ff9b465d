"""`headwater run`: materialise the graph in this process with progress, then write and show the summary."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Set as AbstractSet
from typing import Any

from catalog.settings import Settings
from headwater.progress import Progress

__all__ = ["SelectionError", "dagster_instance", "run"]

_DAGSTER_YAML = """# Written by headwater. Runs, events and schedules are kept beside this file.
telemetry:
  enabled: false
"""


class SelectionError(ValueError):
    """`--select` cannot be read, or selects nothing."""


def dagster_instance(settings: Settings) -> Any:
    """The Dagster instance below HEADWATER_HOME, the one that `headwater dev` shows."""
    import dagster as dg

    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    config = settings.dagster_home / "dagster.yaml"
    if not config.exists():
        config.write_text(_DAGSTER_YAML)
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)  # what a step starts (dbt) inherits it
    return dg.DagsterInstance.from_config(str(settings.dagster_home))


def run(settings: Settings, *, full: bool = False, select: str | None = None) -> int:
    """Materialise everything that changed (`full`: everything; `select`: a Dagster asset selection).

    `settings` are those of this process's environment, from which the code location was built.

    Returns the exit code: 0 when every step and blocking check passed, else 1. Raises SelectionError.
    """
    started, cpu_started = time.perf_counter(), _cpu_seconds()
    from assets.build import FULL_TAG
    from catalog.load import load_catalog
    from definitions import defs

    catalog = load_catalog(settings.catalog)
    job = defs.resolve_implicit_global_asset_job_def()
    if select is not None:
        job = job.get_subset(asset_selection=_selected(defs, select))
    progress = Progress(_say, total=len(job.graph.node_dict))
    _attach(progress)
    _say(f"headwater: {'the whole graph' if full else 'what changed'}, into {settings.home}")
    with dagster_instance(settings) as instance:
        result = job.execute_in_process(
            instance=instance,
            raise_on_error=False,
            run_config={"loggers": {"progress": {}}},
            tags={FULL_TAG: "true"} if full else {},
        )
    from headwater.summary import show, summarise, write

    used = {
        "wall_s": round(time.perf_counter() - started, 2),
        "cpu_s": round(_cpu_seconds() - cpu_started, 2),
        "peak_rss_mb": round(_peak_rss_mb(), 1),
    }
    summary = summarise(settings, catalog, result, used)
    write(settings, summary)
    show(settings, catalog, summary, progress.failures)
    return 0 if result.success else 1


def _selected(defs: Any, select: str) -> AbstractSet[Any]:
    """The asset keys of a selection, with those that the same step makes. Raises SelectionError."""
    import dagster as dg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # of Dagster's own parser, about parameters that it sets
        try:
            chosen = dg.AssetSelection.from_string(select).required_multi_asset_neighbors()
            keys: AbstractSet[Any] = chosen.resolve(defs.resolve_asset_graph())
        except dg.DagsterError as error:
            raise SelectionError(
                f"--select: found {select!r}, allowed is Dagster's selection syntax: {error}"
            ) from error
    if not keys:
        # Dagster takes an empty subset for "everything".
        raise SelectionError(f"--select: found no asset that matches {select!r}; `dagster asset list -m definitions`")
    return keys


def _attach(progress: Progress) -> None:
    """Dagster's `progress` logger (see definitions.py) writes to this Python logger."""
    logger = logging.getLogger("headwater.progress")
    logger.handlers[:] = [progress]
    logger.propagate = False


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def _peak_rss_mb() -> float:
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
