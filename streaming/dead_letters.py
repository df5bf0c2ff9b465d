"""Dead letters: records that could not be carried at all, kept whole in the log until they can be.

What never got into the log, for its size, is a dead letter at once: the connector says so and goes on. What got into it
but cannot land (it breaks its table's contract, nobody can parse it, its table's schema became incompatible) is in the
table's quarantine, in the lake, whole; it becomes a letter when it is put through again. Each is kept with its reason,
where it came from and when, and under a name that follows from that, so that whoever crashes and says it again says
nothing new.

A letter is a record of the topic `dlq.<system>` that says what it is about: who counts the letters reads no more. What
was to be carried, cut into records of a size that any log takes, is in `dlq.<system>.content` by then. What became of
it is told by later records of the letter's key: `putting` (where its topic ended before it was put through again),
`replayed`. A replay that was interrupted looks from there on for what it had sent. A record put through again has its
letter's name in `source.headwater.replayed`, where it has that block: its place is behind the watermark by then, and
landing must not take it for a repetition.

Errors: DeadLetterError   a letter does not exist, or its topic does not any more
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from streaming.record_text import to_bytes, to_text

if TYPE_CHECKING:
    from lake.tables import Lake
    from streaming.log import ChangeLog
    from streaming.log_writer import LogWriter

__all__ = [
    "Content",
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
    "whole",
]

# Kafka takes a record of 1 MiB by default; a character takes up to six bytes as JSON.
_PART_CHARACTERS = 128 << 10
_READ_AT_ONCE = 1_000
# Letters that are in memory, and put through, together.
_AT_ONCE = 1_000
_PATIENCE_S = 5.0
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


class Content(NamedTuple):
    """The record itself."""

    key: bytes | None
    value: bytes | None

    @property
    def position(self) -> tuple[int, int, int] | None:
        """Its place in the source's history, where it says so."""
        try:
            place = json.loads(self.value or b"")["source"]["headwater"]
            return int(place["epoch"]), int(place["commit"]), int(place["order"])
        except (ValueError, KeyError, TypeError):
            return None

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.key or b"") + len(self.value or b"")


@dataclass(frozen=True)
class DeadLetter:
    """A record that could not be carried. `at_us`: when that was found, microseconds since 1970.

    `size` in bytes; `content` None as long as it was not read from the log (see whole). `parts`: of it, there.
    `putting`: the end of each partition of its topic before it was first put through again; `replayed`: it was.
    """

    id: str
    origin: Origin
    reason: str
    at_us: int
    timestamp_us: int
    size: int
    content: Content | None = None
    parts: int | None = None
    putting: Mapping[int, int] | None = None
    replayed: bool = False


@dataclass(frozen=True)
class Replayed:
    """What a replay did: letters sent, letters found sent already."""

    sent: int
    already_there: int


def dlq_topic(system: str) -> str:
    """The topic of a system's dead letters."""
    return f"dlq.{system}"


def _content_topic(system: str) -> str:
    return f"{dlq_topic(system)}.content"


def dead_letter(
    origin: Origin, reason: str, *, key: bytes | None, value: bytes | None, timestamp_us: int, at_us: int
) -> DeadLetter:
    """A letter, under the name that the same record always gets. `timestamp_us`: the record's own time. Pure.

    A change has the same position whenever it is captured again, but other times in its value.
    """
    place = [origin.topic, origin.partition, origin.offset, origin.position]
    told = (key,) if origin.position and key is not None else (key, value)
    hashes = [None if each is None else hashlib.sha256(each).hexdigest() for each in told]
    name = hashlib.sha256(json.dumps([place, hashes]).encode()).hexdigest()[:16]
    content = Content(key, value)
    return DeadLetter(name, origin, reason, at_us, timestamp_us, content.size, content)


def put(found: Sequence[DeadLetter], writer: LogWriter) -> None:
    """Send letters to their topics; durable after the writer's next flush. Raises LogError."""
    if not found:
        return
    heads = [(letter, _send_content(letter, writer)) for letter in found]
    writer.flush()  # a letter that is there is there to its end
    for letter, parts in heads:
        _tell(letter, _head(letter, parts), writer, letter.at_us)


def letters(log: ChangeLog, system: str) -> list[DeadLetter]:
    """Every letter of the system without its content, oldest first, each once."""
    known: dict[str, _Told] = {}
    for source in log.partitions(dlq_topic(system)):
        for _, _, key, value in _records(log, source, log.begin(source)):
            known.setdefault(key or "", _Told()).add(json.loads(value or "{}"))
    found = [letter for name, told in known.items() if (letter := told.letter(name, system)) is not None]
    return sorted(found, key=lambda letter: (letter.at_us, letter.id))


