"""Dead letters: records that could not be carried at all, kept whole in the topic `dlq.<system>` until they can be.

What never got into the log, for its size, is a dead letter at once: the connector says so and goes on. What got into it
but cannot land (it breaks its table's contract, nobody can parse it, its table's schema became incompatible) is in the
table's quarantine, in the lake, whole; it becomes a letter when it is put through again. Each is kept with its reason,
where it came from and when, and under a name that follows from that, so that whoever crashes and says it again says
nothing new.

A letter is cut into records of a size that any log takes. What became of it is told by later records of the same key:
`putting` (where its topic ended before it was put through again), `replayed`. A replay that was interrupted looks from
there on for what it had sent. A record put through again has its letter's name in `source.headwater.replayed`, where it
has that block: its place is behind the watermark by then, and landing must not take it for a repetition.

Errors: DeadLetterError   a letter does not exist, or its topic does not any more
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from streaming.record_text import to_bytes, to_text

if TYPE_CHECKING:
    from lake.tables import Lake
    from streaming.log import ChangeLog
    from streaming.log_writer import LogWriter

__all__ = [
    "DeadLetter",
    "DeadLetterError",
    "Origin",
    "Replayed",
    "dead_letter",
    "dlq_topic",
    "letters",
    "put",
    "quarantined",
    "replay",
]

# Kafka takes a record of 1 MiB by default; a character takes up to six bytes as JSON.
_PART_CHARACTERS = 128 << 10
_READ_AT_ONCE = 1_000
_HEADWATER = b'"headwater":{'


class DeadLetterError(ValueError):
    """A letter does not exist, or its topic does not any more."""


@dataclass(frozen=True)
class Origin:
    """Where a record was found, or was to go: `offset` None when the log never took it.

    `position`: its place in the source's history (epoch, commit, order), where it has one.
    """

    system: str
    topic: str
    partition: int | None = None
    offset: int | None = None
    position: tuple[int, int, int] | None = None

    @property
    def table(self) -> str:
        return self.topic.rpartition(".")[2]


@dataclass(frozen=True)
class DeadLetter:
    """A record that could not be carried. `at_us`: when that was found, microseconds since 1970.

    `putting`: the end of each partition of its topic before it was first put through again; `replayed`: it was.
    """

    id: str
    origin: Origin
    reason: str
    at_us: int
    timestamp_us: int
    key: bytes | None
    value: bytes | None
    putting: Mapping[int, int] | None = field(default=None)
    replayed: bool = False


@dataclass(frozen=True)
class Replayed:
    """What a replay did: letters sent, letters found sent already."""

    sent: int
    already_there: int


def dlq_topic(system: str) -> str:
    """The topic of a system's dead letters."""
    return f"dlq.{system}"


def dead_letter(
    origin: Origin, reason: str, *, key: bytes | None, value: bytes | None, timestamp_us: int, at_us: int
) -> DeadLetter:
    """A letter, under the name that the same record always gets. `timestamp_us`: the record's own time. Pure.

    A change has the same position whenever it is captured again, but other times in its value.
    """
    place = [origin.topic, origin.partition, origin.offset, origin.position]
    told = (key,) if origin.position and key is not None else (key, value)
    content = [None if each is None else hashlib.sha256(each).hexdigest() for each in told]
    name = hashlib.sha256(json.dumps([place, content]).encode()).hexdigest()[:16]
    return DeadLetter(name, origin, reason, at_us, timestamp_us, key, value)


def put(found: Iterable[DeadLetter], writer: LogWriter) -> None:
    """Send letters to their topics; durable after the writer's next flush. Raises LogError."""
    for letter in found:
        topic = dlq_topic(letter.origin.system)
        writer.ensure([topic])
        for part in _parts(letter):
            writer.send(topic, letter.id.encode(), part, letter.at_us)


def letters(log: ChangeLog, system: str) -> list[DeadLetter]:
    """Every letter of the system, oldest first, each once; one that was not written to its end is left out."""
    known: dict[str, _Pieces] = {}
    for source in log.partitions(dlq_topic(system)):
        for _, _, key, value in _records(log, source, log.begin(source)):
            known.setdefault(key or "", _Pieces()).add(json.loads(value or "{}"))
    found = [letter for name, pieces in known.items() if (letter := pieces.letter(name, system)) is not None]
    return sorted(found, key=lambda letter: (letter.at_us, letter.id))


def quarantined(lake: Lake, system: str, *, table: str | None = None, reason: str = "") -> list[DeadLetter]:
    """What is in the quarantine of a system's tables, or one's, as the letters that it would be; by a reason's text."""
    from lake.tables import quoted

    found: list[DeadLetter] = []
    tables = [key for key in sorted(lake.keys()) if key[:2] == ("quarantine", system) and table in (None, key.name)]
    for key in tables:
        with lake.connect([key]) as db:
            rows = db.execute(
                f"""SELECT topic, log_partition, log_offset, reason, coalesce(epoch_us(landed_at), 0), key, value
                FROM {quoted(key)} WHERE contains(reason, ?) ORDER BY log_partition, log_offset""",
                [reason],
            ).fetchall()
        found += [_of_row(system, *row) for row in rows]
    return found


