"""Which change log there is: the cluster that HEADWATER_LOG_URL names, else the embedded log in HEADWATER_HOME.

Imports neither client before it is used: a connector that writes to Kafka loads no table library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streaming.kafka_config import TopicShape, parse_log_url

if TYPE_CHECKING:
    from catalog.settings import Settings
    from streaming.log import ChangeLog
    from streaming.log_writer import LogWriter

__all__ = ["has_log", "open_log", "open_writer", "shown_address"]


def open_log(settings: Settings, *, patience_s: float = 10.0) -> ChangeLog:
    """The log to read and append to; Kafka is connected to when it is first used. Raises LogError.

    `patience_s`: for how long what passes is tried again.
    """
    if settings.log_url:
        from streaming.kafka_log import KafkaLog

        return KafkaLog(parse_log_url(settings.log_url), _shape(settings), patience_s=patience_s)
    from streaming.sqlite_log import SqliteLog

    return SqliteLog(settings.log_path)


def open_writer(settings: Settings) -> LogWriter:
    """The hot way into the same log, for one thread. Raises LogError."""
    if settings.log_url:
        from streaming.kafka_writer import KafkaWriter

        return KafkaWriter(parse_log_url(settings.log_url), _shape(settings))
    from streaming.sqlite_writer import SqliteWriter

    return SqliteWriter(settings.log_path)


def has_log(settings: Settings) -> bool:
    """Whether there is a log to open without making an empty one: a cluster is taken to be there."""
    return bool(settings.log_url) or settings.log_path.exists()


def shown_address(settings: Settings) -> str:
    """Where the log is, for people: without user and password."""
    return str(parse_log_url(settings.log_url)) if settings.log_url else str(settings.log_path)


def _shape(settings: Settings) -> TopicShape:
    return TopicShape(settings.log_partitions, settings.log_replication, settings.log_retention_ms)
