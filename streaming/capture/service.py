"""Captures one system as the catalog declares it: which tables, from which database, told to whom.

One connector runs for a system in one HEADWATER_HOME. What it is doing lies in `capture/<system>.json` there, written
about once a second; requests to a running connector lie beside it. A table that is declared while it runs is captured
within a second or two.

Errors: CaptureError (see errors.py)
          ├─ AlreadyRunning   another process captures this system from here
          └─ UndeclaredTable  a table that is to be read again is none of the declared ones
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from catalog import keys
from catalog.load import Catalog, CatalogError, load_catalog
from catalog.settings import Settings
from streaming.capture.credentials import Address, parse_address
from streaming.capture.engine import Capture, Options, Status
from streaming.capture.errors import CaptureError, Halt
from streaming.capture.source import Retained, Source
from streaming.log_writer import PermanentLogError
from streaming.open_log import open_writer

__all__ = [
    "AlreadyRunning",
    "Outcome",
    "UndeclaredTable",
    "ask_retained",
    "ask_to_resnapshot",
    "capture",
    "is_running",
    "last_status",
    "relations",
    "status_path",
]

Say = Callable[[str], None]
# libpq waits two seconds at least.
_ASKED_WITHIN_S = 2
_NOTHING: Mapping[str, Any] = {
    "state": "waiting",
    "problem": None,
    "position": 0,
    "resume": {},
    "epoch": 0,
    "rows": 0,
    "last_event_us": 0,
    "level_us": 0,
    "behind": False,
    "row_bytes": None,
    "tables": {},
    "refused": {},
    "retained": None,
}

# What a connector cannot say before something has come, and before it is connected.
_OF_A_STREAM = ("last_event_us", "level_us", "row_bytes")
_OF_A_CONNECTION = ("position", "resume", "epoch", "tables", "retained")


class AlreadyRunning(CaptureError):
    """Another process captures this system from here."""


class UndeclaredTable(CaptureError):
    """A table that is to be read again is none of the declared ones."""


@dataclass(frozen=True)
class Outcome:
    """`connected`: whether there was a stream at all; `refused`: declared tables that could not be captured."""

    connected: bool
    refused: tuple[str, ...]


def relations(catalog: Catalog, system: str, schema: str) -> dict[str, str]:
    """The topic of each declared table of the system, by its name in the database: schema.table."""
    return {
        source.relation or f"{schema}.{source.table}": keys.cdc_topic(source.system, source.table)
        for source in catalog.sources
        if source.system == system
    }


def capture(
    settings: Settings, system: str, options: Options, stop: threading.Event, say: Say, *, once: bool
) -> Outcome:
    """Capture until `stop` is set or, with `once`, up to what there was at the beginning.

    Raises AlreadyRunning, UndeclaredTable, Halt, PermanentLogError, AddressError.
    """
    address = _address(settings)
    outcome = Outcome(False, ())
    tables: dict[str, str] = {}
    with _alone(settings, system):
        while not stop.is_set():
            watch = _Watch(settings, system, stop)
            tables = _declared(settings, system, _schema(address), tables, say)
            _expect_declared(tables, options.resnapshot)
            source = _source(address, system, tuple(tables), say)
            running = Capture(
                source,
                lambda: open_writer(settings),
                options,
                topic=tables.__getitem__,
                database=address.database,
                say=say,
                publish=watch.publish,
            )
            watch.capture = running
            try:
                running.run(watch.stop, once=once)
            except (Halt, PermanentLogError) as error:
                watch.halted(str(error))
                raise
            outcome = Outcome(outcome.connected or running.connected, tuple(source.refused))
            if once or stop.is_set():
                break
            say("the declarations have changed: they are read again")
            options = replace(options, from_scratch=False, accept_identity=False, resnapshot=())
    return outcome


def _declared(settings: Settings, system: str, schema: str, before: dict[str, str], say: Say) -> dict[str, str]:
    """The declared tables; those of before while somebody is still writing a file. Raises CatalogError at first."""
    try:
        tables = relations(load_catalog(settings.catalog), system, schema)
    except CatalogError as error:
        if not before:
            raise
        say(f"capturing goes on with the tables of before: {error}")
        return before
    if not tables:
        raise CaptureError(f"no table of system {system!r} is declared in {settings.catalog / 'sources'}")
    return tables


def is_running(settings: Settings, system: str) -> bool:
    """Whether a connector of the system runs in this home."""
    try:
        with _alone(settings, system):
            return False
    except AlreadyRunning:
        return True


def ask_to_resnapshot(settings: Settings, system: str, tables: tuple[str, ...]) -> None:
    """Leave a request for the running connector. Raises UndeclaredTable."""
    _expect_declared(relations(load_catalog(settings.catalog), system, _schema(_address(settings))), tables)
    path = _requests(settings, system)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(tables))
    draft.replace(path)


def _expect_declared(declared: Iterable[str], asked: Iterable[str]) -> None:
    """By its whole name, or without the schema."""
    names = list(declared)
    if unknown := [name for name in asked if not any(name in (known, known.split(".")[-1]) for known in names)]:
        raise UndeclaredTable(f"found {', '.join(unknown)}, captured are {', '.join(names)}")


def status_path(settings: Settings, system: str) -> Path:
    """Where a connector says what it is doing."""
    return settings.capture_dir / f"{system}.json"


def last_status(settings: Settings, system: str) -> Mapping[str, Any] | None:
    """What a connector last said; None if none ever ran here. With `running`: whether it still does."""
    try:
        found: dict[str, Any] = json.loads(status_path(settings, system).read_text())
    except FileNotFoundError:
        return None
    return {**_NOTHING, **found, "running": is_running(settings, system)}


def ask_retained(settings: Settings, system: str, resume: Mapping[str, Any]) -> Retained | None:
    """What the server keeps for a connector that stands at `resume` and cannot say so itself.

    None when the server cannot be asked within seconds. Raises Halt when it has given up keeping it.
    """
    address = _address(settings)
    if address.scheme.startswith("postgres"):
        from streaming.postgres import retained as of_slot

        return of_slot.ask_retained(address, f"headwater_{system}", _ASKED_WITHIN_S)
    from streaming.mysql import retained as of_log
    from streaming.mysql.positions import Resume

    return of_log.ask_retained(address, Resume.read(resume), _ASKED_WITHIN_S) if "file" in resume else None


class _Watch:
    """Told about once a second what the connector does: writes it down, and looks what it is asked for."""

    def __init__(self, settings: Settings, system: str, stop: threading.Event) -> None:
        self.stop = _Either(stop)
        self.capture: Capture | None = None
        self._settings, self._system = settings, system
        self._declared = _declarations(settings)
        self._before: Status | None = None
        self._handed = False

    def halted(self, why: str) -> None:
        """Keep why it stopped for whoever asks later."""
        last = last_status(self._settings, self._system) or _NOTHING
        path = status_path(self._settings, self._system)
        path.write_text(json.dumps({**last, "at_us": time.time_ns() // 1000, "halted": why, "pid": os.getpid()}))

    def _rate(self, status: Status) -> float:
        before, self._before = self._before, status
        elapsed_us = status.at_us - before.at_us if before else 0
        return round((status.rows - before.rows) * 1e6 / elapsed_us, 1) if before and elapsed_us > 0 else 0.0

    def _take_requests(self, capture: Capture) -> None:
        """What was taken stays on disk until the checkpoint has it: after `kill -9` it is read again."""
        requests = _requests(self._settings, self._system)
        taken = requests.with_suffix(".taken.json")
        if self._handed and not capture.asked:
            taken.unlink(missing_ok=True)
            self._handed = False
        if self._handed:
            return
        if requests.exists() and not taken.exists():
            requests.replace(taken)
        if taken.exists():
            self._handed = True
            for table in json.loads(taken.read_text()):
                capture.resnapshot(table)

    def publish(self, status: Status) -> None:
        path = status_path(self._settings, self._system)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        said = asdict(status)
        said |= _known(path, _OF_A_STREAM if status.resume else (*_OF_A_STREAM, *_OF_A_CONNECTION), said)
        draft.write_text(json.dumps({**said, "pid": os.getpid(), "rows_per_s": self._rate(status)}))
        draft.replace(path)
        if self.capture is not None:
            self._take_requests(self.capture)
        if _declarations(self._settings) != self._declared:
            self.stop.set()


def _known(path: Path, names: Iterable[str], said: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the one before knew of these, as far as this one does not yet."""
    last = json.loads(path.read_text()) if path.exists() else {}
    return {name: last[name] for name in names if last.get(name) and not said[name]}


