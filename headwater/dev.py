"""`headwater dev`: Dagster UI and daemon, prediction API and MLflow UI as child processes; ctrl-C stops all of them.

With a database in HEADWATER_SHOP_URL there are the connector and a lander too. These two may end at any moment without
harm: one that was killed is started again, and one that ended by itself has said what a person must do; either way the
rest goes on.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from catalog.load import Catalog, load_catalog
from catalog.settings import Settings

__all__ = ["Service", "dev", "pause_s", "services", "supervise"]

PROJECT = Path(__file__).resolve().parents[1]
_LOOK_EVERY_S = 0.5
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Service:
    """One child process of `headwater dev`; `at` says where it is found, `port` and its `setting` if it has one.

    `by_hand`: how a person starts it alone. Without it the others cannot do.
    """

    name: str
    at: str
    command: tuple[str, ...]
    port: int | None = None
    setting: str = ""
    by_hand: str = ""


def services(settings: Settings, catalog: Catalog) -> tuple[Service, ...]:
    """What `headwater dev` starts."""
    return (*(_stream(catalog) if settings.shop_url else ()), *_servers(settings))


def _stream(catalog: Catalog) -> Iterator[Service]:
    systems = sorted({source.system for source in catalog.sources})
    for name, arguments in [*((f"Connector of {each}", ("capture", each)) for each in systems), ("Lander", ("land",))]:
        yield Service(
            name,
            "`headwater status` says how it is",
            (sys.executable, "-m", "headwater.cli", *arguments),
            by_hand=" ".join(("headwater", *arguments)),
        )


def _servers(settings: Settings) -> tuple[Service, ...]:
    python, host = sys.executable, settings.api_host
    bin_dir = Path(python).parent
    return (
        Service(
            "Dagster UI and daemon",
            f"http://{host}:{settings.ui_port}/asset-groups",
            (str(bin_dir / "dagster"), "dev", "-w", str(PROJECT / "workspace.yaml"), "-h", host,
             "-p", str(settings.ui_port), "--log-level", "warning"),
            settings.ui_port,
            "HEADWATER_UI_PORT",
        ),
        Service(
            "Prediction API",
            f"http://{host}:{settings.api_port}/docs",
            (python, "-m", "headwater.cli", "serve"),
            settings.api_port,
            "HEADWATER_API_PORT",
        ),
        Service(
            "MLflow UI",
            f"http://{host}:{settings.mlflow_port}",
            (python, "-m", "mlflow", "server", "--backend-store-uri", settings.mlflow_uri,
             "--default-artifact-root", str(settings.artifacts_dir), "--host", host,
             "--port", str(settings.mlflow_port), "--workers", "1"),
            settings.mlflow_port,
            "HEADWATER_MLFLOW_PORT",
        ),
    )  # fmt: skip


def dev(settings: Settings) -> int:
    """Run the services until ctrl-C or SIGTERM; when a server ends by itself all the others are stopped too.

    Returns 0 after ctrl-C, 1 when a port is taken or a server ended by itself.
    """
    from headwater.run import dagster_instance

    wanted = services(settings, load_catalog(settings.catalog))
    if problem := _taken(settings.api_host, wanted):
        print(problem, file=sys.stderr)
        return 1
    dagster_instance(settings).dispose()
    # Sensors act alone here; a plain `dagster dev` leaves them off unless HEADWATER_AUTOMATION=on.
    environment = {**os.environ, "HEADWATER_HOME": str(settings.home), "DAGSTER_HOME": str(settings.dagster_home)}
    environment.setdefault("HEADWATER_AUTOMATION", "on")
    asked: list[int] = []
    # Explicitly, SIGINT too: a shell starts background jobs with it ignored, and our children would inherit that.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signum, lambda number, _: asked.append(number))
    return supervise(wanted, environment, lambda: bool(asked))


def supervise(
    wanted: Sequence[Service], environment: Mapping[str, str], stop: Callable[[], bool], *, patience_s: float = 15.0
) -> int:
    """Run the services until `stop()` (returns 0) or a server ends by itself (1); none of their processes is left.

    `patience_s`: what they have to end by themselves when asked to.
    """
    children: list[_Child] = []
    try:
        for service in wanted:
            children.append(_Child(service, environment))
            _say(f"{service.name:<22} {service.at}")
        _say("ctrl-C stops them")
        while not stop():
            time.sleep(_LOOK_EVERY_S)
            if not all(child.look() for child in children):
                return 1
        return 0
    finally:
        _end(children, patience_s)


def pause_s(deaths: int) -> float:
    """How long to wait before a start, after so many deaths in a row: 1 s, 2 s, 4 s and so on, at most a minute."""
    return min(2.0 ** min(deaths - 1, 10), _LONGEST_PAUSE_S)


def _taken(host: str, wanted: tuple[Service, ...]) -> str | None:
    for service in wanted:
        if service.port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, service.port))
            except OSError as error:
                return f"headwater dev: {service.name}: port {service.port} cannot be bound ({error.strerror}): " + (
                    f"set {service.setting} to a free one"
                )
    return None


class _Child:
    """The process of a service, in a session of its own, so that ctrl-C reaches us alone and we end its whole group."""

    def __init__(self, service: Service, environment: Mapping[str, str]) -> None:
        self._service, self._environment = service, dict(environment)
        self._deaths, self._start_at = 0, time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def look(self) -> bool:
        """Start it again if that is due. False when it has ended and the others cannot do without it."""
        if self._process is None:
            if time.monotonic() >= self._start_at:
                self._start()
            return True
        code = self._process.poll()
        if code is None:
            return True
        if not self._service.by_hand:
            _say(f"headwater dev: {self._service.name} ended with exit code {code}")
            return False
        self._process = None  # its id may be another's from now on
        self._ended(code)
        return True

    def signal(self, signum: int) -> bool:
        """To every process of its group; whether there is one. 0 only asks."""
        if self._process is None:
            return False
        self._process.poll()  # once it has ended, it must not count
        try:
            os.killpg(self._process.pid, signum)
        except (ProcessLookupError, PermissionError):  # the latter on macOS, where only zombies are left
            return False
        return True

    def _start(self) -> None:
        self._start_at = time.monotonic()
        self._process = subprocess.Popen(
            self._service.command, cwd=PROJECT, env=self._environment, start_new_session=True
        )

    def _ended(self, code: int) -> None:
        now, name = time.monotonic(), self._service.name
        if code >= 0:
            self._start_at = math.inf
            _say(
                f"headwater dev: {name} ended with exit code {code}, its last lines say why; the rest goes on. "
                f"Once that is mended, `{self._service.by_hand}` starts it again"
            )
            return
        self._deaths = 1 if now - self._start_at > _LONGEST_PAUSE_S else self._deaths + 1
        self._start_at = now + pause_s(self._deaths)
        _say(f"headwater dev: {name} was killed by signal {-code}; it starts again in {pause_s(self._deaths):g} s")


def _end(children: Sequence[_Child], patience_s: float) -> None:
    """SIGINT to each group, SIGKILL to those of which something is left after `patience_s`."""
    for signum, within_s in ((signal.SIGINT, patience_s), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + within_s
        left = [child for child in children if child.signal(signum)]
        while any(child.signal(0) for child in left) and time.monotonic() < deadline:
            time.sleep(0.05)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
