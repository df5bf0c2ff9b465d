"""Where a connector resumes: one record in the compacted topic `capture.<system>.state`, written after what it covers.

It lies in the log and not in a file, so that a connector may move to another machine, and so that log and checkpoint
are lost or kept together.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from streaming.capture.errors import Halt
from streaming.log_writer import LogWriter, Record

__all__ = ["Checkpoint", "TableProgress", "state_topic"]

_KEY = b'{"checkpoint":"connector"}'
_FORMAT = 1


def state_topic(system: str) -> str:
    """The topic that holds the connector's checkpoints."""
    return f"capture.{system}.state"


@dataclass(frozen=True)
class TableProgress:
    """A table's snapshot: `state` pending, running or done; `cursor` the last key that was read, as the source says.

    State void: as pending, and what the log has of the table is declared gone first.
    """

    state: str = "pending"
    cursor: tuple[Any, ...] | None = None
    rows: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """Everything up to `resume` is durable in the log.

    `identity` says which server it is a position of; `resume` is the source's own token (`{"lsn": ...}`, `{"file": ...,
    "pos": ..., "gtid": ...}`); `commit` the same as one growing number, within `epoch`.
    """

    identity: Mapping[str, str]
    resume: Mapping[str, Any]
    commit: int
    epoch: int = 1
    tables: Mapping[str, TableProgress] = field(default_factory=dict)

    def save(self, system: str, writer: LogWriter, now_us: int) -> None:
        """Append and make durable."""
        body = json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True)
        value = json.dumps({"crc": zlib.crc32(body.encode()), "body": body}).encode()
        writer.send(state_topic(system), _KEY, value, now_us, 0)
        writer.flush()

    @classmethod
    def load(cls, system: str, writer: LogWriter) -> Checkpoint | None:
        """The last one; None when the connector never ran. Raises Halt when it cannot be read."""
        tail = writer.tails(state_topic(system), 1).get(0, ())
        return cls._read(system, tail[-1]) if tail else None

    @classmethod
    def _read(cls, system: str, record: Record) -> Checkpoint:
        where = f"checkpoint at offset {record.offset} of {state_topic(system)}"
        try:
            outer = json.loads(record.value or b"")
            body = outer["body"]
            if zlib.crc32(body.encode()) != outer["crc"]:
                raise ValueError("its checksum does not fit")
            found = json.loads(body)
            if found.pop("format") != _FORMAT:
                raise ValueError("it was written by another version")
            tables = {
                name: TableProgress(t["state"], None if t["cursor"] is None else tuple(t["cursor"]), t["rows"])
                for name, t in found.pop("tables").items()
            }
            return cls(**found, tables=tables)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Halt(
                f"{where} cannot be read: {error}",
                f"`headwater capture {system} --from-scratch` snapshots every table again and goes on from there",
                "checkpoint_corrupt",
            ) from error
