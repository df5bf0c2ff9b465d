"""Whether the captured tables are still what they were: what the stream does not tell is looked up every few seconds.

A table that is dropped and made again, renamed away and back, taken out of the publication for a while or given another
key, and a partition that comes or goes with rows, or loses them: none of it is a change of a row to PostgreSQL. Such
a table is emptied in the log and read anew, once the stream has passed the moment at which it was noticed. So is, but
without being emptied, one whose columns got other values: a column added with a default, renamed, or given another
type. What there was goes into the checkpoint, so that it is noticed after a restart too.

How a table looks is told by the stream before its next change. Where none may follow, the catalog is asked, and the
answer counts when the stream has come to where the log ended then, if it has told nothing of the table meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streaming.capture.errors import Retryable
from streaming.capture.sink import Sink
from streaming.capture.source import Chunk
from streaming.capture.tables import TableSchema
from streaming.postgres.catalog import Column, Description, Mark
from streaming.postgres.checks import without_identity

__all__ = ["Due", "Marks", "Watch", "remembering", "to_read_anew"]

Marks = dict[str, Mark]
"""By table name."""


@dataclass(frozen=True)
class Due:
    """A table is to be read anew once the stream has passed `position`, and has `mark` from then on."""

    position: int
    mark: Mark
    emptied: bool


def to_read_anew(known: Mark | None, found: Description, position: int) -> tuple[str, Due] | None:
    """Why the log does not have the table's rows as they are, and what to do; None when it has."""
    why = _rows_came_or_went(known, found)
    if why is not None:
        return f"{why}: it is emptied and read anew", Due(position, found.mark, emptied=True)
    assert known is not None
    why = _values_changed(known, found)
    return None if why is None else (f"{why}: it is read anew", Due(position, found.mark, emptied=False))


def remembering(known: Mark, found: Mark) -> Mark:
    """The table as it was found, and the columns that it had before: the log still has values under their names."""
    return {**found, "columns": {**known["columns"], **found["columns"]}}


def _rows_came_or_went(known: Mark | None, found: Description) -> str | None:
    """Why the rows of a table are not those that the log has by its keys; None when they are."""
    if known is None or known.keys() != found.mark.keys() or known["oid"] != found.oid:
        return "it is another table than before"
    if known["published"] != list(found.published):
        return "what is published of it was altered"
    if known["key"] != list(found.key):
        return "its key is another one"
    if relabelled := [
        column.name for column in found.columns if column.name in known["key"] and _relabelled(known, column)
    ]:
        return f"labels of column {relabelled[0]} of its key were renamed"
    born = {leaf.oid for leaf in found.leaves if leaf.born}
    before, now = set(known["leaves"]), {leaf.oid for leaf in found.leaves}
    if before - now:
        return "a partition was detached or dropped"
    if now - before - born:
        return "a partition was attached"
    # TRUNCATE of a partition is not streamed, and leaves no other trace; VACUUM FULL leaves the same.
    return "a partition was truncated or rewritten" if now and {*known["files"]} - {*found.mark["files"]} else None


def _values_changed(known: Mark, found: Description) -> str | None:
    """Why rows have other values than the log, without having been changed; None when they have not."""
    rewritten = known["files"] != found.mark["files"]
    numbers = {number for number, *_ in known["columns"].values()}
    for column in found.columns:
        number, version, *_ = known["columns"].get(column.name, (0, 0))
        if _relabelled(known, column):
            return f"labels of column {column.name} were renamed"
        if number == column.number:
            if version != column.version and rewritten:
                return f"column {column.name} was given another type"
        elif column.number in numbers or column.number <= known["last_number"]:
            return f"column {column.name} has the values of another one"
        elif number or column.has_default or rewritten:
            return f"column {column.name} was added with values"
    return None


def _relabelled(known: Mark, column: Column) -> bool:
    """Whether a label of the column's enum has another text than before, and with it every row that has it."""
    _, _, *before = known["columns"].get(column.name, (0, 0))
    now = column.labels or {}
    return any(now.get(oid, label) != label for labels in before for oid, label in labels.items())


