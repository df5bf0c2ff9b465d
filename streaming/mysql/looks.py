"""How altered tables look now, learnt exactly: from the dictionary, once the stream has reached what it was asked at.

DDL is in the stream as text. Mostly rows follow that say what the table looks like; where none do, the dictionary is
asked. It may be ahead of the stream, though: so the log's end is noted after asking, and the answer counts when the
stream gets there without another statement that alters the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streaming.capture.tables import TableSchema
from streaming.mysql.dictionary import Dictionary
from streaming.mysql.server import Server

if TYPE_CHECKING:
    import pymysql

__all__ = ["Looks"]


@dataclass(frozen=True)
class _Answer:
    altered: int
    schema: TableSchema | None
    until: int


class Looks:
    """What was asked about altered tables, and not needed yet."""

    def __init__(self, server: Server, dictionary: Dictionary, connection: pymysql.Connection) -> None:
        self._server, self._dictionary, self._connection = server, dictionary, connection
        self._answers: dict[str, _Answer] = {}

    def learn(self, altered: dict[str, int], place: int) -> Iterator[TableSchema]:
        """New looks of tables. `altered`: where DDL last touched each; those that are known now are taken out."""
        for name, where in list(altered.items()):
            answer = self._answers.get(name)
            if answer is None or answer.altered != where:
                answer = self._answers[name] = self._ask(name, where)
            if place >= answer.until:
                del altered[name], self._answers[name]
                if answer.schema is not None:
                    yield answer.schema
        for name in self._answers.keys() - altered.keys():
            del self._answers[name]

    def _ask(self, name: str, where: int) -> _Answer:
        found = self._dictionary.describe(self._connection, name)
        return _Answer(where, found.schema if found else None, self._server.logs().end)
