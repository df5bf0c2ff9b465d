"""What a table holds now, in the lake's types, and a hash of it that does not depend on the order of rows.

For comparing the source with what was landed from it. A text that is no value of the lake's type (a zero date, an
infinite timestamp) makes the whole column text, as it is: it then differs from whatever was landed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from streaming.capture.credentials import Address
from streaming.shop_database.connect import Database, Rejected, open_database

__all__ = ["content_hash", "source_rows"]

_BATCH_ROWS = 50_000
# The databases' words for their types (information_schema.data_type); all others are text.
_LAKE_TYPES = {
    **dict.fromkeys(("smallint", "integer", "bigint", "tinyint", "mediumint", "int"), pa.int64()),
    **dict.fromkeys(("real", "double precision", "float", "double"), pa.float64()),
    **dict.fromkeys(("timestamp without time zone", "datetime"), pa.timestamp("us")),
    "boolean": pa.bool_(),
    "date": pa.date32(),
}


def source_rows(place: str | Address, table: str) -> pa.Table:
    """Every row of `table` (with its schema in front where that is not the usual one), in no order.

    One statement reads it, so it is the state of one moment. Raises ShopDatabaseError.
    """
    with open_database(place) as database:
        columns = _columns(database, table)
        texts = _postgresql_texts if database.dialect == "postgresql" else _mariadb_texts
        found = pa.concat_tables(texts(database, table, columns))
    kinds = [_LAKE_TYPES.get(kind, pa.string()) for _, kind in columns]
    return pa.table(
        [_typed(text, kind) for text, kind in zip(found.columns, kinds, strict=True)], names=[n for n, _ in columns]
    )


def content_hash(table: pa.Table, columns: Sequence[str] | None = None) -> str:
    """SHA-256 over the rows as a multiset, of the named columns (None: all), whatever their order.

    Equal values of types of one kind (integers, floats, texts, instants in UTC, decimals) hash alike; null is no text.
    """
    names = sorted(columns if columns is not None else table.column_names)
    texts = [_canonical(table[name].combine_chunks()) for name in names]
    rows = pc.binary_join_element_wise(*texts, "").to_pylist() if names else []
    total = hashlib.sha256(f"{','.join(names)} {len(rows)}".encode())
    for row in sorted(
        hashlib.md5(row.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest() for row in rows
    ):
        total.update(row)
    return total.hexdigest()


def _columns(database: Database, table: str) -> list[tuple[str, str]]:
    """Names and types in the table's order."""
    schema, _, name = table.rpartition(".")
    here = "current_schema()" if database.dialect == "postgresql" else "database()"
    found = database.query(
        "SELECT column_name, data_type FROM information_schema.columns "
        f"WHERE table_name = %s AND table_schema = coalesce(%s, {here}) ORDER BY ordinal_position",
        [name, schema or None],
    )
    if not found:
        raise Rejected(f"{database.dialect}: found no table {table} that this user may read")
    return [(str(name), str(kind)) for name, kind in found]


def _postgresql_texts(database: Database, table: str, columns: Sequence[tuple[str, str]]) -> Iterator[pa.Table]:
    """As text through COPY, which costs the server and us least."""
    from pyarrow import csv

    chosen, source = ", ".join(f'"{name}"' for name, _ in columns), _quoted(table, '"')
    buffer = io.BytesIO()
    with (
        database.cursor() as cursor,
        cursor.copy(f"COPY (SELECT {chosen} FROM {source}) TO STDOUT (FORMAT csv)") as copy,
    ):
        for block in copy:
            buffer.write(block)
    names = [str(place) for place in range(len(columns))]
    if not buffer.tell():
        yield pa.table({name: pa.array([], pa.string()) for name in names})
        return
    buffer.seek(0)
    yield csv.read_csv(
        buffer,
        csv.ReadOptions(column_names=names),
        csv.ParseOptions(newlines_in_values=True),
        csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def _mariadb_texts(database: Database, table: str, columns: Sequence[tuple[str, str]]) -> Iterator[pa.Table]:
    chosen = ", ".join(f"CAST(`{name}` AS CHAR)" for name, _ in columns)
    names = [str(place) for place in range(len(columns))]
    yield pa.table({name: pa.array([], pa.string()) for name in names})
    with database.cursor() as cursor:
        cursor.execute(f"SELECT {chosen} FROM {_quoted(table, '`')}")
        while rows := cursor.fetchmany(_BATCH_ROWS):
            arrays = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
            yield pa.table(arrays, names=names)


def _quoted(table: str, quote: str) -> str:
    return ".".join(f"{quote}{part}{quote}" for part in table.split("."))


def _typed(texts: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_boolean(kind):
        texts = pc.if_else(pc.is_in(texts, pa.array(["t", "f"])), pc.equal(texts, "t"), None)
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        return texts


def _canonical(values: pa.Array) -> pa.Array:
    """One text for each value, the same for equal values; the texts cannot be confused with a null."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _canonical(values.cast(kind.value_type))
    if pa.types.is_floating(kind):
        values = pc.add(values.cast(pa.float64()), 0.0)  # minus zero is zero
    elif pa.types.is_timestamp(kind):
        values = values.cast(pa.timestamp("us", tz=kind.tz)).cast(pa.int64())
    elif pa.types.is_decimal(kind):
        values = pa.array([_decimal_text(value) for value in values.to_pylist()], pa.string())
    elif pa.types.is_binary(kind) or pa.types.is_nested(kind):
        values = pa.array([None if value is None else repr(value) for value in values.to_pylist()], pa.string())
    texts = values.cast(pa.string())
    lengths = pc.binary_length(texts).cast(pa.string())  # what a text holds cannot be taken for the next column
    return pc.coalesce(pc.binary_join_element_wise(lengths, texts, ":"), "null:")


def _decimal_text(value: Any) -> str | None:
    return None if value is None else f"{value.normalize():f}"
