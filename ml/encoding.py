"""Feature values to numbers: the one function that training, batch scores and serving all apply.

A number stays itself, a truth value becomes 0 or 1, a missing one NaN. Text becomes a code from a vocabulary that is
fixed at training: known values 0..k-1, any other value k, missing k + 1. Values that training saw in fewer than
`MIN_VOCABULARY_ROWS` rows stay out of the vocabulary, so that the model has learned something about code k.
Nothing here knows a model format, a file or where values come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["DTYPES", "EncodedFeature", "Encoding", "EncodingError", "Matrix", "dtype_of", "fit_encoding"]

Matrix = npt.NDArray[np.float64]

DTYPES = ("int64", "float64", "string", "bool")
MIN_VOCABULARY_ROWS = 20


class EncodingError(ValueError):
    """A value does not have its feature's type; the message names feature, value and what is allowed."""


def dtype_of(kind: pa.DataType) -> str:
    """The feature type of an Arrow type: one of DTYPES, or the Arrow name when no feature may have it."""
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    return {"double": "float64"}.get(str(kind), str(kind))


@dataclass(frozen=True)
class EncodedFeature:
    """One input of a model: its name, type (one of DTYPES) and, for text, its vocabulary in code order."""

    name: str
    dtype: str
    vocabulary: tuple[str, ...] | None = None

    @cached_property
    def _codes(self) -> Mapping[str, float]:
        return {value: float(code) for code, value in enumerate(self.vocabulary or ())}

    @property
    def is_text(self) -> bool:
        return self.dtype == "string"

    def number(self, value: Any) -> float:
        """The value as the model sees it. Raises EncodingError on a value of another type or an infinite one."""
        if self.is_text:
            return self._code(value)
        if value is None:
            return math.nan
        if isinstance(value, (int, float, np.number, np.bool_)) and not math.isinf(number := float(value)):
            return number
        raise EncodingError(f"feature {self.name!r}: found {value!r}, allowed is {self.dtype} or null")

    def _code(self, value: Any) -> float:
        known = self._codes
        if value is None:
            return len(known) + 1.0
        if not isinstance(value, str):
            raise EncodingError(f"feature {self.name!r}: found {value!r}, allowed is a string or null")
        return known.get(value, float(len(known)))


@dataclass(frozen=True)
class Encoding:
    """The inputs of a model in the order of its matrix's columns."""

    features: tuple[EncodedFeature, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.features)

    @property
    def text_columns(self) -> tuple[int, ...]:
        """Positions of the columns that hold codes."""
        return tuple(i for i, f in enumerate(self.features) if f.is_text)

    def encode_rows(self, rows: Sequence[Sequence[Any]]) -> Matrix:
        """Rows of values in feature order as [n, n_features]. Raises EncodingError."""
        width = len(self.features)
        matrix = np.empty((len(rows), width), dtype=np.float64)
        for i, row in enumerate(rows):
            if len(row) != width:
                raise EncodingError(f"found {len(row)} values, allowed are {width}: {', '.join(self.names)}")
            matrix[i] = [feature.number(value) for feature, value in zip(self.features, row, strict=True)]
        return matrix

    def encode_table(self, table: pa.Table) -> Matrix:
        """The table's feature columns, found by name, as [n, n_features]. Raises EncodingError."""
        matrix = np.empty((table.num_rows, len(self.features)), dtype=np.float64)
        for position, feature in enumerate(self.features):
            matrix[:, position] = _encode_column(feature, table)
        return matrix

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"name": f.name, "dtype": f.dtype, "vocabulary": list(f.vocabulary) if f.is_text and f.vocabulary else None}
            for f in self.features
        ]

    @classmethod
    def from_json(cls, described: Sequence[Mapping[str, Any]]) -> Encoding:
        return cls(
            tuple(
                EncodedFeature(d["name"], d["dtype"], tuple(d["vocabulary"] or ()) if d["dtype"] == "string" else None)
                for d in described
            )
        )


def _encode_column(feature: EncodedFeature, table: pa.Table) -> Matrix:
    if feature.name not in table.column_names:
        raise EncodingError(
            f"feature {feature.name!r}: found no such column, there are {', '.join(table.column_names)}"
        )
    column = table.column(feature.name).combine_chunks()
    if dtype_of(column.type) != feature.dtype:
        raise EncodingError(f"feature {feature.name!r}: found {dtype_of(column.type)}, allowed is {feature.dtype}")
    if feature.is_text:
        return _encode_text(feature, column)
    numbers: Matrix = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
    if np.isinf(numbers).any():
        raise EncodingError(f"feature {feature.name!r}: found an infinite value, allowed is {feature.dtype} or null")
    return numbers


def _encode_text(feature: EncodedFeature, column: pa.Array) -> Matrix:
    """Each distinct value goes through the very function that serving calls for one row."""
    distinct = pc.dictionary_encode(column)
    codes = np.array([feature.number(v) for v in distinct.dictionary.to_pylist()] + [feature.number(None)])
    indices = pc.fill_null(distinct.indices, len(codes) - 1).to_numpy(zero_copy_only=False)
    numbers: Matrix = codes[indices]
    return numbers


def fit_encoding(table: pa.Table, names: Sequence[str]) -> Encoding:
    """Fix vocabularies on training rows only. Raises EncodingError on a column that no feature may have."""
    return Encoding(tuple(_fit(table.column(name), name) for name in names))


def _fit(column: pa.ChunkedArray, name: str) -> EncodedFeature:
    dtype = dtype_of(column.type)
    if dtype not in DTYPES:
        raise EncodingError(f"feature {name!r}: found type {dtype}, allowed is one of {', '.join(DTYPES)}")
    if dtype != "string":
        return EncodedFeature(name, dtype)
    counts = pc.value_counts(column.combine_chunks()).to_pylist()
    kept = [c["values"] for c in counts if c["values"] is not None and c["counts"] >= MIN_VOCABULARY_ROWS]
    return EncodedFeature(name, dtype, tuple(sorted(kept)))
