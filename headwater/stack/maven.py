"""Jars from Maven, fetched once per machine: a folder of the user's cache for each list of artifacts.

Maven is asked through its ordinary client with the user's own configuration; nothing here names a repository.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from headwater.stack.errors import DownloadFailed, MissingPrograms, NoPlace

__all__ = ["cache_dir", "jars", "jars_folder", "own_files"]

_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>headwater</groupId>
  <artifactId>{name}</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
{dependencies}
  </dependencies>
</project>
"""
_DEPENDENCY = "    <dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"


def cache_dir() -> Path:
    """`headwater` in XDG_CACHE_HOME or ~/.cache, made if missing. Raises NoPlace."""
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headwater"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NoPlace(f"tried to make {path}, found: {error.strerror}; set XDG_CACHE_HOME to a directory") from None
    return path


def jars_folder(name: str, artifacts: Sequence[str], cache: Path | None = None) -> Path:
    """Where `jars` keeps this list of artifacts; the folder is there when they are complete."""
    digest = hashlib.sha256(_pom(name, artifacts).encode()).hexdigest()
    return (cache or cache_dir()) / f"{name}-{digest[:12]}"


def jars(name: str, artifacts: Sequence[str], cache: Path | None = None) -> Path:
    """The folder with these artifacts (`group:artifact:version`) and all that they depend on.

    Raises DownloadFailed, MissingPrograms when Maven is needed and not installed.
    """
    folder = jars_folder(name, artifacts, cache)
    if folder.is_dir():
        return folder
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _download(_pom(name, artifacts), folder)
    return folder


def _pom(name: str, artifacts: Sequence[str]) -> str:
    return _POM.format(name=name, dependencies="\n".join(_DEPENDENCY.format(*each.split(":")) for each in artifacts))


def _download(pom: str, folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise MissingPrograms("mvn is not installed: apt-get install maven")
    work = Path(tempfile.mkdtemp(prefix=".download-", dir=folder.parent))
    try:
        (work / "pom.xml").write_text(pom)
        command = [maven, "-q", "-B", "-f", str(work / "pom.xml"), _PLUGIN, f"-DoutputDirectory={work / 'jars'}"]
        command += own_files(Path.home(), work)
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            said = (done.stdout + done.stderr)[-2000:].strip()
            raise DownloadFailed(f"tried Maven for {folder.name}, found exit code {done.returncode}: {said}")
        (work / "jars").rename(folder)
    finally:
        shutil.rmtree(work)


def own_files(home: Path, work: Path) -> list[str]:
    """Options of Maven, that say where it keeps its files: Java knows the account's home, and nothing of HOME."""
    if not os.access(home, os.W_OK):
        return [f"-Dmaven.repo.local={work / 'repository'}"]
    try:
        if Path(pwd.getpwuid(os.getuid()).pw_dir) == home:
            return []
    except KeyError:  # a number without an account
        pass
    settings = home / ".m2" / "settings.xml"
    return [f"-Dmaven.repo.local={home / '.m2' / 'repository'}", *(["-s", str(settings)] if settings.is_file() else [])]
