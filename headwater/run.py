"""`headwater run`: materialise the graph in this process with progress, then write and show the summary."""

from __future__ import annotations

import logging
import os
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

    Returns the exit code: 0 when every step and blocking check passed, else 1. Raises SelectionError, CatalogError
    (before anything starts).
    """
    started = time.perf_counter()
    from headwater.check import require_sound

    require_sound(settings)
    from assets.build import FULL_TAG
    from catalog.load import load_catalog
    from definitions import defs
    from headwater.abandoned import process_tags
    from resources.summary import summarise, used, write

    catalog = load_catalog(settings.catalog)
    job = defs.resolve_implicit_global_asset_job_def()
    if select is not None:
        job = job.get_subset(asset_selection=_selected(defs, select))
    progress = Progress(_say, total=len(job.graph.node_dict))
    _attach(progress)
    _say(f"headwater: {'the whole graph' if full else 'what changed'}, into {settings.home}")
    with dagster_instance(settings) as instance, process_tags(instance, settings.locks_dir) as tags:
        result = job.execute_in_process(
            instance=instance,
            raise_on_error=False,
            run_config={"loggers": {"progress": {}}},
            tags=tags | ({FULL_TAG: "true"} if full else {}),
        )
        found = summarise(settings, catalog, instance, result.run_id)
    from headwater.summary import show

    summary = {**found, **used(started)}
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
