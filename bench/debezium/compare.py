"""Two captures of one workload, field by field: everything in which they are not the same.

Numbers are compared as numbers (1.0E10 is 10000000000), text as what it says: how JSON writes them is nobody's matter.
`source.headwater`, our one addition, is left aside.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.debezium.cases import TYPES
from bench.debezium.peers import Peers, Record

__all__ = ["ABSENT", "Found", "Value", "differing", "values"]

ABSENT = "(absent)"


@dataclass(frozen=True)
class Value:
    """What each wrote for one value of one column: JSON text, or ABSENT."""

    type: str
    sql: str
    op: str
    debezium: str
    ours: str

    @property
    def is_same(self) -> bool:
        return ABSENT not in (self.debezium, self.ours) and _same(json.loads(self.debezium), json.loads(self.ours))


@dataclass(frozen=True)
class Found:
    """A difference. `subject`: a column's type with `sql`, its value; or a field's path, or `records` (`sql` empty).

    `op`: - where it is in how many records there are.
    """

    database: str
    table: str
    op: str
    subject: str
    sql: str
    debezium: str
    ours: str


def values(peers: Peers) -> Iterator[Value]:
    """Every case, read in the snapshot (op r) and streamed (op c)."""
    columns = peers.workload.columns()
    theirs, ours = (_rows_by_id(captured.tables[TYPES]) for captured in (peers.debezium, peers.ours))
    for row, (case, op) in peers.rows.items():
        name = columns[case.type]
        yield Value(case.type, case.sql, op, _column(theirs[row], name), _column(ours[row], name))


def differing(peers: Peers) -> Iterator[Found]:
    """All that is not the same, in values, in fields, and in which records there are."""
    database = peers.workload.database
    for value in values(peers):
        if not value.is_same:
            yield Found(database, TYPES, value.op, value.type, value.sql, value.debezium, value.ours)
    for table in peers.debezium.tables:
        yield from _records(database, table, peers.debezium.tables[table], peers.ours.tables[table])
    if len(peers.debezium.transactions) != len(peers.ours.transactions):
        counts = (len(peers.debezium.transactions), len(peers.ours.transactions))
        yield Found(database, "transaction", "-", "records", "", *(f"{count} records" for count in counts))


def _rows_by_id(records: Sequence[Record]) -> Mapping[int, str]:
    return {json.loads(record.key or b"null")["id"]: (record.value or b"").decode() for record in records}


def _column(value: str, name: str) -> str:
    """The text of a member of `after`, as it was written."""
    start = value.find(f'"{name}":', value.index('"after":'))
    if start < 0:
        return ABSENT
    start += len(name) + 3
    return value[start : json.JSONDecoder().raw_decode(value, start)[1]]


def _records(database: str, table: str, theirs: Sequence[Record], ours: Sequence[Record]) -> Iterator[Found]:
    """Record by record: those of one key in their order; truncations, which no key has, by themselves."""
    sides = (_by_key(theirs), {key: _but_read_again(records) for key, records in _by_key(ours).items()})
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        left, right = sides[0].get(key, ()), sides[1].get(key, ())
        if len(left) != len(right):
            counts = [" ".join(_op(record) for record in side) for side in (left, right)]
            yield Found(database, table, key if key == "t" else "-", "records", "", *counts)
        for one, other in zip(left, right, strict=False):
            for path, debezium, mine in _fields(one, other):
                if not (table == TYPES and path.startswith("after.c")):  # these are values
                    yield Found(database, table, _op(one), path, "", debezium, mine)


def _by_key(records: Sequence[Record]) -> Mapping[str, Sequence[Record]]:
    found = defaultdict(list)
    for record in records:
        keyed = json.dumps(json.loads(record.key)) if record.key else "t" if _op(record) == "t" else ""
        found[keyed].append(record)
    return found


def _but_read_again(records: Sequence[Record]) -> Sequence[Record]:
    """Without what was read again after DDL that gave rows values: how much that is depends on when it was read."""
    return [record for place, record in enumerate(records) if place == 0 or _op(record) != "r"]


def _op(record: Record) -> str:
    return "tombstone" if record.value is None else str(json.loads(record.value)["op"])


def _fields(one: Record, other: Record) -> Iterator[tuple[str, str, str]]:
    if one.key != other.key:
        yield "key", repr(one.key), repr(other.key)
    elif one.key is not None and one.partition != other.partition:
        yield "partition", str(one.partition), str(other.partition)
    left, right = (dict(_flat(record)) for record in (one, other))
    for path in dict.fromkeys([*left, *right]):
        if path not in left or path not in right or not _same(left[path], right[path]):
            debezium, mine = (json.dumps(side[path]) if path in side else ABSENT for side in (left, right))
            yield path, debezium, mine


def _flat(record: Record) -> Iterator[tuple[str, Any]]:
    """Members by path; what is in a column stays whole."""
    if record.value is None:
        yield "value", None
        return
    for name, value in json.loads(record.value).items():
        if isinstance(value, dict):
            yield from ((f"{name}.{member}", inner) for member, inner in value.items() if member != "headwater")
        else:
            yield name, value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)
