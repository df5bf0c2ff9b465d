"""Runs whose process was killed: Dagster's storage would show them as started for ever.

A run holds a lock file of its own below HEADWATER_HOME while its process lives, and names it in its tags. The operating
system releases the lock when the process ends, however it ends; so whoever can take it knows, without guessing from
process ids or times, that nobody works on that run any more. Runs without such a tag or file are left alone.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter

from headwater.output import say

__all__ = ["LOCK_TAG", "PID_TAG", "close_abandoned", "process_tags"]

LOCK_TAG = "headwater/lock"
PID_TAG = "headwater/pid"
_UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


@contextmanager
def process_tags(instance: DagsterInstance, locks_dir: Path) -> Iterator[dict[str, str]]:
    """The tags that a run of this process must carry; before, the runs of processes that were killed are closed."""
    for run in close_abandoned(instance, locks_dir):
        say(f"headwater: run {run.run_id} was killed in the middle; it is marked as failed")
    name = f"run-{uuid.uuid4().hex}.lock"
    draft = locks_dir / f".{name}"
    with draft.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        draft.rename(locks_dir / name)  # nobody sees it without its lock
        yield {LOCK_TAG: name, PID_TAG: str(os.getpid())}
        (locks_dir / name).unlink()


def close_abandoned(instance: DagsterInstance, locks_dir: Path) -> list[DagsterRun]:
    """Mark as failed what killed processes have left unfinished; returns those runs as they were."""
    locks_dir.mkdir(parents=True, exist_ok=True)
    return [run for path in sorted(locks_dir.glob("run-*.lock")) for run in _close(instance, path)]


def _close(instance: DagsterInstance, path: Path) -> Iterator[DagsterRun]:
    """The unfinished run of a lock file that nobody holds; the file is removed."""
    try:
        file = path.open()
    except FileNotFoundError:  # its run has just ended
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        # Asked for only now: until its process ended, the run may have finished.
        for run in instance.get_runs(RunsFilter(tags={LOCK_TAG: path.name}, statuses=_UNFINISHED)):
            instance.report_run_failed(run, f"process {run.tags.get(PID_TAG)} was killed in the middle of this run")
            yield run
        path.unlink(missing_ok=True)
