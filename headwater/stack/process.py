"""Processes that outlive who started them: start one, find it again, end it. What runs in it is not known here.

A process is recognised by its id, the tick at which it started and the boot in which that was: ids are reused, names
are shared, and a file with an id in it survives a crash.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from headwater.stack.place import Account

__all__ = ["Process", "find", "is_alive", "kill", "spawn", "terminate"]

# The shell writes who it is before it becomes the server, so that there is no moment at which a server runs that a
# killed starter has not recorded.
_RECORD_AND_BECOME = 'cat /proc/sys/kernel/random/boot_id "/proc/$$/stat" >"$0" && cd "$1" && shift && exec "$@"'
# What a shell may have set to ignored for its background jobs, and Python for itself, is inherited through exec.
_RESET = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ)
_POLL_S = 0.02


@dataclass(frozen=True)
class Process:
    """A process: its id and since when it has it (boot, and clock ticks since that boot)."""

    pid: int
    started: str


def spawn(
    command: Sequence[str],
    *,
    record: Path,
    log: Path,
    directory: Path,
    account: Account | None = None,
    environment: Mapping[str, str],
) -> Process:
    """Start `command` in a session of its own, in `directory`, under `account`; output is appended to `log`.

    Who it is stands in `record` before it runs, for `find`.
    """
    record.unlink(missing_ok=True)
    become = ["/bin/sh", "-c", _RECORD_AND_BECOME, str(record), str(directory)]
    become += [*(account.prefix if account else ()), *command]
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        pid = os.posix_spawn(
            become[0],
            become,
            dict(environment),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, out, 1),
                (os.POSIX_SPAWN_DUP2, out, 2),
            ],
            setsid=True,
            setsigdef=_RESET,
            setsigmask=(),
        )
    finally:
        os.close(out)
    return Process(pid, _since(pid) or "")


def find(record: Path) -> Process | None:
    """The process that was recorded there; None when it does not run any more."""
    try:
        boot, _, stat = record.read_text().partition("\n")
        process = Process(int(stat.split(maxsplit=1)[0]), f"{boot} {_start_tick(stat)}")
    except (FileNotFoundError, IndexError, ValueError):  # never started, or killed while it wrote the record
        return None
    return process if is_alive(process) else None


def is_alive(process: Process) -> bool:
    """Whether it runs. One that has ended but was not yet waited for does not; if it is ours, it is waited for."""
    with suppress(ChildProcessError):  # started by an earlier command of ours: init waits for it
        os.waitpid(process.pid, os.WNOHANG)
    return bool(process.started) and _since(process.pid) == process.started


def terminate(process: Process, signum: signal.Signals, within_s: float) -> bool:
    """Ask it to end; whether it did within that time."""
    if is_alive(process):
        os.kill(process.pid, signum)
    return _ended(process, within_s)


def kill(process: Process) -> None:
    """`kill -9` of it and of all that descend from it; returns when all are gone."""
    if not is_alive(process):
        return
    os.kill(process.pid, signal.SIGSTOP)  # or it would start new children while we count them
    family = [process, *_descendants(process.pid)]
    for member in family:
        if is_alive(member):
            os.kill(member.pid, signal.SIGKILL)
    for member in family:
        _ended(member, within_s=30)


def _ended(process: Process, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while is_alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _descendants(pid: int) -> list[Process]:
    try:
        children = [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    found = [Process(child, since) for child in children if (since := _since(child)) is not None]
    return found + [each for child in children for each in _descendants(child)]


def _since(pid: int) -> str | None:
    """Boot and tick at which a process started; None when there is none, or only its exit status is left.

    A process whose first thread has ended counts while it has others: until they end too its ports stay taken.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        if stat.rpartition(")")[2].split()[0] in "ZX" and len(list(Path(f"/proc/{pid}/task").iterdir())) <= 1:
            return None
    except (FileNotFoundError, ProcessLookupError):
        return None
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {_start_tick(stat)}"


def _start_tick(stat: str) -> int:
    """Field 22 of /proc/PID/stat; the name in field 2 may contain anything, also `)`."""
    return int(stat.rpartition(")")[2].split()[19])