def _of_row(
    system: str, topic: str, partition: int, offset: int, reason: str, at_us: int, key: str | None, value: str | None
) -> DeadLetter:
    raw = _raw(key), _raw(value)
    origin = Origin(system, topic, partition, offset)
    return dead_letter(origin, reason, key=raw[0], value=raw[1], timestamp_us=at_us, at_us=at_us)


def replay(found: Sequence[DeadLetter], log: ChangeLog, writer: LogWriter, at_us: int) -> Replayed:
    """Put letters through again: their records go to the end of their partitions, each once however often this is done.

    Raises LogError: what was put through until then stays so, and the same call goes on with the rest.
    """
    done: Counter[str] = Counter()
    for letter in found:
        done["there" if _put_through(letter, log, writer, at_us) else "sent"] += 1
    return Replayed(done["sent"], done["there"])


def _put_through(letter: DeadLetter, log: ChangeLog, writer: LogWriter, at_us: int) -> bool:
    """Returns whether it was there already."""
    if letter.replayed:
        return True
    content = (letter.key, _marked(letter))
    if letter.putting is not None and _is_there(content, letter, log):
        _tell(letter, {"replayed": True}, writer, at_us)
        return True
    if letter.putting is None:
        ends = {source.partition: end for source, end in log.ends(log.partitions(letter.origin.topic)).items()}
        _tell(letter, {"putting": ends}, writer, at_us)
    # A record with a key goes where its key's records go by now; one without has to be where it was.
    partition = letter.origin.partition if letter.key is None else None
    writer.ensure([letter.origin.topic])
    writer.send(letter.origin.topic, *content, letter.timestamp_us, partition)
    writer.flush()
    _tell(letter, {"replayed": True}, writer, at_us)
    return False


def _tell(letter: DeadLetter, what: Mapping[str, Any], writer: LogWriter, at_us: int) -> None:
    writer.send(dlq_topic(letter.origin.system), letter.id.encode(), json.dumps(what).encode(), at_us)
    writer.flush()


def _is_there(content: tuple[bytes | None, bytes | None], letter: DeadLetter, log: ChangeLog) -> bool:
    """Whether the very record was appended since the first try began."""
    assert letter.putting is not None
    return any(
        content == (_raw(key), _raw(value))
        for source in log.partitions(letter.origin.topic)
        for _, _, key, value in _records(log, source, letter.putting.get(source.partition, 0))
    )


def _marked(letter: DeadLetter) -> bytes | None:
    """The record's value, with the letter's name in its `source.headwater`: in the last such block, for the row's own
    columns come before it.
    """
    before, found, after = (letter.value or b"").rpartition(_HEADWATER)
    if letter.value is None or not found:
        return letter.value
    return b'%b%b"replayed":"%b",%b' % (before, found, letter.id.encode(), after)


def _parts(letter: DeadLetter) -> Iterator[bytes]:
    """The letter as the values of its records: about whom it is first, then what the record was."""
    origin = letter.origin
    text = json.dumps([None if each is None else to_text(each) for each in (letter.key, letter.value)])
    pieces = [text[at : at + _PART_CHARACTERS] for at in range(0, len(text), _PART_CHARACTERS)]
    head = {
        "reason": letter.reason,
        "table": origin.table,
        "topic": origin.topic,
        "partition": origin.partition,
        "offset": origin.offset,
        "position": origin.position,
        "at_us": letter.at_us,
        "timestamp_us": letter.timestamp_us,
        "parts": len(pieces),
    }
    yield json.dumps(head).encode()
    for number, piece in enumerate(pieces):
        yield json.dumps({"part": number, "content": piece}).encode()


@dataclass
class _Pieces:
    """The records of one letter, in whatever order and however often they are read."""

    head: Mapping[str, Any] | None = None
    parts: dict[int, str] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        if "part" in record:
            self.parts[record["part"]] = record["content"]
        elif "reason" in record:
            self.head = self.head or record
        else:
            self.told = {**record, **self.told}

    def letter(self, name: str, system: str) -> DeadLetter | None:
        head = self.head
        if head is None or len(self.parts) < head["parts"]:
            return None
        key, value = json.loads("".join(self.parts[number] for number in range(head["parts"])))
        position = tuple(head["position"]) if head["position"] else None
        origin = Origin(system, head["topic"], head["partition"], head["offset"], position)
        letter = DeadLetter(name, origin, head["reason"], head["at_us"], head["timestamp_us"], _raw(key), _raw(value))
        putting = self.told.get("putting")
        return replace(
            letter,
            putting=None if putting is None else {int(partition): end for partition, end in putting.items()},
            replayed=bool(self.told.get("replayed")),
        )


def _records(log: ChangeLog, source: Any, offset: int) -> Iterator[tuple[int, int, str | None, str | None]]:
    """All records of a partition from `offset` on, as BATCH_SCHEMA's columns."""
    while (batch := log.read(source, offset, _READ_AT_ONCE)).num_rows:
        columns = [batch[name].to_pylist() for name in batch.column_names]
        yield from zip(*columns, strict=True)
        offset = columns[0][-1] + 1


def _raw(text: str | None) -> bytes | None:
    return None if text is None else to_bytes(text)
