"""Whether the captured tables are still what they were: what the stream does not tell is looked up every few seconds.

A table that is dropped and made again, renamed away and back, taken out of the publication for a while or given another
key, and a partition that comes or goes with its rows: none of it is a change of a row to PostgreSQL. Such a table is
emptied in the log and read anew, once the stream has passed the moment at which it was noticed. What tables, keys and
partitions there were goes into the checkpoint, so that it is noticed after a restart too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from streaming.capture.errors import Retryable
from streaming.capture.sink import Sink
from streaming.capture.source import Chunk
from streaming.capture.tables import TableSchema
from streaming.postgres.catalog import Description, Mark

__all__ = ["Marks", "Watch", "rows_came_or_went"]

Marks = dict[str, Mark]
"""By table name."""


def rows_came_or_went(known: Mark | None, found: Description) -> str | None:
    """Why the rows of a table are not those that the log has by its keys; None when they are."""
    if known is None or known["oid"] != found.oid:
        return "it is another table than before"
    if known["key"] != list(found.key):
        return "its key is another one"
    born = {leaf.oid for leaf in found.leaves if leaf.born}
    before, now = set(known["leaves"]), {leaf.oid for leaf in found.leaves}
    if before - now:
        return "a partition was detached or dropped"
    return "a partition was attached" if now - before - born else None


class Watch:
    """What is known about the tables, at the position up to which everything was handed over."""

    def __init__(
        self, sink: Sink, marks: Marks, due: Mapping[str, tuple[int, Mark]], say: Callable[[str], None]
    ) -> None:
        """`due`: tables to read anew, from which position on, and their mark from then on."""
        self.marks = marks
        self._sink, self._say = sink, say
        self._due = dict(due)
        self._read: deque[tuple[int, TableSchema]] = deque()
        self.resume: Mapping[str, Any] = {}
        self._keep()

    @property
    def waits(self) -> bool:
        """Whether something happens at the next position."""
        return bool(self._due or self._read)

    def reach(self, position: int) -> None:
        """Everything before the position was handed over."""
        for name in [name for name, (at, _) in self._due.items() if at <= position]:
            self.marks[name] = self._due.pop(name)[1]
            self._keep()
            self._sink.reread(name)
        while self._read and self._read[0][0] < position:
            _, schema = self._read.popleft()
            table = self._sink.tables.get(schema.name)
            if table is None or table.schema != schema:
                self._sink.schema(schema)

    def announced(self, oid: int, name: str) -> None:
        """The stream has changes of the table with this oid, which has this name there."""
        for known in [known for known, mark in self.marks.items() if mark["oid"] == oid and known != name]:
            self._say(f"{known} was renamed to {name}: what happens to it is not captured any more")
            del self.marks[known]
            self._keep()

    def was_read(self, name: str, chunk: Chunk) -> None:
        """A chunk found the table as it says; the stream has to know of it before its rows go out. From any thread."""
        table = self._sink.tables.get(name)
        if chunk.schema is not None and (table is None or table.schema != chunk.schema):
            self._read.append((chunk.high, chunk.schema))

    def compare(self, wanted: Iterable[str], found: Mapping[str, Description], position: int) -> None:
        """Against what there is now, at this position of the server. Raises Retryable for what `prepare` mends."""
        for name in wanted:
            one = found.get(name)
            if one is None:
                self._gone(name)
            elif not one.is_published:
                raise Retryable(f"{name} was made again, or taken out of the publication: it is put there")
            elif name not in self.marks or self.marks[name]["oid"] != one.oid:
                if name not in self._due:
                    raise Retryable(f"{name} is another table than before: it is read anew")
            elif self.marks[name] != one.mark:
                self._differs(name, one, position)

    def _gone(self, name: str) -> None:
        self._due.pop(name, None)
        if self.marks.pop(name, None):
            self._keep()
            self._say(f"{name} was dropped or renamed: captured are the others (docs/runbooks/postgresql_tables.md)")

    def _differs(self, name: str, one: Description, position: int) -> None:
        why = rows_came_or_went(self.marks[name], one)
        if why is None:
            self.marks[name] = one.mark
            self._keep()
        elif name not in self._due or self._due[name][1] != one.mark:
            self._say(f"{name}: {why}: it is emptied and read anew")
            self._due[name] = (position, one.mark)

    def _keep(self) -> None:
        """For every transaction's resume token: made only when something has changed."""
        self.resume = {"tables": dict(self.marks)}
