"""Which Java runs Kafka: the first one of at least version 17 that is installed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from headwater.stack.errors import MissingPrograms

__all__ = ["LOWEST_VERSION", "find_java", "java", "java_version"]

LOWEST_VERSION = 17  # of Kafka 4's broker
_INSTALLED = Path("/usr/lib/jvm")


def java() -> Path:
    """The `java` program. Raises MissingPrograms."""
    found = find_java()
    if found is None:
        raise MissingPrograms(
            f"no Java {LOWEST_VERSION} or newer: set JAVA_HOME, or apt-get install default-jre-headless"
        )
    return found


def find_java() -> Path | None:
    """JAVA_HOME's, else the one on PATH, else what is installed beside it."""
    return next(
        (home / "bin" / "java" for home in _homes() if int(java_version(home).split(".")[0]) >= LOWEST_VERSION), None
    )


def java_version(home: Path) -> str:
    """As its `release` file says, such as 17.0.15; 0 when it has none."""
    release = home / "release"
    found = re.search(r'^JAVA_VERSION="([\d.]+)', release.read_text(), re.MULTILINE) if release.is_file() else None
    return found[1] if found else "0"


def _homes() -> Iterator[Path]:
    if os.environ.get("JAVA_HOME"):
        yield Path(os.environ["JAVA_HOME"])
    if on_path := shutil.which("java"):
        yield Path(on_path).resolve().parents[1]
    if _INSTALLED.is_dir():
        yield from (home for home in sorted(_INSTALLED.iterdir(), reverse=True) if (home / "bin" / "java").exists())
