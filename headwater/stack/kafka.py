"""Kafka: one node in KRaft mode, broker and controller in one process, from Maven's jars.

Settings are those of server.properties, but `java.options` (default `-Xmx512m`), the JVM's. Topics are not created by
being written to. There is no authentication: it listens on loopback alone.
"""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path

from headwater.stack.errors import CommandFailed
from headwater.stack.java import java, java_version
from headwater.stack.maven import jars, jars_folder
from headwater.stack.place import HOST, Place
from headwater.stack.server import Kind, Plan, Server, start_server, stop

__all__ = ["KIND", "SETTINGS", "VERSION", "fetch", "is_fetched", "start"]

VERSION = "4.1.0"
# The binding for SLF4J 1.7, which this Kafka has: with log4j-slf4j2-impl the broker logs nothing at all.
_ARTIFACTS = (f"org.apache.kafka:kafka_2.13:{VERSION}", "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3")
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    # A broker that was killed is let in again when its former session has timed out: 9 s by default.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "400",
}
_LOG4J = """rootLogger.level=info
rootLogger.appenderRef.out.ref=OUT
appender.out.type=Console
appender.out.name=OUT
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{ISO8601} %p %c{1}: %m%n
"""


def start(
    directory: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None, within_s: float = 60
) -> Server:
    """Kafka in that directory, on a free loopback port unless one is given. Raises StackError."""
    fetch()
    return start_server(KIND, directory, port, settings, within_s)


def fetch() -> Path:
    """The folder with Kafka's jars, and an archive of its loaded classes that halves the time of a start.

    Fetched once per machine (some seconds). Raises DownloadFailed, MissingPrograms.
    """
    folder = jars("kafka", _ARTIFACTS)
    archive = _archive(folder)
    if not archive.exists() and os.access(folder, os.W_OK):
        _make_archive(folder, archive)
    return folder


def is_fetched() -> bool:
    """Whether its jars are in the cache already, so that Maven is not needed."""
    return jars_folder("kafka", _ARTIFACTS).is_dir()


def _archive(folder: Path) -> Path:
    """Empty where this Java cannot make one."""
    return folder / f"classes-{java_version(java().parents[1])}.jsa"


def _make_archive(folder: Path, archive: Path) -> None:
    """Let a broker write down which classes it loaded; another one that does the same at once does no harm."""
    unfinished = folder / f"classes-{uuid.uuid4().hex}.unfinished"
    options = {"java.options": f"-XX:ArchiveClassesAtExit={unfinished}"}
    with tempfile.TemporaryDirectory(prefix="headwater-kafka-") as directory:
        server = start_server(KIND, Path(directory) / "kafka", None, options, within_s=60)
        stop(server)
    unfinished.touch()
    unfinished.rename(archive)


def _java(folder: Path, *options: str) -> list[str]:
    """The command line up to the class to run. The class path has to be the same, jar by jar, as in the archive."""
    class_path = ":".join(str(jar) for jar in sorted(folder.glob("*.jar")))
    archive = _archive(folder)
    shared = [f"-XX:SharedArchiveFile={archive}"] if archive.exists() and archive.stat().st_size else []
    return [str(java()), *shared, *options, "-cp", class_path]


def _is_made(place: Place) -> bool:
    return (place.home / "cluster").exists()


def _make(plan: Plan) -> None:
    """Name the cluster; its directories are formatted at every start, which leaves those that are."""
    name = base64.urlsafe_b64encode(uuid.uuid4().bytes)[:22].decode()
    (plan.place.home / "cluster").write_text(name.replace("-", "A"))  # one that begins with it is taken for an option


def _command(plan: Plan) -> list[str]:
    home = plan.place.home
    broker, controller = (f"{HOST}:{port}" for port in plan.ports)
    addresses = {
        "listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{broker}",
        "controller.quorum.voters": f"1@{controller}",
        "log.dirs": str(home / "data"),
    }
    settings = {**SETTINGS, **addresses, **plan.settings}
    options = settings.pop("java.options", "-Xmx512m")
    conf = home / "server.properties"
    conf.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    (home / "log4j2.properties").write_text(_LOG4J)
    folder = jars("kafka", _ARTIFACTS)
    if not all((Path(each) / "meta.properties").exists() for each in settings["log.dirs"].split(",")):
        _format(_java(folder, "-XX:TieredStopAtLevel=1"), conf, (home / "cluster").read_text())
    logging = f"-Dlog4j2.configurationFile={home / 'log4j2.properties'}"
    return [*_java(folder, *options.split(), logging), "kafka.Kafka", str(conf)]


def _format(java_command: list[str], conf: Path, cluster: str) -> None:
    command = [*java_command, "kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster, "-c", str(conf)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:].strip()
        raise CommandFailed(f"tried to format Kafka's directory, found exit code {done.returncode}: {said}")


def _ask(server: Server) -> str | None:
    """Metadata, and whether the controller has let the broker in: until then no topic can be made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its import uses importlib.resources.read_text
        from kafka.admin import KafkaAdminClient
        from kafka.errors import KafkaError

    try:
        socket.create_connection((HOST, server.port), timeout=5).close()  # the client would log that it was refused
        client = KafkaAdminClient(bootstrap_servers=f"{HOST}:{server.port}")
    except (OSError, KafkaError) as error:
        return str(error) or type(error).__name__
    try:
        brokers = client.describe_cluster()["brokers"]
    except KafkaError as error:
        return str(error) or type(error).__name__
    finally:
        client.close()
    return None if any(not broker["is_fenced"] for broker in brokers) else "the broker is not registered yet"


KIND = Kind(
    name="kafka",
    url="kafka://{host}:{port}",
    account=None,
    make=_make,
    is_made=_is_made,
    command=_command,
    ask=_ask,
    ports=2,
)
