"""`headwater dev`: three servers up with one command, all gone with one ctrl-C."""

from __future__ import annotations

import signal
import socket
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

from homes import Home, free_port, wait_for


def test_everything_comes_up_and_ctrl_c_stops_everything(shop_run, tmp_path):
    ui, api, mlflow = free_port(), free_port(), free_port()
    home = shop_run.home.copy(tmp_path / "home").set(UI_PORT=str(ui), API_PORT=str(api), MLFLOW_PORT=str(mlflow))
    with home.started("headwater", "dev") as dev:
        for url in (
            f"http://127.0.0.1:{ui}/server_info",
            f"http://127.0.0.1:{api}/healthz",
            f"http://127.0.0.1:{mlflow}/health",
        ):
            wait_for(f"answer of {url}", lambda url=url: answers(url))
        family = descendants(dev.pid)
        assert len(family) >= 4  # two Dagster processes at least, the API, MLflow
        dev.send_signal(signal.SIGINT)
        assert dev.wait(40) == 0
    assert not [pid for pid in family if alive(pid)]


def answers(url: str) -> bool | None:
    try:
        with urlopen(url, timeout=5) as answer:
            return True if answer.status == 200 else None
    except OSError:
        return None


def descendants(pid: int) -> list[int]:
    """Child processes, their children, and so on."""
    children = [
        int(child) for tid in Path(f"/proc/{pid}/task").iterdir() for child in (tid / "children").read_text().split()
    ]
    return [*children, *(each for child in children for each in descendants(child))]


def alive(pid: int) -> bool:
    """A zombie has ended; who started it has not looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_taken_port_is_said_and_nothing_is_started(tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        home = Home(tmp_path / "home").set(UI_PORT=str(free_port()), API_PORT=port, MLFLOW_PORT=str(free_port()))
        done = home.headwater("dev")
    assert done.code == 1, done
    assert f"port {port}" in done.err
    assert "HEADWATER_API_PORT" in done.err
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) == 1
