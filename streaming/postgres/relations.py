"""The stream's tables, by the oid that rows are announced with: where each one's rows go, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from streaming.capture.sink import Sink, Table
from streaming.capture.tables import TableSchema
from streaming.postgres.catalog import Catalog, Query
from streaming.postgres.decoders import Decoder, compile_decoder
from streaming.postgres.pgoutput import BETWEEN, DELETE, ROW_START, TUPLE, Relation
from streaming.postgres.rows_now import CopyOut, RowsNow
from streaming.postgres.types import ColumnType
from streaming.postgres.values import timestamp
from streaming.postgres.watch import Watch

__all__ = ["Relations", "Target"]

_NULL = b"null"
_KEY, _NEW, _OLD = map(ord, "KNO")


@dataclass(frozen=True)
class Target:
    """A captured table while its rows look as they do. `now`: its rows as they are when asked for."""

    table: Table
    decoder: Decoder
    now: RowsNow

    def update(self, sink: Sink, d: bytes, source: bytes, xid: int) -> None:
        """Hand over UPDATE: with the old row, with its key because that has changed, or with neither."""
        first = d[TUPLE]
        if first == _NEW:
            key, after, unsent = self.decoder.image(d, ROW_START)
            sink.row(self.table, b"u", key, _NULL, after, source, unsent)
            return
        if first == _OLD:
            (old_key, before, _), (key, after, unsent) = self.decoder.images(d, ROW_START)
        else:
            (old_key, before, _), end, old = self.decoder.walk(d, ROW_START, None)
            (key, after, unsent), _, _ = self.decoder.walk(d, end + BETWEEN, old)
            if unsent and old_key != key:
                now = self.now.values(d, xid)
                if now:
                    (key, after, unsent), _, _ = self.decoder.walk(d, end + BETWEEN, now)
                elif now is None:
                    sink.reread(self.table.schema.name, emptied=False)
            before = _NULL if old_key == key else before  # it was sent because it is stored apart, not changed
        if key is None or old_key is None or old_key == key:
            sink.row(self.table, b"u", key, before, after, source, unsent)
        else:
            sink.rekeyed(self.table, old_key, key, before, after, source, unsent)

    def delete(self, sink: Sink, d: bytes, source: bytes) -> None:
        """Hand over DELETE: with the old row, or with nothing of it but the key."""
        if d[TUPLE] == _OLD:
            key, before, _ = self.decoder.image(d, ROW_START)
        else:
            (key, before, _), _, _ = self.decoder.walk(d, ROW_START, None)
        sink.row(self.table, b"d", key, before, _NULL, source)


@dataclass(frozen=True)
class _Clock:
    """A replay's clock: which of its columns are what."""

    decoder: Decoder
    event_at: int
    landed_at: int


class Relations:
    """Learns tables as the stream announces them."""

    def __init__(
        self,
        query: Query,
        copy_out: CopyOut,
        catalog: Catalog,
        sink: Sink,
        watch: Watch,
        wanted: Callable[[str], bool],
        clocks: Callable[[str], bool],
    ) -> None:
        """`wanted` and `clocks`: whether a table of that name is captured, or is a replay's clock."""
        self.targets: dict[int, Target] = {}
        self._clocks: dict[int, _Clock] = {}
        self._query, self._copy_out, self._catalog, self._sink, self._watch = query, copy_out, catalog, sink, watch
        self._wanted, self._is_clock = wanted, clocks

    def learn(self, relation: Relation) -> None:
        """A table as it is from here on."""
        self.targets.pop(relation.oid, None)
        self._watch.announced(relation.oid, relation.name)
        self._clocks.pop(relation.oid, None)
        known = self._sink.tables.get(relation.name)
        if not relation.columns or not (self._wanted(relation.name) or self._is_clock(relation.name)):
            return
        schema, kinds = self._catalog.schema_of_relation(self._query, relation, known.schema if known else None)
        decoder = compile_decoder(_named(schema, kinds), schema.key)
        if self._is_clock(relation.name):
            names = [column.name for column in relation.columns]
            self._clocks[relation.oid] = _Clock(decoder, names.index("event_at"), names.index("landed_at"))
            return
        if known is None or known.schema != schema:
            known = self._sink.schema(schema)
        now = RowsNow(self._query, self._copy_out, self._catalog, relation, schema.key, decoder)
        self.targets[relation.oid] = Target(known, decoder, now)

    def set_clock(self, oid: int, d: bytes, kind: int) -> bool:
        """Apply a row of a replay's clock to the rest of its transaction; False if the row is not one."""
        clock = self._clocks.get(oid)
        if clock is None or kind == DELETE:
            return False
        start = ROW_START
        if d[TUPLE] != _NEW:
            start = clock.decoder.walk(d, ROW_START, None)[1] + BETWEEN
        values = clock.decoder.walk(d, start, None)[2]
        self._sink.clock(_microseconds(values[clock.event_at]), _microseconds(values[clock.landed_at]))
        return True


def _named(schema: TableSchema, kinds: list[ColumnType]) -> list[tuple[str, ColumnType]]:
    return [(column.name, kind) for column, kind in zip(schema.columns, kinds, strict=True)]


def _microseconds(value: bytes) -> int:
    """Of a timestamp's JSON, with a zone or without."""
    return int(timestamp(value[1:-2].replace(b"T", b" ")) if value.startswith(b'"') else value)
