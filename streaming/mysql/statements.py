"""What a statement in the binary log does to tables: DDL, and changes that were logged as statements and not as rows.

Not a parser of SQL: it finds which tables are altered, emptied, renamed or given rows in a way that no row event shows.
What it does not know does nothing to rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["AlteredColumn", "Statement", "read_statement"]

# Comments are dropped, but for /*!50100 ... */ and /*M!100301 ... */, which servers carry out.
_TOKEN = re.compile(
    r"""(?P<nothing>\s+|--(?=\s|$)[^\n]*|\#[^\n]*|/\*M?!\d*|\*/|/\*.*?\*/)
      |`(?P<quoted>(?:[^`]|``)*)`
      |"(?P<ansi>(?:[^"\\]|\\.|"")*)"
      |'(?P<text>(?:[^'\\]|\\.|'')*)'
      |(?P<word>[\w$@]+)
      |(?P<sign>.)""",
    re.VERBOSE | re.DOTALL,
)
_CHANGES = ("INSERT", "REPLACE", "UPDATE", "DELETE", "LOAD", "CALL", "DO", "SELECT", "WITH", "EXECUTE")
# ALTER TABLE ... <these>: rows come or go, and no row event says so.
_UNSEEN = (
    ("DROP", "PARTITION"),
    ("TRUNCATE", "PARTITION"),
    ("EXCHANGE", "PARTITION"),
    ("CONVERT", "PARTITION"),
    ("CONVERT", "TABLE"),
    ("DISCARD", "TABLESPACE"),
    ("IMPORT", "TABLESPACE"),
)
# ALTER TABLE ... ADD <these>: no column.
_NO_COLUMN = ("CHECK", "CONSTRAINT", "FOREIGN", "FULLTEXT", "INDEX", "KEY", "PARTITION", "PERIOD", "PRIMARY",
              "SPATIAL", "SYSTEM", "UNIQUE", "VECTOR")  # fmt: skip
_OPTIONAL = ("COLUMN", "IF", "NOT", "EXISTS")
_SIGNS = ("SIGNED", "UNSIGNED", "ZEROFILL")
# Longer statements that are looked at no further: data, not words.
_LONGEST = 1_000_000


@dataclass(frozen=True)
class AlteredColumn:
    """A column that a table is given: `before` its name until then (None: it is added), `type` and `more` in lower case
    as the statement has them, `more` without a DEFAULT NULL; both empty when it is only renamed.
    """

    name: str
    before: str | None
    type: str = ""
    more: tuple[str, ...] = ()


@dataclass
class Statement:
    """Tables by `schema.name`: `emptied` have no row any more, `altered` may look different, `unseen` may have other
    rows than were streamed, `converted` other texts. `columns`: what the rows of a table are given. `schemas` were
    dropped with all tables in them. `changes`: logged as a statement, it changes rows of tables that are named
    somewhere in `words`.
    """

    verb: str = ""
    emptied: set[str] = field(default_factory=set)
    altered: set[str] = field(default_factory=set)
    unseen: set[str] = field(default_factory=set)
    converted: set[str] = field(default_factory=set)
    columns: dict[str, list[AlteredColumn]] = field(default_factory=dict)
    schemas: set[str] = field(default_factory=set)
    changes: bool = False
    words: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Token:
    text: str
    name: bool
    """Whether it can be a name; only what stands without quotes is a keyword."""
    bare: bool = False

    @property
    def upper(self) -> str:
        return self.text.upper() if self.bare else ""


def read_statement(sql: str, schema: str) -> Statement:
    """What `sql` does, `schema` being the one that names without one are in."""
    reader = _Reader(list(_tokens(sql[:_LONGEST])), schema)
    return reader.read()


def _tokens(sql: str) -> Iterator[_Token]:
    for found in _TOKEN.finditer(sql):
        if found["word"] is not None:
            yield _Token(found["word"], name=True, bare=True)
        elif found["quoted"] is not None:
            yield _Token(found["quoted"].replace("``", "`"), name=True)
        elif found["ansi"] is not None:
            yield _Token(found["ansi"].replace('""', '"'), name=True)
        elif found["sign"] is not None:
            yield _Token(found["sign"], name=False, bare=True)
        elif found["text"] is not None:
            yield _Token(found["text"], name=False)


