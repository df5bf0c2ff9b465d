"""Whether a run that a sensor asked for is still going on: two runs must not write the same tables at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

__all__ = ["CAUSE", "CAUSE_ID", "MODEL", "TRIGGER", "run_in_progress"]

# Tags of the runs that sensors ask for. Assets look at CAUSE_ID: a cause rebuilds a model although no input changed.
TRIGGER = "headwater/trigger"
MODEL = "headwater/model"
CAUSE = "headwater/cause"
CAUSE_ID = "headwater/cause_id"

# A run whose process was killed keeps its status for ever; after this long it no longer holds others back.
_GIVE_UP_AFTER = timedelta(hours=2)
_UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


def run_in_progress(instance: DagsterInstance) -> dg.DagsterRun | None:
    """An unfinished run that a sensor of ours asked for, or None."""
    runs = instance.get_runs(
        filters=RunsFilter(
            tags={TRIGGER: ["changes", "drift"]},
            statuses=_UNFINISHED,
            created_after=datetime.now(UTC) - _GIVE_UP_AFTER,
        ),
        limit=1,
    )
    return runs[0] if runs else None