def whole(found: Sequence[DeadLetter], log: ChangeLog) -> list[DeadLetter]:
    """The letters with their content. Raises DeadLetterError when the log has not all of it any more."""
    wanted = {letter.id: letter for letter in found if letter.content is None}
    pieces: dict[str, dict[int, str]] = {name: {} for name in wanted}
    for topic in {_content_topic(letter.origin.system) for letter in wanted.values()}:
        for source in log.partitions(topic):
            for _, _, key, value in _records(log, source, log.begin(source)):
                if key in pieces:
                    part = json.loads(value or "{}")
                    pieces[key][part["part"]] = part["content"]
    return [
        letter if letter.content else replace(letter, content=_joined(letter, pieces[letter.id])) for letter in found
    ]


def _joined(letter: DeadLetter, pieces: Mapping[int, str]) -> Content:
    parts = letter.parts or 0
    if len(pieces) < parts:
        raise DeadLetterError(
            f"of the content of dead letter {letter.id} the log has only {len(pieces)} of {parts} records any more: "
            f"retention has deleted from the topic {_content_topic(letter.origin.system)}"
        )
    key, value = json.loads("".join(pieces[number] for number in range(parts)))
    return Content(_raw(key), _raw(value))


def quarantined(lake: Lake, system: str, *, table: str | None = None, reason: str = "") -> Iterator[DeadLetter]:
    """What is in the quarantine of a system's tables, or one's, as the letters that it would be; by a reason's text."""
    from lake.tables import quoted

    tables = [key for key in sorted(lake.keys()) if key[:2] == ("quarantine", system) and table in (None, key.name)]
    for key in tables:
        with lake.connect([key]) as db:
            rows = db.execute(
                f"""SELECT topic, log_partition, log_offset, reason, coalesce(epoch_us(landed_at), 0), key, value
                FROM {quoted(key)} WHERE contains(reason, ?) ORDER BY log_partition, log_offset""",
                [reason],
            )
            while found := rows.fetchmany(_AT_ONCE):
                yield from (_of_row(system, *row) for row in found)


def _of_row(
    system: str, topic: str, partition: int, offset: int, reason: str, at_us: int, key: str | None, value: str | None
) -> DeadLetter:
    raw = _raw(key), _raw(value)
    origin = Origin(system, topic, partition, offset)
    return dead_letter(origin, reason, key=raw[0], value=raw[1], timestamp_us=at_us, at_us=at_us)


def replay(
    found: Iterable[DeadLetter],
    log: ChangeLog,
    writer: LogWriter,
    at_us: int,
    say: Callable[[Replayed], None] = lambda _: None,
) -> Replayed:
    """Put letters through again: their records go to the end of their partitions, each once however often this is done.

    What comes with its content, as from quarantine, becomes a letter first. `say` hears of every thousand. Raises
    LogError: what was put through until then stays so, and the same call goes on with the rest.
    """
    done = Replayed(0, 0)
    letters_left = iter(found)
    while some := list(itertools.islice(letters_left, _AT_ONCE)):
        waiting = [letter for letter in some if not letter.replayed]
        put([letter for letter in waiting if letter.content], writer)
        new = _put_through(whole(waiting, log), log, writer, at_us)
        done = Replayed(done.sent + new, done.already_there + len(some) - new)
        if len(some) == _AT_ONCE:
            say(done)
    return done


def _put_through(found: Sequence[DeadLetter], log: ChangeLog, writer: LogWriter, at_us: int) -> int:
    """Returns how many were not there already."""
    there = _are_there([letter for letter in found if letter.putting is not None], log)
    begun = [letter for letter in found if letter.putting is None]
    topics = {letter.origin.topic for letter in begun}
    ends = {topic: {at.partition: end for at, end in log.ends(log.partitions(topic)).items()} for topic in topics}
    for letter in begun:
        _tell(letter, {"putting": ends[letter.origin.topic]}, writer, at_us)
    writer.flush()
    writer.ensure(sorted({letter.origin.topic for letter in found}))
    done = [letter for letter in found if letter.id in there]
    try:
        for letter in found:
            if letter.id not in there:
                content = _again(letter)
                # A record with a key goes where its key's records go by now; one without has to be where it was.
                partition = letter.origin.partition if content.key is None else None
                writer.send(letter.origin.topic, *content, letter.timestamp_us, partition)
                done.append(letter)
    finally:  # one that is refused does not make the others go twice
        writer.flush()
        for letter in done:
            _tell(letter, {"replayed": True}, writer, at_us)
        writer.flush()
    return len(done) - len(there)


