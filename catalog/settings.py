"""Every `HEADWATER_*` setting: read once, validated once, each with its embedded default.

`load_settings` takes the environment as an argument; nothing else in the project reads `os.environ` for a decision.
"""

from __future__ import annotations

import difflib
import getpass
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from catalog.clock import Clock, FixedClock, ReplayClock, WallClock, parse_instant

__all__ = ["SETTINGS", "UNUSABLE_IN_PATH", "Setting", "Settings", "SettingsError", "load_settings", "redacted"]

CATALOG_DIR = Path(__file__).parent
# delta-rs 1.6 makes a URL of a path and decodes it twice: what it writes to `a%20b` it then reads from `a b`, be that
# another lake; `#` and `?` cut its history off, the others it cannot have in a URL.
UNUSABLE_IN_PATH = re.compile(r"%[0-9A-Fa-f]{2}|[#?\[\]\\^|\x00-\x1f\x7f]")


class SettingsError(ValueError):
    """One or more settings are wrong; `problems` has one line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Found(ValueError):
    """A value that is refused, with what was found to be wrong with it."""


@dataclass(frozen=True)
class Setting:
    """One setting: its variable, default as written in the environment, meaning, and what is allowed."""

    env: str
    field: str
    default: str
    help: str
    allowed: str
    parse: Callable[[str], Any]
    secret: bool = False
    """Its value is never shown."""


@dataclass(frozen=True)
class Settings:
    """The validated settings, and the paths that follow from them."""

    home: Path
    retail_data: Path | None
    now: datetime | None
    simulator_seed: int
    simulator_lines: int
    catalog: Path
    automation: bool
    actor: str
    landing_batch_rows: int
    lake_version_days: int
    api_host: str
    api_port: int
    ui_port: int
    mlflow_port: int
    max_body_bytes: int
    log_url: str | None = field(repr=False)
    log_partitions: int
    log_replication: int
    log_retention_ms: int | None
    shop_url: str | None
    shop_password: str | None = field(repr=False)
    shop_password_file: Path | None

    @property
    def lake_dir(self) -> Path:
        return self.home / "lake"

    @property
    def log_path(self) -> Path:
        return self.home / "log.db"

    @property
    def replay_path(self) -> Path:
        return self.home / "replay.json"

    @property
    def ledger_path(self) -> Path:
        return self.home / "ledger.db"

    @property
    def locks_dir(self) -> Path:
        return self.home / "locks"

    @property
    def warehouse_path(self) -> Path:
        return self.home / "warehouse.duckdb"

    @property
    def online_path(self) -> Path:
        return self.home / "online.db"

    @property
    def feast_registry_path(self) -> Path:
        return self.home / "feast.db"

    @property
    def mlflow_uri(self) -> str:
        return f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def artifacts_dir(self) -> Path:
        return self.home / "artifacts"

    @property
    def endpoints_dir(self) -> Path:
        return self.home / "endpoints"

    @property
    def reports_dir(self) -> Path:
        return self.home / "reports"

    @property
    def dagster_home(self) -> Path:
        return self.home / "dagster"

    def clock(self) -> Clock:
        """The one clock: fixed by HEADWATER_NOW, else the system's for a live source, else the replay's."""
        if self.now:
            return FixedClock(self.now)
        return WallClock() if self.shop_url else ReplayClock(self.replay_path)

    @property
    def capture_dir(self) -> Path:
        return self.home / "capture"


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _home(text: str) -> Path:
    """What is not there yet can be made; what is in its way cannot."""
    path = _path(_text(text))
    nearest = next(p for p in (path, *path.parents) if os.path.exists(p))  # Path.exists raises where it may not look
    if not nearest.is_dir():
        raise ValueError(text)
    if found := UNUSABLE_IN_PATH.search(os.path.realpath(path)):
        raise _Found(f"{path} (with {found.group()!r} Delta tables cannot be found again)")
    return path


def _data_file(text: str) -> Path | None:
    if not text:
        return None
    path = _path(text)
    if path.suffix.lower() not in (".parquet", ".csv", ".xlsx"):
        raise ValueError(text)
    if not path.is_file():
        raise _Found(f"{text} (no such file)")
    return path


def _directory(text: str) -> Path:
    path = _path(text) if text else CATALOG_DIR
    if not path.is_dir():
        raise _Found(f"{text} (no such directory)")
    return path


def _optional_file(text: str) -> Path | None:
    if not text:
        return None
    path = _path(text)
    if not path.is_file():
        raise _Found(f"{text} (no such file)")
    return path


_DATABASES = ("postgresql", "postgres", "mysql", "mariadb")


def _database_url(text: str) -> str | None:
    if not text:
        return None
    parts = urlsplit(text)
    if parts.scheme not in _DATABASES or not parts.hostname or not parts.path.strip("/"):
        raise ValueError(redacted(text))
    return text


def _log_url(text: str) -> str | None:
    if not text:
        return None
    parts = urlsplit(text)
    servers = parts.netloc.rpartition("@")[2].split(",")
    if parts.scheme != "kafka" or parts.path.strip("/") or not all(re.fullmatch(_SERVER, each) for each in servers):
        raise ValueError(text)
    return text


_SERVER = r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?"


def _retention_ms(text: str) -> int | None:
    if text == "-1":
        return None
    return _between(60_000, (1 << 63) - 1)(text)


def redacted(url: str) -> str:
    """The URL without its password, for whatever a person or a log sees."""
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", url)


def _between(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(text)
    return text == "on"


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError(text)
    return text


def _instant(text: str) -> datetime | None:
    return parse_instant(text) if text else None


def _actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a passwd entry
        return "unknown"


_PORT = _between(1, 65535)
_PORTS = "a port, 1 to 65535"

SETTINGS: tuple[Setting, ...] = (
    Setting("HEADWATER_HOME", "home", ".headwater", "where everything is kept", "a directory; made if missing", _home),
    Setting(
        "HEADWATER_RETAIL_DATA",
        "retail_data",
        "",
        "retail file to replay (UCI Online Retail schema); empty: the shop simulator",
        "an existing .parquet, .csv or .xlsx file, or empty",
        _data_file,
    ),
    Setting(
        "HEADWATER_NOW",
        "now",
        "",
        "the business instant; empty: the system's clock where a database is captured, else the last event's time",
        "an ISO 8601 instant such as 2011-12-16T12:50:00 (UTC unless it has an offset), or empty",
        _instant,
    ),
    Setting(
        "HEADWATER_SIMULATOR_SEED",
        "simulator_seed",
        "7",
        "the simulated shop's seed",
        "0 to 999999999",
        _between(0, 999_999_999),
    ),
    Setting(
        "HEADWATER_SIMULATOR_LINES",
        "simulator_lines",
        "200000",
        "the simulated shop's invoice lines, about",
        "1000 to 20000000",
        _between(1_000, 20_000_000),
    ),
    Setting(
        "HEADWATER_CATALOG",
        "catalog",
        "",
        "directory with sources/, gates/ and models/; empty: the project's own",
        "an existing directory, or empty",
        _directory,
    ),
    Setting("HEADWATER_AUTOMATION", "automation", "off", "whether sensors start by themselves", "on or off", _switch),
    Setting(
        "HEADWATER_ACTOR",
        "actor",
        "",
        "who acts: recorded as trainer and approver; empty: the login name",
        "any text",
        lambda text: text.strip() or _actor(),
    ),
    Setting(
        "HEADWATER_LANDING_BATCH_ROWS",
        "landing_batch_rows",
        "250000",
        "changes landed in one Delta transaction",
        "1 to 10000000",
        _between(1, 10_000_000),
    ),
    Setting(
        "HEADWATER_LAKE_VERSION_DAYS",
        "lake_version_days",
        "30",
        "days for which landing keeps the files that it has joined: as old a version of a raw table can be read",
        "1 to 30 (Delta's own log goes back no further)",
        _between(1, 30),
    ),
    Setting("HEADWATER_API_HOST", "api_host", "127.0.0.1", "address that the servers bind to", "an address", _text),
    Setting("HEADWATER_API_PORT", "api_port", "8000", "the prediction API's port", _PORTS, _PORT),
    Setting("HEADWATER_UI_PORT", "ui_port", "3000", "the Dagster UI's port", _PORTS, _PORT),
    Setting("HEADWATER_MLFLOW_PORT", "mlflow_port", "5000", "the MLflow UI's port", _PORTS, _PORT),
    Setting(
        "HEADWATER_MAX_BODY_BYTES",
        "max_body_bytes",
        "1048576",
        "largest request body the API reads, in bytes",
        "1024 to 1073741824",
        _between(1_024, 1 << 30),
    ),
    Setting(
        "HEADWATER_LOG_URL",
        "log_url",
        "",
        "the change log's Kafka cluster; empty: the embedded log in HEADWATER_HOME",
        "kafka://host:port[,host:port][?option=value] (docs/how_to/environments.md has the options), or empty",
        _log_url,
    ),
    Setting(
        "HEADWATER_LOG_PARTITIONS",
        "log_partitions",
        "4",
        "partitions of a topic that is made on Kafka; topics that exist keep theirs",
        "1 to 1000",
        _between(1, 1_000),
    ),
    Setting(
        "HEADWATER_LOG_REPLICATION",
        "log_replication",
        "1",
        "brokers that keep each record of a topic that is made; a majority of them has to have it",
        "1 to 9",
        _between(1, 9),
    ),
    Setting(
        "HEADWATER_LOG_RETENTION",
        "log_retention_ms",
        "-1",
        "how old a record of a topic that is made may get, by its own time, before Kafka deletes it; -1: for ever",
        "milliseconds from 60000, or -1",
        _retention_ms,
    ),
    Setting(
        "HEADWATER_SHOP_URL",
        "shop_url",
        "",
        "the shop's database, whose changes are captured; empty: a replay instead",
        "postgresql://user@host:port/database or mysql://user@host:port/database, or empty",
        _database_url,
    ),
    Setting(
        "HEADWATER_SHOP_PASSWORD",
        "shop_password",
        "",
        "its password; a file of its own is safer",
        "any text, or empty",
        lambda text: text or None,
        secret=True,
    ),
    Setting(
        "HEADWATER_SHOP_PASSWORD_FILE",
        "shop_password_file",
        "",
        "a file with its password and nothing else",
        "an existing file, or empty",
        _optional_file,
    ),
)


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Validate every `HEADWATER_*` variable of `environ`. Raises SettingsError that lists every problem at once."""
    problems = _unknown(environ)
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = environ.get(setting.env, setting.default)
        try:
            values[setting.field] = setting.parse(text)
        except ValueError as error:
            found = str(error) if isinstance(error, _Found) else text
            shown = "a value" if setting.secret else repr(redacted(found))
            problems.append(f"environment:{setting.env}: found {shown}, allowed is {setting.allowed}")
    if problems:
        raise SettingsError(problems)
    return Settings(**values)


def _unknown(environ: Mapping[str, str]) -> list[str]:
    """A misspelt setting would otherwise be a silent default."""
    known = [s.env for s in SETTINGS]
    problems = []
    for name in sorted(environ):
        if name.startswith("HEADWATER_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "`headwater settings` lists them"
            problems.append(f"environment:{name}: no such setting, {hint}")
    return problems


assert {f.name for f in fields(Settings)} == {s.field for s in SETTINGS}
