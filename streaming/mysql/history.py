"""Whether the server's binary log is the one that was captured, and where in it to go on.

On the same server a checkpoint's file must still be that very file (begun at the same second, as long at least, with
the same GTIDs up to our place). On another server of the same history, a replica that was promoted, files mean
nothing: there the last transaction that we have must be in the log, with the same GTID and of the same second.

Errors: Halt
          ├─ AnotherServer   neither can be shown, and the server says that it is another one
          ├─ mariadb_binlog_reset    neither can be shown, though it seems to be the same server
          └─ mariadb_binlog_purged   the file was there, and is deleted
"""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass

from streaming.capture.errors import AnotherServer, CaptureError, Halt
from streaming.mysql import events
from streaming.mysql.connect import Database
from streaming.mysql.dump import Dump, purged, reset
from streaming.mysql.events import HEADER
from streaming.mysql.positions import LARGEST_POSITION, Gtid, GtidState, Resume, file_number
from streaming.mysql.server import Logs, Server

__all__ = ["Start", "deleted_before", "find_start", "last_transaction"]


@dataclass(frozen=True)
class Start:
    """Where to go on. `by_gtid`: by the transactions that we have, and not by file and position.

    `moved`: on another server of the same history, whose places are not to be compared with those before.
    """

    resume: Resume
    by_gtid: bool = False
    moved: bool = False


def find_start(database: Database, server: Server, resume: Resume) -> Start:
    """Where the log goes on after a checkpoint. Raises Retryable, Halt."""
    logs = server.logs()
    problem = _not_the_same(database, server, logs, resume)
    if problem is None:
        return Start(resume, by_gtid=resume.pos > LARGEST_POSITION)
    if server.mariadb and _continues(database, resume):
        return Start(resume, by_gtid=True, moved=True)
    if server.name != resume.server:
        raise AnotherServer(f"it was {resume.server}, is {server.name}; {problem.found}")
    raise problem


def _not_the_same(database: Database, server: Server, logs: Logs, resume: Resume) -> Halt | None:
    """Why the checkpoint's file is not in this log; None when it is."""
    where = f"{resume.file}:{resume.pos}"
    if resume.file not in logs.sizes:
        if gone := deleted_before(logs, resume):
            return gone
        return reset(f"there is no {resume.file}, its last file is {logs.file}")
    if logs.sizes[resume.file] < resume.pos:
        return reset(f"{where} lies beyond the end of that file, which has {logs.sizes[resume.file]} bytes")
    born = _born(database, resume.file, server.mariadb)
    if resume.born and born != resume.born:
        return reset(f"{resume.file} was begun at {_at(born)}, and the one captured at {_at(resume.born)}")
    if resume.pos <= LARGEST_POSITION and GtidState.parse(server.gtid_at(resume.file, resume.pos)) != GtidState.parse(
        resume.gtid
    ):
        return reset(f"at {where} its GTID is {server.gtid_at(resume.file, resume.pos)}, and was {resume.gtid}")
    return None


def deleted_before(logs: Logs, resume: Resume) -> Halt | None:
    """What to say when the files of this log begin after the place; None when they do not."""
    oldest = next(iter(logs.sizes))
    same_name = resume.file.rpartition(".")[0] == oldest.rpartition(".")[0]
    if same_name and file_number(resume.file) < file_number(oldest):
        return purged(f"{resume.file}:{resume.pos}", f"the oldest file is {oldest}")
    return None


def _at(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _born(database: Database, file: str, mariadb: bool) -> int:
    """When a file of the log was begun, in seconds: its first event says so."""
    dump = Dump(database, 0, file=file, mariadb=mariadb, until_end=True)
    try:
        for event in dump.all_events():
            when, kind, *_ = HEADER.unpack_from(event, 1)
            if kind == events.FORMAT:
                return int(when)
    finally:
        dump.close()
    return 0


def last_transaction(database: Database, gtid: str) -> tuple[str, int] | None:
    """Of the transaction with which the log came to this state: the state before it, and when it was written.

    By these a promoted replica is known to continue this log. The numbers of a domain have no gaps where one server
    writes at a time; None where the server does not know the state before it: there another server has written
    before, numbers were set by hand, or the log does not go back that far.
    """
    state = GtidState.parse(gtid)
    for last in state:
        before = state.before(last)
        if (written := _written(database, before, last)) is not None:
            return str(before), written
    return None


def _continues(database: Database, resume: Resume) -> bool:
    """Whether the last transaction that we have is in this log too: by GTID, and by when it was written."""
    if not resume.gtid or not resume.written:
        return False
    before = GtidState.parse(resume.before)
    last = next((gtid for gtid in GtidState.parse(resume.gtid) if before[gtid.domain] != gtid), None)
    return last is not None and _written(database, before, last) == resume.written


def _written(database: Database, before: GtidState, gtid: Gtid) -> int | None:
    """When a transaction was written, in seconds; None when it does not follow that state in this log."""
    with suppress(CaptureError), closing(Dump(database, 0, gtid=str(before), until_end=True)) as dump:
        for event in dump.all_events():
            when, kind, writer, *_ = HEADER.unpack_from(event, 1)
            if kind == events.GTID:
                return int(when) if events.read_gtid(event, writer).gtid == gtid else None
    return None
