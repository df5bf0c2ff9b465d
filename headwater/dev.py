"""`headwater dev`: Dagster UI and daemon, prediction API and MLflow UI as child processes; ctrl-C stops all of them.

With a database in HEADWATER_SHOP_URL there are the connector and a lander too.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from catalog.load import Catalog, load_catalog
from catalog.settings import Settings

__all__ = ["Service", "dev", "services"]

PROJECT = Path(__file__).resolve().parents[1]
_STOP_AFTER_S = 15.0


@dataclass(frozen=True)
class Service:
    """One child process of `headwater dev`; `at` says where it is found, `port` and its `setting` if it has one."""

    name: str
    at: str
    command: tuple[str, ...]
    port: int | None = None
    setting: str = ""


def services(settings: Settings, catalog: Catalog) -> tuple[Service, ...]:
    """What `headwater dev` starts."""
    return (*(_stream(catalog) if settings.shop_url else ()), *_servers(settings))


def _stream(catalog: Catalog) -> Iterator[Service]:
    headwater = (sys.executable, "-m", "headwater.cli")
    for system in sorted({source.system for source in catalog.sources}):
        yield Service(f"Connector of {system}", "`headwater status` says how it is", (*headwater, "capture", system))
    yield Service("Lander", "`headwater status` says how it is", (*headwater, "land"))


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
    """Run the services until ctrl-C or SIGTERM; when one of them ends by itself the others are stopped too.

    Returns 0 after ctrl-C, 1 when a port is taken or a service ended by itself.
    """
    from headwater.run import dagster_instance

    wanted = services(settings, load_catalog(settings.catalog))
    if problem := _taken(settings.api_host, wanted):
        print(problem, file=sys.stderr)
        return 1
    dagster_instance(settings).dispose()
    # Explicitly, SIGINT too: a shell starts background jobs with it ignored, and our children would inherit that.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)
    # Sensors act alone here; a plain `dagster dev` leaves them off unless HEADWATER_AUTOMATION=on.
    environment = {**os.environ, "HEADWATER_HOME": str(settings.home), "DAGSTER_HOME": str(settings.dagster_home)}
    environment.setdefault("HEADWATER_AUTOMATION", "on")
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for service in wanted:
            children[service.name] = _start(service, environment)
            print(f"{service.name:<22} {service.at}", file=sys.stderr, flush=True)
        print("ctrl-C stops them", file=sys.stderr, flush=True)
        return _watch(children)
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(children)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


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


def _start(service: Service, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """In a session of its own, so that ctrl-C reaches us alone and we stop the whole group in order."""
    return subprocess.Popen(service.command, cwd=PROJECT, env=dict(environment), start_new_session=True)


def _watch(children: Mapping[str, subprocess.Popen[bytes]]) -> int:
    while True:
        for name, child in children.items():
            if child.poll() is not None:
                print(f"headwater dev: {name} ended with exit code {child.returncode}", file=sys.stderr)
                return 1
        time.sleep(0.5)


def _stop(children: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """SIGINT to each group by its id, SIGKILL to what is still there after 15 s."""
    for child in children.values():
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGINT)
    deadline = time.monotonic() + _STOP_AFTER_S
    for child in children.values():
        try:
            child.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