class _Either(threading.Event):
    """Set by itself or by another event."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return self._other.is_set() or super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """In steps, for there are two to wait for."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.is_set() and (deadline is None or time.monotonic() < deadline):
            left = 0.2 if deadline is None else min(0.2, deadline - time.monotonic())
            super().wait(max(left, 0))
        return self.is_set()


def _declarations(settings: Settings) -> list[tuple[str, int]]:
    return sorted((file.name, file.stat().st_mtime_ns) for file in (settings.catalog / "sources").glob("*.yaml"))


def _requests(settings: Settings, system: str) -> Path:
    return settings.capture_dir / f"{system}.requests.json"


@contextmanager
def _alone(settings: Settings, system: str) -> Iterator[None]:
    settings.capture_dir.mkdir(parents=True, exist_ok=True)
    with (settings.capture_dir / f"{system}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"a connector of {system} already runs in {settings.home}; `headwater status` says how it is"
            ) from None
        yield


def _address(settings: Settings) -> Address:
    if settings.shop_url is None:
        raise CaptureError(
            "HEADWATER_SHOP_URL is not set: there is no database to capture from; without one the "
            "embedded replay is the source"
        )
    return parse_address(
        settings.shop_url, password=settings.shop_password or "", password_file=settings.shop_password_file
    )


def _schema(address: Address) -> str:
    return "public" if address.scheme.startswith("postgres") else address.database


def _source(address: Address, system: str, tables: tuple[str, ...], say: Say) -> Source:
    if address.scheme.startswith("postgres"):
        from streaming.postgres.source import PostgresSource

        return PostgresSource(system, address, tables, say=say)
    from streaming.mysql.source import MysqlSource

    return MysqlSource(system, address, tables, say=say)
