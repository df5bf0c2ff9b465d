"""What has to be installed for each server: which programs, and the Debian packages that have them.

`ensure` installs what is missing as root or through a sudo that asks for no password, and otherwise says the one
command that does. Installing starts no server: they would take the default ports.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headwater.stack import kafka, mariadb, postgresql
from headwater.stack.errors import MissingPrograms
from headwater.stack.java import LOWEST_VERSION, find_java
from headwater.stack.maven import cache_dir

__all__ = ["NEEDS", "Need", "ensure", "install_command", "missing"]

# Debian's tools ask policy-rc.d whether an installed service may be started; a policy that is there already is kept.
_INSTALL = """
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\\nexit 101\\n' >"$policy"
    chmod 755 "$policy"
fi
apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=600 "$@"
"""


@dataclass(frozen=True)
class Need:
    """Programs that a server needs, and the packages that have them: the first one that the machine's lists know."""

    programs: str
    packages: tuple[str, ...]
    is_there: Callable[[], bool]


def _on_path(*programs: str) -> Callable[[], bool]:
    return lambda: all(shutil.which(program) for program in programs)


def _found(*lookups: Callable[[], object]) -> Callable[[], bool]:
    def is_there() -> bool:
        try:
            return all(lookup() for lookup in lookups)
        except MissingPrograms:
            return False

    return is_there


_OPENSSL = Need("openssl", ("openssl",), _on_path("openssl"))
NEEDS: dict[str, tuple[Need, ...]] = {
    "postgresql": (Need("initdb, postgres", ("postgresql",), _found(postgresql.bin_dir)), _OPENSSL),
    "mariadb": (
        Need(
            "mariadbd, mariadb-install-db",
            ("mariadb-server",),
            _found(lambda: mariadb.program("mariadbd"), lambda: mariadb.program("mariadb-install-db")),
        ),
        _OPENSSL,
    ),
    "kafka": (
        Need(
            f"java {LOWEST_VERSION} or newer",
            ("openjdk-21-jre-headless", "openjdk-17-jre-headless", "default-jre-headless"),
            lambda: find_java() is not None,
        ),
        Need("mvn", ("maven",), lambda: kafka.is_fetched() or shutil.which("mvn") is not None),
    ),
    "redis": (Need("redis-server", ("redis-server",), _on_path("redis-server")),),
}


def missing(*servers: str) -> tuple[Need, ...]:
    """What these servers need and is not there; empty when all can be started."""
    wanted = dict.fromkeys(need for server in servers for need in NEEDS[server])
    return tuple(need for need in wanted if not need.is_there())


def ensure(*servers: str, say: Callable[[str], None] = lambda line: None) -> None:
    """Install what these servers need and is not there. Raises MissingPrograms with what to do instead.

    One process at a time: the others find that it is there.
    """
    if not missing(*servers):
        return
    with (cache_dir() / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if needs := missing(*servers):
            _install(servers, needs, say)


def _install(servers: Sequence[str], needs: Sequence[Need], say: Callable[[str], None]) -> None:
    become = _become_root()
    if become is None or shutil.which("apt-get") is None:
        raise MissingPrograms(_told(needs))
    say(f"installing {', '.join(need.programs for need in needs)}")
    updated = subprocess.run([*become, "apt-get", "update", "-q"], capture_output=True, text=True)
    packages = _packages(needs)
    done = subprocess.run([*become, "sh", "-eu", "-c", _INSTALL, "sh", *packages], capture_output=True, text=True)
    if done.returncode or missing(*servers):
        said = (updated.stderr + done.stderr)[-2000:].strip()
        raise MissingPrograms(f"tried apt-get install {' '.join(packages)}, found exit code {done.returncode}: {said}")


def install_command(needs: Sequence[Need]) -> str:
    """The one line that installs them on Debian or Ubuntu."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get update && {sudo}apt-get install -y {' '.join(_packages(needs))}"


def _told(needs: Sequence[Need]) -> str:
    programs = ", ".join(need.programs for need in needs)
    if shutil.which("apt-get") is None:
        return f"not installed: {programs}; there is no apt-get here: install them with this machine's package manager"
    return f"not installed: {programs}; run: {install_command(needs)}"


def _packages(needs: Sequence[Need]) -> list[str]:
    return list(dict.fromkeys(_known(need.packages) for need in needs))


def _known(packages: Sequence[str]) -> str:
    """The first that can be installed; the last when none can, also where no list was ever fetched."""
    return next((name for name in packages[:-1] if _has_candidate(name)), packages[-1])


def _has_candidate(package: str) -> bool:
    """Names that only other packages mention are known too, but have no candidate."""
    policy = subprocess.run(["apt-cache", "policy", package], capture_output=True, text=True).stdout
    return "Candidate:" in policy and "Candidate: (none)" not in policy


def _become_root() -> list[str] | None:
    """What a command has to begin with to run as root; None when we may not."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True).returncode == 0:
        return [sudo, "-n"]
    return None