def _are_there(found: Sequence[DeadLetter], log: ChangeLog) -> set[str]:
    """The ids of those whose very record was appended since their first try began."""
    there: set[str] = set()
    for topic in {letter.origin.topic for letter in found}:
        sought = {_again(letter): letter for letter in found if letter.origin.topic == topic}
        for source in log.partitions(topic):
            begun = min((letter.putting or {}).get(source.partition, 0) for letter in sought.values())
            for offset, _, key, value in _records(log, source, begun):
                letter = sought.get(Content(_raw(key), _raw(value)))
                if letter is not None and offset >= (letter.putting or {}).get(source.partition, 0):
                    there.add(letter.id)
    return there


def _again(letter: DeadLetter) -> Content:
    assert letter.content is not None
    return Content(letter.content.key, _marked(letter.id, letter.content.value))


def _tell(letter: DeadLetter, what: Mapping[str, Any], writer: LogWriter, at_us: int) -> None:
    writer.send(dlq_topic(letter.origin.system), letter.id.encode(), json.dumps(what).encode(), at_us)


def _marked(name: str, value: bytes | None) -> bytes | None:
    """The record's value, with the letter's name in its `source.headwater`: in the last such block, for the row's own
    columns come before it.
    """
    before, found, after = (value or b"").rpartition(_HEADWATER)
    if value is None or not found:
        return value
    return b'%b%b"replayed":"%b",%b' % (before, found, name.encode(), after)


def _send_content(letter: DeadLetter, writer: LogWriter) -> int:
    """Returns in how many parts."""
    assert letter.content is not None
    topic = _content_topic(letter.origin.system)
    writer.ensure([dlq_topic(letter.origin.system), topic])
    text = json.dumps([None if each is None else to_text(each) for each in letter.content])
    pieces = [text[at : at + _PART_CHARACTERS] for at in range(0, len(text), _PART_CHARACTERS)]
    for number, piece in enumerate(pieces):
        part = json.dumps({"part": number, "content": piece}).encode()
        writer.send(topic, letter.id.encode(), part, letter.at_us)
    return len(pieces)


def _head(letter: DeadLetter, parts: int) -> Mapping[str, Any]:
    origin = letter.origin
    return {
        "reason": letter.reason,
        "table": origin.table,
        "topic": origin.topic,
        "partition": origin.partition,
        "offset": origin.offset,
        "position": origin.position,
        "at_us": letter.at_us,
        "timestamp_us": letter.timestamp_us,
        "size": letter.size,
        "parts": parts,
    }


@dataclass
class _Told:
    """The records of one letter, in whatever order and however often they are read."""

    head: Mapping[str, Any] | None = None
    since: dict[str, Any] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        if "reason" in record:
            self.head = self.head or record
        else:
            self.since = {**record, **self.since}

    def letter(self, name: str, system: str) -> DeadLetter | None:
        head, putting = self.head, self.since.get("putting")
        if head is None:
            return None
        position = tuple(head["position"]) if head["position"] else None
        return DeadLetter(
            name,
            Origin(system, head["topic"], head["partition"], head["offset"], position),
            head["reason"],
            head["at_us"],
            head["timestamp_us"],
            head["size"],
            parts=head["parts"],
            putting=None if putting is None else {int(partition): end for partition, end in putting.items()},
            replayed=bool(self.since.get("replayed")),
        )


def _records(log: ChangeLog, source: Any, offset: int) -> Iterator[tuple[int, int, str | None, str | None]]:
    """All records of a partition from `offset` on, as BATCH_SCHEMA's columns.

    An answer with nothing in it before the end is no end: the log is asked again.
    """
    end, until = log.end(source), time.monotonic() + _PATIENCE_S
    while offset < end:
        batch = log.read(source, offset, _READ_AT_ONCE)
        if batch.num_rows:
            columns = [batch[name].to_pylist() for name in batch.column_names]
            yield from zip(*columns, strict=True)
            offset, until = columns[0][-1] + 1, time.monotonic() + _PATIENCE_S
        elif time.monotonic() > until:
            return
        else:
            time.sleep(0.05)


def _raw(text: str | None) -> bytes | None:
    return None if text is None else to_bytes(text)