class _Reader:
    def __init__(self, tokens: list[_Token], schema: str) -> None:
        self._tokens, self._schema, self._at = tokens, schema, 0
        self._found = Statement()

    def read(self) -> Statement:
        found = self._found
        found.verb = self._next().upper
        if found.verb in _CHANGES:
            self._change()
        elif found.verb in ("CREATE", "ALTER", "DROP", "RENAME", "TRUNCATE"):
            {"CREATE": self._create, "ALTER": self._alter, "DROP": self._drop, "RENAME": self._rename}.get(
                found.verb, self._truncate
            )()
        return found

    def _next(self) -> _Token:
        token = self._tokens[self._at] if self._at < len(self._tokens) else _Token("", name=False)
        self._at += 1
        return token

    def _skip(self, *words: str) -> bool:
        """Leave out any of these words that come next. Returns whether there was one."""
        start = self._at
        while self._at < len(self._tokens) and self._tokens[self._at].upper in words:
            self._at += 1
        return self._at > start

    def _name(self) -> str | None:
        """A table's name, with its schema; None if none comes next."""
        first = self._next()
        if not first.name:
            return None
        if self._at < len(self._tokens) and self._tokens[self._at].text == "." and self._tokens[self._at].bare:
            self._at += 1
            return f"{first.text}.{self._next().text}"
        return f"{self._schema}.{first.text}"

    def _names(self) -> Iterator[str]:
        while (name := self._name()) is not None:
            yield name
            if self._next().text != ",":
                return

    def _change(self) -> None:
        """A table of engine MEMORY is emptied by a restart, which is logged as a DELETE of everything."""
        found = self._found
        if found.verb == "DELETE" and self._skip("FROM"):
            name = self._name()
            if name and self._at >= len(self._tokens):
                found.emptied.add(name)
                return
        found.changes = True
        found.words = frozenset(token.text for token in self._tokens if token.name)

    def _create(self) -> None:
        replaced = self._skip("OR", "REPLACE")
        if self._skip("TEMPORARY") or not self._skip("TABLE"):
            return
        self._skip("IF", "NOT", "EXISTS")
        if name := self._name():
            self._found.altered.add(name)
            if replaced:
                self._found.emptied.add(name)

    def _truncate(self) -> None:
        self._skip("TABLE")
        if name := self._name():
            self._found.emptied.add(name)

    def _drop(self) -> None:
        if self._skip("DATABASE", "SCHEMA"):
            self._skip("IF", "EXISTS")
            self._found.schemas.add(self._next().text)
            return
        if self._skip("TEMPORARY") or not self._skip("TABLE", "TABLES"):
            return
        self._skip("IF", "EXISTS")
        names = set(self._names())
        self._found.emptied |= names
        self._found.altered |= names

    def _rename(self) -> None:
        """One after the other: a table that was renamed away and replaced has other rows."""
        if not self._skip("TABLE", "TABLES"):
            return
        while True:
            self._skip("IF", "EXISTS")
            old = self._name()
            while self._at < len(self._tokens) and not self._skip("TO"):  # WAIT n, NOWAIT
                self._next()
            new = self._name()
            if old is None or new is None:
                return
            self._moved(old, new)
            if self._next().text != ",":
                return

    def _moved(self, old: str, new: str) -> None:
        found = self._found
        found.altered |= {old, new}
        found.emptied.add(old)
        found.unseen.discard(old)
        found.unseen.add(new)

    def _alter(self) -> None:
        self._skip("ONLINE")
        ignoring = self._skip("IGNORE")  # rows that a new unique index does not take are deleted
        self._skip("ONLINE")
        if not self._skip("TABLE"):
            return
        self._skip("IF", "EXISTS")
        name = self._name()
        if name is None:
            return
        self._found.altered.add(name)
        if ignoring:
            self._found.unseen.add(name)
        for clause in _split(self._tokens[self._at :]):
            self._clause(name, clause)
        words = [token.upper for token in self._tokens]
        for place in range(self._at, len(words) - 1):
            pair = (words[place], words[place + 1])
            if pair in _UNSEEN:
                self._found.unseen.add(name)
            if pair in (("WITH", "TABLE"), ("CONVERT", "TABLE"), ("TO", "TABLE")):
                self._also(place + 2)
            if pair[0] == "RENAME" and pair[1] not in ("COLUMN", "INDEX", "KEY", "CONSTRAINT"):
                self._at = place + 1
                self._skip("TO", "AS", "=")
                if new := self._name():
                    self._moved(name, new)

    def _clause(self, table: str, clause: list[_Token]) -> None:
        """What one of the alterations gives to the table's columns; other alterations give them nothing."""
        words = [token.upper for token in clause]
        at = next((place for place, word in enumerate(words[1:], 1) if word not in _OPTIONAL), len(words))
        verb, rest = words[0], clause[at:]
        found = self._found.columns.setdefault(table, [])
        if "PRIMARY" in words:
            self._found.unseen.add(table)
        if verb == "CONVERT" and words[1:2] == ["TO"]:
            self._found.converted.add(table)
        elif verb == "ADD" and rest and rest[0].text == "(":
            found += [_column(None, one) for one in _split(rest[1:-1]) if one[0].upper not in _NO_COLUMN]
        elif verb == "ADD" and rest and rest[0].upper not in _NO_COLUMN:
            found.append(_column(None, rest))
        elif verb == "MODIFY" and rest:
            found.append(_column(rest[0].text, rest))
        elif verb == "CHANGE" and len(rest) > 1:
            found.append(_column(rest[0].text, rest[1:]))
        elif verb == "RENAME" and words[1:2] == ["COLUMN"] and len(rest) > 2:
            found.append(AlteredColumn(rest[2].text, rest[0].text))

    def _also(self, place: int) -> None:
        """The other table of a partition that is exchanged, or made of a table or into one."""
        before, self._at = self._at, place
        if name := self._name():
            self._found.unseen.add(name)
            self._found.altered.add(name)
        self._at = before


