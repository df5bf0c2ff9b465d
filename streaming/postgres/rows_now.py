"""A row as it is now, for what an UPDATE of its key did not carry: values that are stored apart and did not change.

PostgreSQL does not send them, and under its new key the row has no earlier value that landed. As long as no later
transaction has touched the row, they are what the row has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streaming.postgres.catalog import Catalog, Query
from streaming.postgres.checks import quoted
from streaming.postgres.chunks import literal
from streaming.postgres.decoders import Decoder
from streaming.postgres.pgoutput import BETWEEN, ROW_START, Relation, texts

__all__ = ["CopyOut", "RowsNow"]

CopyOut = Callable[[str, Sequence[str]], Sequence[bytes] | None]
"""The lines of a SELECT as COPY's text, with these schemas in the search path; None when it does not fit the tables as
they are by now."""

# Equal to the null of a tuple, but known.
_NULL = bytes(bytearray(b"null"))


@dataclass(frozen=True)
class _Asked:
    """How rows are asked for: FROM and WHERE, the key's types, the schemas of its operators."""

    table: str
    kinds: Sequence[str]
    schemas: Sequence[str]


class RowsNow:
    """Those of one table while it looks as it does."""

    def __init__(
        self,
        query: Query,
        copy_out: CopyOut,
        catalog: Catalog,
        relation: Relation,
        key: Sequence[str],
        decoder: Decoder,
    ) -> None:
        """`key`: the key's columns."""
        self._query, self._copy_out, self._catalog = query, copy_out, catalog
        self._relation, self._key, self._decoder = relation, key, decoder
        names = [column.name for column in relation.columns]
        self._columns = ", ".join(("xmin::text", *map(quoted, names)))
        self._places = [names.index(name) for name in key]
        self._asked: _Asked | None = None

    def values(self, d: bytes, xid: int) -> Sequence[bytes] | None:
        """Of the row with the new key of the UPDATE `d`, as JSON; none when there is none. Raises Retryable, Halt.

        None when they may be other ones by now: a transaction other than `xid` has touched the row since, or the table
        was altered.
        """
        found = self._ask(self._key_of(d))
        if not found:
            return found
        writer, _, line = found[0].partition(b"\t")
        if int(writer) != xid:
            return None
        return [_NULL if value == b"null" else value for value in self._decoder.encoded(line)]

    def _key_of(self, d: bytes) -> Sequence[bytes]:
        """What is not in the new row of it has not changed, and is in the old one."""
        count = len(self._relation.columns)
        before, end = texts(d, ROW_START, count)
        after, _ = texts(d, end + BETWEEN, count)
        return [(before if after[at] is None else after)[at] or b"" for at in self._places]

    def _ask(self, key: Sequence[bytes]) -> Sequence[bytes] | None:
        if self._asked is None:
            found = self._catalog.described(self._query, self._relation.oid)
            if found is None or list(found.key) != list(self._key):
                return None
            table = f"{'' if found.kind == 'p' else 'ONLY '}{quoted(found.schema, found.table)}"
            schemas = self._catalog.compared_by(self._query, found)
            self._asked = _Asked(table, self._catalog.key_types(self._query, found), schemas)
        same = " AND ".join(
            f"{quoted(name)} = {literal(value.decode(errors='surrogateescape'), kind)}"
            for name, value, kind in zip(self._key, key, self._asked.kinds, strict=True)
        )
        return self._copy_out(f"SELECT {self._columns} FROM {self._asked.table} WHERE {same}", self._asked.schemas)
