"""The instants of a retail file: typed columns, ISO text, Excel's serial numbers, and dates such as 1/12/2010.

Whether the last is in January or in December is decided once for a whole file, by the dates in it that can be read in
one order only (13/1/2011 is no month 13): a decision for each value would move a part of the file by months and tell
nobody. What a file with both orders is worth, or with none that tells, is for retail to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from streaming.change import instant_sql

__all__ = ["YEARS", "DateOrder", "Dates", "Witness", "read_dates"]

# A date outside is a typing error, and one in the year 20110 would become everybody's present.
YEARS = (1900, 2199)
_TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")


@dataclass(frozen=True)
class Witness:
    """A value of the file: its column, its row (from 0) and its text."""

    column: str
    row: int
    text: str


@dataclass(frozen=True)
class DateOrder:
    """The first value that can only be read day first, the first only month first, the first that reads either way."""

    day_first: Witness | None = None
    month_first: Witness | None = None
    ambiguous: Witness | None = None

    @property
    def is_guess(self) -> bool:
        """Nothing tells, and it makes a difference."""
        return self.ambiguous is not None and self.day_first is None and self.month_first is None


@dataclass(frozen=True)
class Dates:
    """The instants of each column (timestamp[us], null where a value is none), and the order that they were read in."""

    instants: Mapping[str, pa.ChunkedArray]
    order: DateOrder


def read_dates(columns: Mapping[str, pa.ChunkedArray]) -> Dates:
    """Read columns of one file, of any type. Month first, as in the UCI file, unless some value can only be day first.

    Where values of both kinds occur, `order` has an example of each, and the instants are worth nothing.
    """
    texts = {name: _Texts.of(name, column) for name, column in columns.items() if not _is_typed(column.type)}
    order = DateOrder(
        _first([t.only_day_first() for t in texts.values()]),
        _first([t.only_month_first() for t in texts.values()]),
        _first([t.either() for t in texts.values()]),
    )
    day_first = order.day_first is not None
    return Dates(
        {
            name: texts[name].instants(day_first) if name in texts else _typed(column)
            for name, column in columns.items()
        },
        order,
    )


def _first(found: list[Witness | None]) -> Witness | None:
    return min((w for w in found if w), key=lambda witness: witness.row, default=None)


@dataclass(frozen=True)
class _Texts:
    """A column of text by its distinct values, in order of first appearance: most lines share theirs with others.

    `plain` has what needs no order, `by_month` and `by_day` the readings of a numeric date.
    """

    name: str
    texts: pa.Array
    indices: pa.Array
    plain: pa.Array
    by_month: pa.Array
    by_day: pa.Array

    @classmethod
    def of(cls, name: str, column: pa.ChunkedArray) -> _Texts:
        as_text = _query("trim(v::VARCHAR)", column).column(0)
        encoded = as_text.dictionary_encode().combine_chunks()
        if isinstance(encoded, pa.ChunkedArray):  # what combine_chunks makes of no chunk at all
            encoded = pa.array([], encoded.type)
        read = _query(
            f"{_in_range(_plain_sql('v'))}, {_in_range(_numeric_sql('v', '%m/%d/'))}, "
            f"{_in_range(_numeric_sql('v', '%d/%m/'))}",
            pa.chunked_array([encoded.dictionary]),
        )
        return cls(name, encoded.dictionary, encoded.indices, *(c.combine_chunks() for c in read.columns))

    def only_day_first(self) -> Witness | None:
        return self._where(pc.and_(pc.is_valid(self.by_day), pc.is_null(self.by_month)))

    def only_month_first(self) -> Witness | None:
        return self._where(pc.and_(pc.is_valid(self.by_month), pc.is_null(self.by_day)))

    def either(self) -> Witness | None:
        """1/1/2011 reads either way too, but to the same day."""
        return self._where(pc.and_(pc.is_valid(self.by_day), pc.not_equal(self.by_month, self.by_day)))

    def instants(self, day_first: bool) -> pa.ChunkedArray:
        read = pc.coalesce(self.plain, self.by_day if day_first else self.by_month)
        return pa.chunked_array([read.take(self.indices)])

    def _where(self, applies: pa.BooleanArray) -> Witness | None:
        if not applies.true_count:
            return None
        # Not by pc.index: it makes a scalar, for which pyarrow imports pandas (a second).
        row = pc.indices_nonzero(applies.take(self.indices))[0].as_py()
        return Witness(self.name, row, self.texts[self.indices[row].as_py()].as_py())


def _is_typed(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    )


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(column.type) and column.type.tz:
        # An instant with a zone becomes its UTC clock reading; the session's zone must not shift it.
        instant = "(v AT TIME ZONE 'UTC')"
    elif pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        instant = "v::TIMESTAMP"
    else:
        instant = _serial_sql("v::DOUBLE")
    return _query(_in_range(instant), column).column(0).cast(pa.timestamp("us"))


def _query(select: str, column: pa.ChunkedArray) -> pa.Table:
    """SELECT over a column `v`, in its order (DuckDB's preserve_insertion_order)."""
    with duckdb.connect() as connection:
        connection.register("given", pa.table({"v": column}))
        return connection.sql(f"SELECT {select} FROM given").to_arrow_table()


def _in_range(instant: str) -> str:
    return f"CASE WHEN year({instant}) BETWEEN {YEARS[0]} AND {YEARS[1]} THEN {instant} END"


def _plain_sql(text: str) -> str:
    return f"coalesce({instant_sql(text)}, {_serial_sql(f'TRY_CAST({text} AS DOUBLE)')})"


def _numeric_sql(text: str, day: str) -> str:
    """Day and month in the order of `day`, then a year of four digits or (with slashes) two, then a time or none."""
    slashed = rf"regexp_replace({text}, '^([0-9]{{1,2}})[.-]([0-9]{{1,2}})[.-]([0-9]{{4}})', '\1/\2/\3')"
    formats = [f"{day}{year}{time}" for year, time in product(("%y", "%Y"), _TIMES)]
    # strptime also knows "infinity" and "epoch".
    return f"CASE WHEN regexp_matches({text}, '^[0-9]') THEN try_strptime({slashed}, {formats}) END"


def _serial_sql(number: str) -> str:
    """Excel counts days from 1899-12-30 (its 1900 is a leap year); the bounds are 1927 and 2173, rounded to seconds."""
    return (
        f"CASE WHEN {number} BETWEEN 10000 AND 100000 "
        f"THEN TIMESTAMP '1899-12-30' + to_seconds(round({number} * 86400)) END"
    )