def _split(tokens: list[_Token]) -> Iterator[list[_Token]]:
    """At the commas that stand in no parentheses."""
    depth, clause = 0, list[_Token]()
    for token in tokens:
        sign = token.text if token.bare else ""
        depth += (sign == "(") - (sign == ")")
        if sign == "," and not depth:
            if clause:
                yield clause
            clause = []
        else:
            clause.append(token)
    if clause:
        yield clause


def _column(before: str | None, tokens: list[_Token]) -> AlteredColumn:
    """From a column's definition, its name first."""
    end = 2
    if end < len(tokens) and tokens[end].text == "(" and tokens[end].bare:
        end = next((at + 1 for at in range(end, len(tokens)) if tokens[at].upper == ")"), len(tokens))
    kind = "".join(token.text if token.bare or not token.text else f"'{token.text}'" for token in tokens[1:end])
    while end < len(tokens) and tokens[end].upper in _SIGNS:
        kind, end = f"{kind} {tokens[end].text}", end + 1
    more = [token.upper for token in tokens[end:] if token.upper]
    for at in range(len(more) - 1):
        if more[at : at + 2] == ["DEFAULT", "NULL"]:
            del more[at : at + 2]
            break
    return AlteredColumn(tokens[0].text, before, kind.lower(), tuple(word.lower() for word in more))
