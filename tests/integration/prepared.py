"""`headwater` in processes that are forked from one which has imported the large packages already.

A run imports for longer than it works on a small shop. Forked are packages only: what is ours is imported by each
process, under its own settings.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["headwater", "prepare"]

_PACKAGES = [
    "dagster",
    "dagster_dbt",
    "great_expectations",
    "feast",
    "mlflow",
    "sklearn.ensemble",
    "lightgbm",
    "evidently",
]
_context = multiprocessing.get_context("forkserver")
_prepared = False


def prepare() -> None:
    """From now on `headwater` can be used; the packages are imported when it first is."""
    global _prepared
    _context.set_forkserver_preload(_PACKAGES)
    _prepared = True


def headwater(
    arguments: Sequence[str], program: Path, cwd: Path, environment: Mapping[str, str], timeout_s: float
) -> tuple[int, str, str] | None:
    """Run it to its end: exit code, stdout, stderr. None without `prepare`. Raises TimeoutError."""
    if not _prepared:
        return None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = _context.Process(
            target=_headwater, args=([str(program), *arguments], str(cwd), dict(environment), str(out), str(err))
        )
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"headwater {' '.join(arguments)}: not at its end after {timeout_s:g} s")
        return process.exitcode, out.read_text(), err.read_text()


def _headwater(argv: list[str], cwd: str, environment: dict[str, str], out: str, err: str) -> None:
    """The console script, in this process."""
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv, sys.path = argv, [p for p in sys.path if "tests" not in Path(p).parts]
    from headwater.cli import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # what a process of multiprocessing leaves out
        sys.stdout.flush()
