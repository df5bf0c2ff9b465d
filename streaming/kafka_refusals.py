"""What librdkafka says went wrong, as an error of ours: whether it passes, what was tried, what to set.

What it says unasked goes to `LOGGER`.
"""

from __future__ import annotations

import logging

from confluent_kafka import KafkaError

from streaming.kafka_config import MAX_RECORD_BYTES, KafkaAddress
from streaming.log_writer import (
    LogAddressError,
    LogError,
    PermanentLogError,
    RecordTooLargeError,
    RetryableLogError,
    UnknownTopicError,
)

__all__ = ["LOGGER", "refusal"]

LOGGER = logging.getLogger("streaming.librdkafka")
# Our errors say what went wrong; without a handler Python would print each attempt to connect as well.
LOGGER.addHandler(logging.NullHandler())

_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_MSG_SIZE)
_NOT_ALLOWED = (
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
)
_UNKNOWN = (
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_EXCEPTION,
)
_FOR_GOOD = (
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_MSG,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.INVALID_CONFIG,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.POLICY_VIOLATION,
    KafkaError.UNSUPPORTED_VERSION,
    KafkaError._INVALID_ARG,
)
_KEY_SHOWN = 200


def refusal(
    error: KafkaError,
    address: KafkaAddress,
    *,
    topic: str | None = None,
    key: bytes | None = None,
    size: int = 0,
    after: str = "",
) -> LogError:
    """The error; `topic`, `key` and `size` in bytes are of the record that it is about, `after` what was seen first."""
    where = f"{address}, topic {topic}" if topic else str(address)
    said = f"{after}; {error.str()}" if after else error.str()
    code = error.code()
    if code in _TOO_LARGE:
        shown = "none" if key is None else key[:_KEY_SHOWN].decode(errors="replace")
        return RecordTooLargeError(
            f"{where}: the record with key {shown} has {size} bytes; it, or the batch that it began, was refused: "
            f"{said}. Allowed are {MAX_RECORD_BYTES}, if the topic's max.message.bytes is larger than that: raise it",
            topic=topic or "",
            key=key,
            size=size,
        )
    if code in _NOT_ALLOWED:
        return LogAddressError(
            f"{where}: {said}. Check user, password, tls and ca in HEADWATER_LOG_URL, and our rights"
        )
    if code in _UNKNOWN:
        return UnknownTopicError(f"{where}: {said}")
    if code in _FOR_GOOD:
        return PermanentLogError(f"{where}: {said}")
    return RetryableLogError(f"{where}: {said}")
