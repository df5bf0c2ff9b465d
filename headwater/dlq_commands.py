"""Commands of the dead letters: dlq list, show, replay."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from headwater.errors import NotThereYet
from headwater.output import say, show_json, show_table
from headwater.session import current_settings, read_catalog

if TYPE_CHECKING:
    from catalog.keys import Key
    from streaming.dead_letters import DeadLetter, Replayed
    from streaming.log import ChangeLog

__all__ = ["dlq"]

_JSON = click.option("--json", "as_json", is_flag=True, help="As JSON.")


def _selecting(command: Callable[..., None]) -> Callable[..., None]:
    table = click.option("--table", help="Only of this table.")
    reason = click.option("--reason", metavar="TEXT", help="Only whose reason has this text in it.")
    quarantine = click.option("--quarantine", is_flag=True, help="What is in the tables' quarantine instead.")
    return table(reason(quarantine(command)))


@click.group()
def dlq() -> None:
    """Records that could not be carried into the lake: see why, and put them through again.

    A record that the log did not take, for its size, is a dead letter. One that is in the log and cannot land is in its
    table's quarantine: --quarantine is about those.
    """


@dlq.command("list")
@click.argument("system")
@_selecting
@click.option("--all", "replayed_too", is_flag=True, help="With those that were put through again already.")
@click.option("--limit", type=click.IntRange(1), default=1_000, show_default=True, help="At most so many.")
@_JSON
def list_(
    system: str,
    *,
    table: str | None,
    reason: str | None,
    quarantine: bool,
    replayed_too: bool,
    limit: int,
    as_json: bool,
) -> None:
    """The dead letters of SYSTEM (shop), oldest first.

    What is in quarantine may be settled by now: a later change of the same row has landed.

    \b
    Examples:
      headwater dlq list shop
      headwater dlq list shop --table orders --reason "too large"
      headwater dlq list shop --quarantine --table orders
    """
    with _open_log() as log:
        selected = _selected(log, system, table, reason, quarantine)
        found = list(itertools.islice((each for each in selected if replayed_too or not each.replayed), limit + 1))
    if len(found) > limit:
        found.pop()
        say(f"headwater: these are the first {limit}, there are more: --limit, --table and --reason choose")
    waiting = {each.id for each in (_unsettled(system, found) if quarantine else found)}
    if not (found or quarantine) and _rows_in_quarantine(system, table):
        say("headwater: no dead letters; --quarantine lists the records that are in the log and could not land")
    rows = [{**_summary(each), "settled": each.id not in waiting} for each in found]
    if as_json:
        show_json(rows)
    else:
        columns = ["id", "table", "reason", "partition", "offset", "position", "at", "bytes", "replayed"]
        columns += ["settled"] if quarantine else []
        show_table(columns, [[row[name] for name in columns] for row in rows])


@dlq.command()
@click.argument("system")
@click.argument("letter")
@_JSON
def show(system: str, letter: str, *, as_json: bool) -> None:
    """One dead letter of SYSTEM whole: LETTER is its id.

    \b
    Example:
      headwater dlq show shop 0f3a5b7c9d1e2f40
    """
    from streaming.dead_letters import whole
    from streaming.record_text import to_text

    with _open_log() as log:
        (found,) = whole([_named(log, system, letter)], log)
    assert found.content is not None
    content = {name: None if raw is None else to_text(raw) for name, raw in found.content._asdict().items()}
    shown = {**_summary(found), **content}
    if as_json:
        show_json(shown)
    else:
        show_table(["field", "content"], [list(each) for each in shown.items()])


@dlq.command()
@click.argument("system")
@click.argument("chosen", metavar="[LETTER]...", nargs=-1)
@_selecting
@click.option("--all", "settled_too", is_flag=True, help="Of what is in quarantine also what is settled.")
@click.option("--yes", is_flag=True, help="Do it; without this it only says what it would do.")
def replay(
    system: str,
    chosen: tuple[str, ...],
    *,
    table: str | None,
    reason: str | None,
    quarantine: bool,
    settled_too: bool,
    yes: bool,
) -> None:
    """Put dead letters of SYSTEM through again, once what kept them was mended.

    Their records go to the end of their topic, each once however often this is done. One in quarantine that is settled,
    since a later change of the same row has landed, would change no state: --all completes the history with them.

    \b
    Examples:
      headwater dlq replay shop --table orders
      headwater dlq replay shop --table orders --yes
      headwater dlq replay shop --quarantine --table orders --yes
    """
    from streaming.dead_letters import replay as put_through
    from streaming.open_log import open_writer

    with _open_log() as log:
        found = [_named(log, system, name) for name in chosen] or _selected(log, system, table, reason, quarantine)
        if quarantine and not settled_too and not chosen:
            found = _unsettled(system, found)
        waiting = (each for each in found if not each.replayed)
        if not yes:
            say(f"headwater: {sum(1 for _ in waiting)} records would be put through again; --yes does it")
            return
        with closing(open_writer(current_settings())) as writer:
            done = put_through(waiting, log, writer, time.time_ns() // 1_000, _say_progress)
    say(f"headwater: {done.sent} records were put through again, {done.already_there} had been before")


def _say_progress(done: Replayed) -> None:
    say(f"headwater: {done.sent + done.already_there} records so far")


@contextmanager
def _open_log() -> Iterator[ChangeLog]:
    from streaming.open_log import has_log, open_log

    settings = current_settings()
    if not has_log(settings):
        raise NotThereYet(f"there is no change log in {settings.home} yet: `headwater run` or `headwater capture shop`")
    with closing(open_log(settings)) as log:
        yield log


def _selected(
    log: ChangeLog, system: str, table: str | None, reason: str | None, quarantine: bool
) -> Iterable[DeadLetter]:
    from streaming.dead_letters import letters

    known = letters(log, system)
    _expect_known(system, table, known)
    if quarantine:
        by_id = {each.id: each for each in known}
        return (by_id.get(each.id, each) for each in _quarantined(system, table, reason))
    return [
        each
        for each in known
        if (table is None or each.origin.table == table) and (reason is None or reason in each.reason)
    ]


def _expect_known(system: str, table: str | None, found: list[DeadLetter]) -> None:
    """That the system and its table are declared, or something of them waits. Raises BadParameter."""
    known = {(source.system, source.table) for source in read_catalog(current_settings()).sources}
    known |= {(system, letter.origin.table) for letter in found} | {(key[1], key.name) for key in _quarantines()}
    systems = sorted({each for each, _ in known})
    if system not in systems:
        raise click.BadParameter(f"found {system!r}, allowed is one of {', '.join(systems)}", param_hint="SYSTEM")
    if table is not None and (system, table) not in known:
        tables = ", ".join(sorted(name for each, name in known if each == system))
        raise click.BadParameter(f"found {table!r}, allowed is one of {tables}", param_hint="--table")


def _quarantines() -> list[Key]:
    from lake import Lake

    return [key for key in sorted(Lake(current_settings().lake_dir).keys()) if key.layer == "quarantine"]


def _rows_in_quarantine(system: str, table: str | None) -> int:
    from lake import Lake

    lake = Lake(current_settings().lake_dir)
    return sum(lake.rows(key) for key in _quarantines() if key[1] == system and table in (None, key.name))


def _quarantined(system: str, table: str | None = None, reason: str | None = None) -> Iterator[DeadLetter]:
    from lake import Lake
    from streaming.dead_letters import quarantined

    return quarantined(Lake(current_settings().lake_dir), system, table=table, reason=reason or "")


def _unsettled(system: str, found: Iterable[DeadLetter]) -> Iterator[DeadLetter]:
    """Without those in the quarantine of a declared table that nobody has to care for any more."""
    from lake import Lake
    from streaming.landing import contract_of, quarantine_waiting

    lake = Lake(current_settings().lake_dir)
    declared = {contract_of(each).topic: each for each in read_catalog(current_settings()).sources}
    waiting: dict[str, Mapping[tuple[int, int], str]] = {}
    for each in found:
        origin = each.origin
        if origin.topic in declared and origin.topic not in waiting:
            waiting[origin.topic] = quarantine_waiting(declared[origin.topic], lake)
        if origin.topic not in declared or (origin.partition, origin.offset) in waiting[origin.topic]:
            yield each


def _named(log: ChangeLog, system: str, name: str) -> DeadLetter:
    from streaming.dead_letters import DeadLetterError, letters

    for each in (*letters(log, system), *_quarantined(system)):
        if each.id == name:
            return each
    raise DeadLetterError(
        f"there is no dead letter {name} of {system}: `headwater dlq list {system} --all` has all, and with "
        "--quarantine what is in the tables' quarantine"
    )


def _summary(letter: DeadLetter) -> dict[str, Any]:
    origin = letter.origin
    position = origin.position or (letter.content and letter.content.position)
    return {
        "id": letter.id,
        "table": origin.table,
        "reason": letter.reason,
        "topic": origin.topic,
        "partition": origin.partition,
        "offset": origin.offset,
        "position": None if position is None else list(position),
        "at": datetime.fromtimestamp(letter.at_us / 1e6, UTC).isoformat(),
        "bytes": letter.size,
        "replayed": letter.replayed,
    }
