"""Dead letters over every change log: kept whole, listed, put through again once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
from click.testing import CliRunner

from catalog.settings import Settings, load_settings
from catalog.spec import Column, Gate, Source
from headwater.cli import cli
from headwater.stack.server import Server
from lake import Lake
from lake.schema import DBT_PROJECT_DIR
from streaming.dead_letters import (
    DeadLetter,
    DeadLetterError,
    Origin,
    dead_letter,
    dlq_topic,
    letters,
    put,
    replay,
    whole,
)
from streaming.landing import land
from streaming.log import ChangeLog
from streaming.log_writer import LogWriter
from streaming.open_log import open_log, open_writer

pytest_plugins = ["kafka_broker"]

ENVELOPE = b'{"after":{"note":"\\"headwater\\":{"},"source":{"headwater":{"epoch":1,"commit":7,"order":2}},"op":"c"}'


@pytest.fixture(params=["embedded", "kafka"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    found = {"HEADWATER_HOME": str(tmp_path / "home")}
    if request.param == "kafka":
        server: Server = request.getfixturevalue("broker")
        found |= {"HEADWATER_LOG_URL": server.url, "HEADWATER_LOG_PARTITIONS": "3"}
    return found


@pytest.fixture
def settings(environment: dict[str, str]) -> Settings:
    return load_settings(environment)


@pytest.fixture
def log(settings: Settings) -> Iterator[ChangeLog]:
    with closing(open_log(settings)) as opened:
        yield opened


@pytest.fixture
def writer(settings: Settings) -> Iterator[LogWriter]:
    with closing(open_writer(settings)) as opened:
        yield opened


@pytest.fixture
def system(fresh: Callable[[str], str]) -> str:
    return fresh("s").replace(".", "_")


def letter(
    system: str, *, key: bytes | None = b'{"id":1}', value: bytes | None = ENVELOPE, at_us: int = 5
) -> DeadLetter:
    origin = Origin(system, f"cdc.{system}.orders", 0, 3, (1, 7, 2))
    return dead_letter(origin, "value: not JSON", key=key, value=value, timestamp_us=1_000_000, at_us=at_us)


def contents(log: ChangeLog, topic: str) -> list[tuple[str | None, str | None]]:
    found = []
    for source in log.partitions(topic):
        batch = log.read(source, 0, 1_000)
        found += list(zip(batch["key"].to_pylist(), batch["value"].to_pylist(), strict=True))
    return found


def known(log: ChangeLog, system: str) -> list[DeadLetter]:
    """Whole, as they were put."""
    return [replace(each, parts=None) for each in whole(letters(log, system), log)]


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"k", b"v"), (None, b"v"), (b"k", None), (b"\xff\0", b"\xfe" * 10), (b"k", b"\x01\xf0\x9f\x98\x80" * 800_000)],
    ids=["text", "no key", "tombstone", "bytes", "large"],
)
def test_a_letter_is_kept_whole_and_once(
    log: ChangeLog, writer: LogWriter, system: str, key: bytes | None, value: bytes | None
) -> None:
    sent = letter(system, key=key, value=value)
    for _ in range(2):  # a crash after it was sent, and again
        put([sent], writer)
        writer.flush()
    assert known(log, system) == [sent]


def test_a_letter_that_was_not_written_to_its_end_is_left_out_until_it_is(
    log: ChangeLog, writer: LogWriter, system: str
) -> None:
    sent = letter(system, value=b"x" * 300_000)
    put([sent], writer)
    writer.flush()
    torn, topic = f"{system}2", dlq_topic(system)
    other = replace(sent, origin=replace(sent.origin, system=torn))
    rows = contents(log, f"{topic}.content")
    assert len(rows) > 2
    for name in (topic, f"{topic}.content"):
        writer.ensure([name.replace(system, torn)])
    for key, value in rows[:-1]:
        writer.send(f"{dlq_topic(torn)}.content", str(key).encode(), str(value).encode(), 1_000_000)
    writer.flush()
    assert letters(log, torn) == []
    put([other], writer)
    writer.flush()
    assert known(log, torn) == [other]


def test_a_letter_of_which_the_log_has_deleted_something_says_so(
    log: ChangeLog, writer: LogWriter, system: str
) -> None:
    head = replace(letter(system), content=None, parts=3)
    with pytest.raises(DeadLetterError, match=f"{head.id} the log has only 0 of 3 records"):
        whole([head], log)


def test_a_letter_is_put_through_once_and_bears_its_name(log: ChangeLog, writer: LogWriter, system: str) -> None:
    sent, plain = letter(system), letter(system, key=b"p", value=b"no json", at_us=6)
    put([sent, plain], writer)
    writer.flush()
    first = replay(letters(log, system), log, writer, 9)
    again = replay(letters(log, system), log, writer, 9)
    assert (first.sent, again.sent, again.already_there) == (2, 0, 2)
    assert all(found.replayed for found in letters(log, system))
    found = dict(contents(log, sent.origin.topic))
    assert found["p"] == "no json"
    value = json.loads(str(found['{"id":1}']))
    assert value["source"]["headwater"] == {"replayed": sent.id, "epoch": 1, "commit": 7, "order": 2}
    assert value["after"] == {"note": '"headwater":{'}


class Dies(Exception):
    """A process ends."""


def test_a_replay_that_was_interrupted_sends_nothing_twice(
    log: ChangeLog, writer: LogWriter, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = letter(system)
    put([sent], writer)
    writer.flush()
    send = writer.send

    def dies(topic: str, key: bytes | None, value: bytes | None, *more: object) -> None:
        if value == b'{"replayed": true}':
            raise Dies
        send(topic, key, value, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "send", dies)
    with pytest.raises(Dies):
        replay(letters(log, system), log, writer, 9)
    monkeypatch.undo()
    done = replay(letters(log, system), log, writer, 9)
    assert (done.sent, done.already_there) == (0, 1)
    assert len(contents(log, sent.origin.topic)) == 1


def test_the_command_lists_shows_and_replays(
    environment: dict[str, str], log: ChangeLog, writer: LogWriter, system: str
) -> None:
    sent, other = letter(system), letter(system, key=b"o", value=None, at_us=6)
    put([sent, replace(other, id="f" * 16, reason="too large")], writer)
    writer.flush()

    def dlq(*arguments: str) -> str:
        done = CliRunner().invoke(cli, ["dlq", *arguments], env=environment)
        assert done.exit_code == 0, done.output
        return done.stdout

    listed = json.loads(dlq("list", system, "--json"))
    assert [(each["id"], each["table"], each["reason"]) for each in listed] == [
        (sent.id, "orders", "value: not JSON"),
        ("f" * 16, "orders", "too large"),
    ]
    assert json.loads(dlq("list", system, "--reason", "too", "--json"))[0]["id"] == "f" * 16
    assert len(json.loads(dlq("list", system, "--table", "orders", "--json"))) == 2
    for arguments, said in (
        (("list", system, "--table", "nosuch"), "--table: found 'nosuch', allowed is one of orders"),
        (("replay", "nosuch"), "SYSTEM: found 'nosuch', allowed is one of shop"),
    ):
        refused = CliRunner().invoke(cli, ["dlq", *arguments], env=environment)
        assert refused.exit_code == 2
        assert said in refused.stderr
    shown = json.loads(dlq("show", system, sent.id, "--json"))
    assert (shown["value"], shown["position"], shown["offset"]) == (ENVELOPE.decode(), [1, 7, 2], 3)
    dlq("replay", system, "--reason", "not JSON")
    assert contents(log, sent.origin.topic) == []  # only said what it would do
    dlq("replay", system, "--reason", "not JSON", "--yes")
    assert [key for key, _ in contents(log, sent.origin.topic)] == ['{"id":1}']
    assert [each["id"] for each in json.loads(dlq("list", system, "--json"))] == ["f" * 16]
    unknown = CliRunner().invoke(cli, ["dlq", "show", system, "nothing"], env=environment)
    assert unknown.exit_code == 1
    assert "no dead letter nothing" in unknown.stderr


def test_what_is_in_quarantine_is_put_through_once_its_declaration_was_mended(
    environment: dict[str, str], settings: Settings, log: ChangeLog, writer: LogWriter, system: str
) -> None:
    def thing(*, nullable: bool) -> Source:
        columns = (("id", "int64", False), ("v", "string", nullable))
        return Source(
            system=system,
            table="things",
            description="Things with a text.",
            owner="team:data",
            domain="sales",
            columns=tuple(Column(name=n, type=t, description=f"The {n}.", nullable=may) for n, t, may in columns),
            gate=Gate(key=("id",), event_time="id", freshness_days=1.0),
        )

    def change(commit: int, text: str | None) -> bytes:
        place = {"epoch": 1, "commit": commit, "order": 1}
        after = {"id": 1, "v": text}
        source = {"ts_us": 1_000_000, "headwater": place}
        return json.dumps({"before": None, "after": after, "source": source, "op": "u"}, separators=(",", ":")).encode()

    def dlq(*arguments: str) -> str:
        done = CliRunner().invoke(cli, ["dlq", *arguments], env=environment)
        assert done.exit_code == 0, done.output
        return done.stdout

    lake, topic = Lake(settings.lake_dir), f"cdc.{system}.things"
    writer.ensure([topic])
    for value in (change(5, None), b"no json", change(6, "newer")):
        writer.send(topic, b'{"id":1}', value, 1_000_000)
    writer.flush()
    land(thing(nullable=False), log, lake, 100)
    waiting = json.loads(dlq("list", system, "--quarantine", "--json"))
    assert [each["reason"] for each in waiting] == [
        "v: null, but must not be",
        "value: not a JSON object, found no json",
    ]
    assert [(each["settled"], each["position"]) for each in waiting] == [(False, [1, 5, 1]), (False, None)]
    assert "no json" in dlq("show", system, waiting[1]["id"])
    unlisted = CliRunner().invoke(cli, ["dlq", "list", system, "--table", "things"], env=environment)
    assert "--quarantine lists" in unlisted.stderr
    assert letters(log, system) == []
    for _ in range(2):  # the second time there is nothing left to do
        dlq("replay", system, "--quarantine", "--reason", "null", "--yes")
    report = land(thing(nullable=True), log, lake, 100)
    assert (report.landed, report.quarantined, report.repeated) == (1, 0, 0)
    assert [each["id"] for each in json.loads(dlq("list", system, "--quarantine", "--json"))] == [waiting[1]["id"]]
    assert _states(lake, system) == {"current_rows": [(1, "newer")], "versions": [(1, "newer")]}


def _states(lake: Lake, system: str) -> dict[str, list[tuple[Any, ...]]]:
    """What staging makes of the raw table: the older change that came after the newer one has no say."""
    macros = jinja2.Environment().from_string((DBT_PROJECT_DIR / "macros" / "changes.sql").read_text()).module
    with lake.connect() as db:
        return {
            name: db.sql(f"SELECT id, v FROM ({getattr(macros, name)(f'raw.{system}.things', ['id'])})").fetchall()
            for name in ("current_rows", "versions")
        }
