"""Runs whose process was killed are closed by the next run; those of processes that live are left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterInstance, DagsterRunStatus
from homes import PROJECT

from catalog.settings import load_settings
from headwater.abandoned import LOCK_TAG, close_abandoned, process_tags
from headwater.run import dagster_instance

WORKER = """
import sys
from pathlib import Path
import dagster as dg
from headwater.abandoned import process_tags

@dg.job
def work(): ...

with dg.DagsterInstance.from_config(sys.argv[1]) as instance, process_tags(instance, Path(sys.argv[2])) as tags:
    run = instance.create_run_for_job(work, tags=tags, status=dg.DagsterRunStatus.STARTED)
    print(run.run_id, flush=True)
    sys.stdin.readline()
    instance.report_run_canceled(run)
"""


@dg.job
def work() -> None:
    """A run to be unfinished."""


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", "")  # put back at the end: making an instance sets it
    with dagster_instance(load_settings({"HEADWATER_HOME": str(tmp_path)})) as instance:
        yield instance


@contextmanager
def worker(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process in the middle of a run, and the run's id."""
    command = [sys.executable, "-c", WORKER, str(home / "dagster"), str(home / "locks")]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        assert run_id, "the worker did not start"
        yield process, run_id


def status(instance: DagsterInstance, run_id: str) -> DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_run_is_closed_once_its_process_was_killed_and_not_before(instance: DagsterInstance, tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    with worker(tmp_path) as (killed, run_id), worker(tmp_path) as (living, other_id):
        assert close_abandoned(instance, locks) == []
        assert status(instance, run_id) is DagsterRunStatus.STARTED
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        (closed,) = close_abandoned(instance, locks)
        assert (closed.run_id, closed.tags["headwater/pid"]) == (run_id, str(killed.pid))
        assert status(instance, run_id) is DagsterRunStatus.FAILURE
        messages = [entry.user_message or entry.message for entry in instance.all_logs(run_id)]
        assert any(f"process {killed.pid} was killed in the middle of this run" in message for message in messages)
        assert close_abandoned(instance, locks) == []
        assert status(instance, other_id) is DagsterRunStatus.STARTED
        living.communicate("end\n")
    assert status(instance, other_id) is DagsterRunStatus.CANCELED
    assert list(locks.iterdir()) == []


def test_nothing_is_concluded_without_a_tag_or_a_file(instance: DagsterInstance, tmp_path: Path) -> None:
    runs = [
        instance.create_run_for_job(work, tags=tags, status=DagsterRunStatus.STARTED)
        for tags in ({}, {LOCK_TAG: "run-gone.lock"})
    ]
    assert close_abandoned(instance, tmp_path / "locks") == []
    assert {status(instance, run.run_id) for run in runs} == {DagsterRunStatus.STARTED}


def test_a_run_that_ended_by_an_error_leaves_nothing_for_long(instance: DagsterInstance, tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    with pytest.raises(ZeroDivisionError), process_tags(instance, locks) as tags:
        raise ZeroDivisionError
    assert [file.name for file in locks.iterdir()] == [tags[LOCK_TAG]]
    with process_tags(instance, locks) as tags:
        assert [file.name for file in locks.iterdir()] == [tags[LOCK_TAG]]
    assert list(locks.iterdir()) == []