class Watch:
    """What is known about the tables, at the position up to which everything was handed over."""

    def __init__(
        self,
        sink: Sink,
        marks: Marks,
        due: Mapping[str, Due],
        look: Callable[[Collection[str]], tuple[Sequence[TableSchema], int]],
        say: Callable[[str], None],
    ) -> None:
        """`due`: tables to read anew. `look`: how tables look, and the log's end after that was asked."""
        self.marks = marks
        self._sink, self._say = sink, say
        self._due = dict(due)
        self._without_identity: tuple[str, ...] = ()
        self._look = look
        # Tables that may look different from what the stream has told; how they were found, by which position.
        self._unsure: deque[str] = deque()
        self._found: dict[str, TableSchema] = {}
        self._found_by = 0
        self.resume: Mapping[str, Any] = {}
        self._keep()

    @property
    def waits(self) -> bool:
        """Whether something happens at the next position."""
        return bool(self._due or self._unsure or self._found)

    def reach(self, position: int) -> None:
        """Everything before the position was handed over."""
        for name in [name for name, due in self._due.items() if due.position <= position]:
            due = self._due.pop(name)
            self.marks[name] = due.mark
            self._keep()
            self._sink.reread(name, emptied=due.emptied)
        if self._found and self._found_by <= position:
            found, self._found = self._found, {}
            for name, schema in found.items():
                if name in self._sink.tables and self._sink.tables[name].schema != schema:
                    self._sink.schema(schema)
        if self._unsure and not self._found:
            names = {self._unsure.popleft() for _ in range(len(self._unsure))}
            schemas, self._found_by = self._look(names)
            self._found = {one.name: one for one in schemas}

    def announced(self, oid: int, name: str) -> None:
        """The stream has changes of the table with this oid, which has this name there, and said how it looked there.

        That may be older than what was found, or newer.
        """
        if self._found.pop(name, None) is not None:
            self._unsure.append(name)
        for known in [known for known, mark in self.marks.items() if mark["oid"] == oid and known != name]:
            self._say(f"{known} was renamed to {name}: what happens to it is not captured any more")
            del self.marks[known]
            self._keep()

    def was_read(self, name: str, chunk: Chunk) -> None:
        """A chunk found the table as it says. From any thread."""
        table = self._sink.tables.get(name)
        if chunk.schema is not None and (table is None or table.schema != chunk.schema):
            self._unsure.append(name)

    def ask(self, names: Iterable[str]) -> None:
        """Find out how these tables look, whether rows of them are streamed or not."""
        self._unsure.extend(names)

    def compare(self, wanted: Iterable[str], found: Mapping[str, Description], position: int) -> None:
        """Against what there is now, at this position of the server. Raises Retryable for what `prepare` mends."""
        for name in wanted:
            one = found.get(name)
            if one is None:
                self._gone(name)
            elif not one.is_published:
                raise Retryable(f"{name} was made again, or taken out of the publication: it is put there")
            elif one.persistence != "p":
                raise Retryable(f"{name} was made unlogged: what happens to it is not streamed")
            elif name not in self.marks or self.marks[name]["oid"] != one.oid:
                if name not in self._due:
                    raise Retryable(f"{name} is another table than before: it is read anew")
            elif self.marks[name] != remembering(self.marks[name], one.mark):
                self._differs(name, one, position)
        self._warn(found.values())

    def _warn(self, found: Iterable[Description]) -> None:
        remedies = tuple(without_identity(found))
        if remedies and remedies != self._without_identity:
            self._say(
                "PostgreSQL refuses to update or delete rows of a table that has lost its replica identity. Give it a "
                f"primary key, or: {'; '.join(remedies)} (docs/runbooks/postgresql_replica_identity.md)"
            )
        self._without_identity = remedies

    def _gone(self, name: str) -> None:
        self._due.pop(name, None)
        if self.marks.pop(name, None):
            self._keep()
            self._say(f"{name} was dropped or renamed: captured are the others (docs/runbooks/postgresql_tables.md)")

    def _differs(self, name: str, one: Description, position: int) -> None:
        self.ask([name])
        anew = to_read_anew(self.marks[name], one, position)
        if anew is None:
            self.marks[name] = remembering(self.marks[name], one.mark)
            self._keep()
        elif name not in self._due or self._due[name].mark != one.mark:
            why, self._due[name] = anew
            self._say(f"{name}: {why}")

    def _keep(self) -> None:
        """For every transaction's resume token: made only when something has changed."""
        self.resume = {"tables": dict(self.marks)}
