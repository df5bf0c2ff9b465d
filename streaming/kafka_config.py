"""What HEADWATER_LOG_URL says, as each Kafka client wants to be told it, and how topics of ours are made. No I/O but
reading a password's file; no client is imported.

    kafka://[user[:password]@]host[:port][,host[:port]...][?option=value&...]

    tls              on or off (default): encrypt, and verify the brokers' certificates and names
    ca               with tls: file with the certificates to verify them with; default the system's
    certificate, key with tls: files to identify ourselves with
    sasl             with a user, and then needed: plain, scram-sha-256 or scram-sha-512, whatever the brokers ask for
    password_file    with a user: file with the password and nothing else

Errors: LogAddressError (log_writer.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from streaming.log_writer import LogAddressError

__all__ = [
    "MAX_RECORD_BYTES",
    "KafkaAddress",
    "TopicShape",
    "confluent_options",
    "kafka_python_options",
    "parse_log_url",
    "topic_options",
]

MAX_RECORD_BYTES = 16 << 20
"""Largest record, uncompressed. Kafka's own default is 1 MiB, less than a row with one large document in it."""

_DEFAULT_PORT = 9092
_FILES = ("ca", "certificate", "key", "password_file")
_CHOICES = {"tls": ("off", "on"), "sasl": ("plain", "scram-sha-256", "scram-sha-512")}
_FOR_EVER = "-1"
# librdkafka's severity. What passes by itself is told by our own errors once it does not.
_ERRORS = "3"
_LONGEST_MS = str((1 << 63) - 1)


@dataclass(frozen=True)
class KafkaAddress:
    """Where the brokers are and how to identify ourselves; as text without user and password."""

    servers: tuple[str, ...]
    tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    sasl: str = ""
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __str__(self) -> str:
        return f"kafka://{','.join(self.servers)}"

    @property
    def security(self) -> str:
        """The name that Kafka's clients have for it."""
        return ("SASL_" if self.user else "") + ("SSL" if self.tls else "PLAINTEXT")


@dataclass(frozen=True)
class TopicShape:
    """What a topic that is made gets; `retention_ms` None keeps its records for ever."""

    partitions: int = 4
    replication: int = 1
    retention_ms: int | None = None


def parse_log_url(url: str) -> KafkaAddress:
    """The address that HEADWATER_LOG_URL names; reads `password_file`. Raises LogAddressError."""
    parts = urlsplit(url)
    account, _, hosts = parts.netloc.rpartition("@")
    if parts.scheme != "kafka" or not all(hosts.split(",")):
        raise _refused(f"found {parts.scheme or 'no scheme'}://{hosts}", "kafka://host:port[,host:port]")
    options = _options(parts.query)
    user, colon, quoted = account.partition(":")
    password = unquote(quoted) if colon else None
    if "password_file" in options:
        password = _read(options["password_file"])
    _expect_whole(options, user=bool(user), password=bool(password))
    return KafkaAddress(
        servers=tuple(_server(each) for each in hosts.split(",")),
        tls=options.get("tls") == "on",
        user=unquote(user) or None,
        password=password,
        sasl=options.get("sasl", ""),
        **{name: Path(options[name]) for name in ("ca", "certificate", "key") if name in options},
    )


def confluent_options(address: KafkaAddress) -> dict[str, str]:
    """The part of a confluent-kafka client's configuration that says where and who."""
    options = {
        "bootstrap.servers": ",".join(address.servers),
        "security.protocol": address.security.lower(),
        "log_level": _ERRORS,
    }
    if address.user:
        options |= {
            "sasl.mechanism": address.sasl.upper(),
            "sasl.username": address.user,
            "sasl.password": address.password or "",
        }
    files = {
        "ssl.ca.location": address.ca,
        "ssl.certificate.location": address.certificate,
        "ssl.key.location": address.key,
    }
    return options | {name: str(file) for name, file in files.items() if file}


def kafka_python_options(address: KafkaAddress) -> dict[str, str | list[str] | None]:
    """The same for a kafka-python client."""
    options: dict[str, str | list[str] | None] = {
        "bootstrap_servers": list(address.servers),
        "security_protocol": address.security,
    }
    if address.user:
        options |= {
            "sasl_mechanism": address.sasl.upper(),
            "sasl_plain_username": address.user,
            "sasl_plain_password": address.password or "",
        }
    files = {"ssl_cafile": address.ca, "ssl_certfile": address.certificate, "ssl_keyfile": address.key}
    return options | {name: str(file) for name, file in files.items() if file}


def topic_options(shape: TopicShape, *, compacted: bool) -> dict[str, str]:
    """The configuration of a topic that is made."""
    options = {
        # An acknowledged record is on a majority of the brokers that keep it, and only those may become its leader.
        "min.insync.replicas": str(shape.replication // 2 + 1),
        "unclean.leader.election.enable": "false",
        "max.message.bytes": str(MAX_RECORD_BYTES + (1 << 20)),
        # Record time is when a change became known, by a clock that may run ahead of the broker's or be replayed.
        "message.timestamp.type": "CreateTime",
        "message.timestamp.after.max.ms": _LONGEST_MS,
        "message.timestamp.before.max.ms": _LONGEST_MS,
    }
    if compacted:
        # What a start reads; a closed segment is compacted, so segments are small.
        return options | {
            "cleanup.policy": "compact",
            "segment.bytes": str(16 << 20),
            "segment.ms": str(3_600_000),
            "min.cleanable.dirty.ratio": "0.1",
        }
    retention = _FOR_EVER if shape.retention_ms is None else str(shape.retention_ms)
    return options | {"cleanup.policy": "delete", "retention.ms": retention, "retention.bytes": _FOR_EVER}


def _options(query: str) -> Mapping[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    allowed = sorted([*_CHOICES, *_FILES])
    for name, value in options.items():
        if name not in allowed:
            raise _refused(f"found option {name!r}", f"one of {', '.join(allowed)}")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise _refused(f"found {name}={value}", f"one of {', '.join(_CHOICES[name])}")
        if name in _FILES and not Path(value).is_file():
            raise _refused(f"found {name}={value}, which is no file", "an existing file")
    return options


def _expect_whole(options: Mapping[str, str], *, user: bool, password: bool) -> None:
    """That nothing was given which would be left out without a word. Raises LogAddressError."""
    mechanisms = " or ".join(f"sasl={each}" for each in _CHOICES["sasl"])
    if user and "sasl" not in options:
        raise _refused("found a user and no option sasl", f"{mechanisms}, the one that the brokers ask for")
    if user and not password:
        raise _refused("found a user and no password", "user:password@host, or the option password_file")
    if not user and (password or "sasl" in options):
        raise _refused("found a password or the option sasl and no user", "user:password@host with both, or neither")
    if bool(options.get("certificate")) != bool(options.get("key")):
        raise _refused("found only one of certificate and key", "both or none")
    if options.get("tls") != "on" and (given := sorted(options.keys() & {"ca", "certificate", "key"})):
        raise _refused(f"found option {given[0]} and not tls=on", "tls=on with it")


def _server(text: str) -> str:
    has_port = text.rpartition("]")[2].count(":")
    return text if has_port else f"{text}:{_DEFAULT_PORT}"


def _read(file: str) -> str:
    try:
        return Path(file).read_text().strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(f"tried to read password_file={file}, found {error}", "a text file that may be read") from None


def _refused(found: str, allowed: str) -> LogAddressError:
    return LogAddressError(f"HEADWATER_LOG_URL: {found}, allowed is {allowed}")
