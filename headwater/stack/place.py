"""Where a server's files lie and whose they are: its directory, its own home in it, its account, ports and passwords.

As root a database server runs under its package's account, which has to reach its files: where the directory lies below
one that the account may not enter, the home is made elsewhere and the directory has a link to it. What is temporary
stays below the system's temporary directory; all else goes below /var/lib/headwater.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import random
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from headwater.stack.errors import CommandFailed, NoPlace, PortTaken

__all__ = [
    "HOST",
    "Account",
    "Place",
    "account_of",
    "expect_free",
    "free_ports",
    "locked",
    "make_place",
    "password_in",
    "remove_place",
]

HOST = "127.0.0.1"
_STATE = Path("/var/lib/headwater")
# Ports below the range from which the kernel takes source ports: in it, a client that tries again and again to reach a
# stopped server can be given the server's own port, connects to itself, and the server cannot start any more.
_LOWEST_PORT, _HIGHEST_PORT = 10_000, 32_767


@dataclass(frozen=True)
class Account:
    """Who a server runs as."""

    name: str
    uid: int
    gid: int

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command has to begin with to run under this account, in the same process."""
        return ("setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", "--")


@dataclass(frozen=True)
class Place:
    """A server's files. `directory` is ours (record, log, passwords), `home` the server's own."""

    directory: Path
    home: Path
    account: Account | None

    def give(self, path: Path) -> Path:
        """The same path, once the server's account owns it."""
        if self.account:
            os.chown(path, self.account.uid, self.account.gid)
        return path

    def run(self, command: list[str]) -> None:
        """Run a command as the server's account, in its home. Raises CommandFailed with what it said."""
        become = [*(self.account.prefix if self.account else ()), *command]
        done = subprocess.run(become, cwd=self.home, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            said = (done.stderr or done.stdout)[-2000:].strip()
            raise CommandFailed(f"tried {command[0]}, found exit code {done.returncode}: {said}")


def account_of(name: str | None) -> Account | None:
    """That account when we are root, else None: who is not root runs servers as itself. KeyError: no such account."""
    if name is None or os.geteuid() != 0:
        return None
    entry = pwd.getpwnam(name)
    return Account(name, entry.pw_uid, entry.pw_gid)


def make_place(directory: Path, account: Account | None) -> Place:
    """The directory with its home, made if missing. Raises NoPlace."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o711 if account else 0o700)  # the account passes through it to its home
    home = directory / "home"
    place = Place(directory, home, account)
    if home.is_symlink() and not home.exists():  # emptied temporary directory, or moved from another machine
        home.unlink()
    if not home.exists():
        if account is None or _can_enter(account, directory):
            home.mkdir(mode=0o700)
        else:
            home.symlink_to(_elsewhere(directory, account))
        place.give(home)
    return Place(directory, home.resolve(), account)


def remove_place(directory: Path) -> None:
    """Delete the directory and the home that it links to."""
    home = directory / "home"
    if home.is_symlink() and home.exists():
        shutil.rmtree(home.resolve())
    if directory.exists():
        shutil.rmtree(directory)


def _can_enter(account: Account, directory: Path) -> bool:
    return subprocess.run([*account.prefix, "test", "-x", str(directory)], capture_output=True).returncode == 0


def _elsewhere(directory: Path, account: Account) -> Path:
    temporary = [Path(tempfile.gettempdir()), Path("/tmp")]
    is_temporary = any(directory.resolve().is_relative_to(top.resolve()) for top in temporary)
    for top in temporary if is_temporary else [_STATE]:
        top.mkdir(mode=0o755, parents=True, exist_ok=True)
        if _can_enter(account, top):
            return Path(tempfile.mkdtemp(prefix=f"headwater-{directory.name}-", dir=top))
    raise NoPlace(
        f"tried {directory} for {account.name}, found that this account may not enter it, nor a substitute: set "
        "HEADWATER_HOME to a directory that it may enter"
    )


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One starts or stops the server of a directory at a time; the next one waits."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def free_ports(count: int) -> tuple[int, ...]:
    """So many different ports of the loopback interface that nobody listens on."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randint(_LOWEST_PORT, _HIGHEST_PORT)
        if _is_free(port):
            found.add(port)
    return tuple(found)


def expect_free(port: int, server: str) -> None:
    """Raises PortTaken."""
    if not _is_free(port):
        raise PortTaken(f"{server}: tried port {port}, found that another process listens there: stop it")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger are no listener
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def password_in(path: Path) -> str:
    """The password in that file, which only we may read; generated when the file is not there."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            handle.write(secrets.token_hex(16))
    return path.read_text().strip()
