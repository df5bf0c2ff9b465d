"""The life that all servers share: start and wait until it answers, find again, stop, kill, restart, remove.

What differs between them (files, configuration, command, question) is a `Kind`, one in each server's module. A server's
directory remembers its ports and settings, so that it comes back as it was.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from headwater.stack.errors import MissingPrograms, StartFailed
from headwater.stack.place import (
    HOST,
    Place,
    account_of,
    expect_free,
    free_ports,
    locked,
    make_place,
    password_in,
    remove_place,
)
from headwater.stack.process import Process, find, is_alive, spawn, terminate
from headwater.stack.process import kill as kill_process

__all__ = ["Kind", "Plan", "Server", "find_server", "kill", "remove", "restart", "start_server", "stop"]

_ASK_EVERY_S = 0.05
_TAIL_BYTES = 3000


@dataclass(frozen=True)
class Plan:
    """What a kind needs to know to make, configure and command one server."""

    place: Place
    ports: tuple[int, ...]
    settings: Mapping[str, str]
    password: str = field(repr=False)


@dataclass(frozen=True)
class Kind:
    """One kind of server.

    `make` runs once in an empty home and leaves something that `is_made` recognises; `command` writes the configuration
    and returns the command line; `ask` is None once the server answered, else what it said instead.
    """

    name: str
    url: str
    account: str | None
    make: Callable[[Plan], None]
    is_made: Callable[[Place], bool]
    command: Callable[[Plan], Sequence[str]]
    ask: Callable[[Server], str | None]
    ports: int = 1
    stop_signal: signal.Signals = signal.SIGTERM


@dataclass(frozen=True)
class Server:
    """A server that answered. `url` has the administrator's name and no password; `admin_url` has both."""

    name: str
    url: str
    port: int
    pid: int
    directory: Path
    home: Path
    log: Path
    settings: Mapping[str, str]
    password: str = field(repr=False)
    process: Process = field(repr=False)
    kind: Kind = field(repr=False, compare=False)

    @property
    def admin_url(self) -> str:
        """The URL with the administrator's password; not to be shown."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=parts.netloc.replace("@", f":{self.password}@")))

    @property
    def certificate(self) -> Path | None:
        """What a client verifies the server's identity with, when TLS was asked for (setting `ssl`: `on`)."""
        return self.home / "server.crt" if self.settings.get("ssl") == "on" else None

    @property
    def is_running(self) -> bool:
        return is_alive(self.process)


def start_server(
    kind: Kind, directory: Path, port: int | None, settings: Mapping[str, str] | None, within_s: float
) -> Server:
    """The server of that directory, started unless it runs, once it answers.

    Settings None: as before; a server that runs keeps those that it has. Raises StackError.
    """
    directory = directory.absolute()
    with locked(directory):
        if running := find_server(kind, directory):
            _wait_until_it_answers(running, within_s)
            return running
        server = _started(kind, directory, port, settings)
        try:
            _wait_until_it_answers(server, within_s)
        except BaseException:  # ctrl-C too: who gets no server could not stop it
            kill(server)
            raise
        return server


def find_server(kind: Kind, directory: Path) -> Server | None:
    """The server that runs in that directory; None when none does."""
    process = find(directory / "process")
    return _server(kind, _plan(kind, directory), process) if process else None


def stop(server: Server, within_s: float = 30) -> None:
    """Ask it to shut down, and kill it after that time. Nothing happens when it does not run any more."""
    if not terminate(server.process, server.kind.stop_signal, within_s):
        kill_process(server.process)


def kill(server: Server) -> None:
    """`kill -9` of it and of its children; returns when all are gone."""
    kill_process(server.process)


def restart(server: Server, settings: Mapping[str, str] | None = None, within_s: float = 60) -> Server:
    """Stop it if it runs, and start it in the same place on the same port; with other settings when some are given."""
    stop(server)
    return start_server(server.kind, server.directory, None, settings, within_s)


def remove(server: Server) -> None:
    """Kill it and delete all that it kept."""
    kill(server)
    remove_place(server.directory)


def _started(kind: Kind, directory: Path, port: int | None, settings: Mapping[str, str] | None) -> Server:
    try:
        account = account_of(kind.account)
    except KeyError:
        raise MissingPrograms(f"{kind.name}: tried to run it as {kind.account}, found no such account") from None
    place = make_place(directory, account)
    _remember(kind, directory, port, settings)
    plan = _plan(kind, directory)
    if not kind.is_made(place):
        kind.make(plan)
    command = kind.command(plan)
    for each in plan.ports:
        expect_free(each, kind.name)
    _note_log_size(directory)
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": str(place.home)}
    process = spawn(
        command,
        record=directory / "process",
        log=directory / "server.log",
        directory=place.home,
        account=account,
        environment=environment,
    )
    return _server(kind, plan, process)


def _remember(kind: Kind, directory: Path, port: int | None, settings: Mapping[str, str] | None) -> None:
    """Write what the server is to be like, keeping what is not said anew."""
    path = directory / "server.json"
    known = json.loads(path.read_text()) if path.exists() else {"ports": free_ports(kind.ports), "settings": {}}
    ports = (port, *known["ports"][1:]) if port else known["ports"]
    wanted = known["settings"] if settings is None else dict(settings)
    replacement = path.with_suffix(".new")
    replacement.write_text(json.dumps({"ports": ports, "settings": wanted}, indent=1))
    replacement.replace(path)


def _plan(kind: Kind, directory: Path) -> Plan:
    known = json.loads((directory / "server.json").read_text())
    account = account_of(kind.account)
    place = Place(directory, (directory / "home").resolve(), account)
    return Plan(place, tuple(known["ports"]), known["settings"], password_in(directory / "admin.password"))


def _server(kind: Kind, plan: Plan, process: Process) -> Server:
    directory = plan.place.directory
    return Server(
        kind.name,
        kind.url.format(host=HOST, port=plan.ports[0]),
        plan.ports[0],
        process.pid,
        directory,
        plan.place.home,
        directory / "server.log",
        plan.settings,
        plan.password,
        process,
        kind,
    )


def _wait_until_it_answers(server: Server, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while (said := server.kind.ask(server)) is not None:
        if not server.is_running:
            raise StartFailed(f"{server.name}: it ended before it answered; {_log_tail(server)}")
        if time.monotonic() > deadline:
            raise StartFailed(f"{server.name}: no answer within {within_s:g} s, but: {said}; {_log_tail(server)}")
        time.sleep(_ASK_EVERY_S)


def _note_log_size(directory: Path) -> None:
    log = directory / "server.log"
    (directory / "log.start").write_text(str(log.stat().st_size if log.exists() else 0))


def _log_tail(server: Server) -> str:
    """The last lines that it wrote since this start."""
    start = int((server.directory / "log.start").read_text())
    with server.log.open("rb") as log:
        log.seek(max(start, server.log.stat().st_size - _TAIL_BYTES))
        return f"the end of {server.log}:\n{log.read().decode(errors='replace').strip()}"
