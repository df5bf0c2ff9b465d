"""What `headwater dev` does when one of its processes ends, with small processes in the place of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from homes import wait_for

from headwater.dev import Service, pause_s, supervise

# Each writes its process id. The server leaves a child behind that does not hear SIGINT: a shell's background job.
WAITS = 'echo $$ >>"$0"; exec sleep 600'
HALTS = 'echo $$ >>"$0"; exit 1'
SERVES = 'trap "exit 0" INT; sleep 600 & echo $! >>"$0"; echo $$ >>"$0"; wait'


def service(record: Path, script: str, by_hand: str = "") -> Service:
    return Service(record.name, "here", ("sh", "-c", script, str(record)), by_hand=by_hand)


def pids(record: Path, count: int) -> list[int]:
    def read() -> list[int] | None:
        lines = record.read_text().splitlines() if record.exists() else []
        return [int(line) for line in lines] if len(lines) >= count else None

    return wait_for(f"{count} processes of {record.name}", read, within_s=60, every_s=0.05)


def alive(pid: int) -> bool:
    """A zombie has ended; who started it has not looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@contextmanager
def supervised(*wanted: Service) -> Iterator[tuple[threading.Event, Future[int]]]:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        ends = pool.submit(supervise, wanted, os.environ, stop.is_set, patience_s=0.5)
        try:
            yield stop, ends
        finally:
            stop.set()


def test_what_is_killed_starts_again_what_halts_is_said_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    connector, lander, server = tmp_path / "Connector", tmp_path / "Lander", tmp_path / "Server"
    with supervised(
        service(connector, WAITS, "headwater capture shop"),
        service(lander, HALTS, "headwater land"),
        service(server, SERVES),
    ) as (stop, ends):
        (first,) = pids(connector, 1)
        os.kill(first, signal.SIGKILL)
        _, second = pids(connector, 2)
        os.kill(second, signal.SIGKILL)
        *_, third = pids(connector, 3)
        assert alive(third)
        assert all(alive(pid) for pid in pids(server, 2))
        stop.set()
        assert ends.result(30) == 0
    assert len(pids(connector, 1)) == 3
    assert len(pids(lander, 1)) == 1
    assert len(pids(server, 1)) == 2
    assert not [pid for record in (connector, lander, server) for pid in pids(record, 1) if alive(pid)]
    said = capsys.readouterr().err
    assert "Connector was killed by signal 9; it starts again in 1 s" in said
    assert "Connector was killed by signal 9; it starts again in 2 s" in said
    assert "Lander ended with exit code 1, its last lines say why; the rest goes on" in said
    assert "`headwater land` starts it again" in said


def test_a_server_that_ends_ends_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connector, server = tmp_path / "Connector", tmp_path / "Server"
    with supervised(service(connector, WAITS, "headwater capture shop"), service(server, SERVES)) as (_, ends):
        left, leader = pids(server, 2)
        os.kill(leader, signal.SIGKILL)
        assert ends.result(30) == 1
    assert not [pid for pid in (left, leader, *pids(connector, 1)) if alive(pid)]
    assert "Server ended with exit code -9" in capsys.readouterr().err


def test_the_pause_grows_to_a_minute() -> None:
    assert [pause_s(deaths) for deaths in (1, 2, 3, 6, 7, 10_000)] == [1, 2, 4, 32, 60, 60]
