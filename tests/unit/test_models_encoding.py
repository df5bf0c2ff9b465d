"""Encoding: rows and tables give the same numbers, whatever the values."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.encoding import EncodedFeature, Encoding, EncodingError, fit_encoding
from ml.preparation import fit_preparation

ENCODING = Encoding(
    (
        EncodedFeature("count", "int64"),
        EncodedFeature("share", "float64"),
        EncodedFeature("known", "bool"),
        EncodedFeature("country", "string", ("France", "Spain")),
    )
)
TYPES = {"count": pa.int64(), "share": pa.float64(), "known": pa.bool_(), "country": pa.string()}
VALUES = st.tuples(
    st.none() | st.integers(-(2**40), 2**40),
    st.none() | st.floats(allow_infinity=False, allow_nan=False),
    st.none() | st.booleans(),
    st.none() | st.sampled_from(["France", "Spain", "Peru", "", "spain"]),
)


@given(st.lists(VALUES, max_size=20))
def test_rows_and_tables_encode_alike(rows: list[tuple[object, ...]]) -> None:
    columns = list(zip(*rows, strict=True)) or [()] * 4
    table = pa.table({n: pa.array(c, t) for (n, t), c in zip(TYPES.items(), columns, strict=True)})
    np.testing.assert_array_equal(ENCODING.encode_rows(rows), ENCODING.encode_table(table))


@pytest.mark.parametrize(
    ("value", "code"), [("France", 0.0), ("Spain", 1.0), ("Peru", 2.0), ("france", 2.0), (None, 3.0)]
)
def test_text_codes(value: str | None, code: float) -> None:
    assert ENCODING.features[3].number(value) == code


def test_missing_number_is_nan() -> None:
    assert math.isnan(ENCODING.features[1].number(None))


@pytest.mark.parametrize(
    "row", [("1", 0.5, True, "Spain"), (1, math.inf, True, "Spain"), (1, 0.5, True, 3), (1, 0.5, True)]
)
def test_wrong_values_are_refused(row: tuple[object, ...]) -> None:
    with pytest.raises(EncodingError, match="found"):
        ENCODING.encode_rows([row])


def test_column_of_another_type_is_refused() -> None:
    table = pa.table({n: pa.array([None], t) for n, t in TYPES.items()})
    changed = table.set_column(0, "count", pa.array([1.0]))
    with pytest.raises(EncodingError, match="'count': found float64, allowed is int64"):
        ENCODING.encode_table(changed)


def test_rare_values_share_the_code_of_unseen_ones() -> None:
    table = pa.table({"country": ["Spain"] * 20 + ["France"] * 30 + ["Malta"] * 19 + [None] * 25})
    encoding = fit_encoding(table, ["country"])
    assert encoding.features[0].vocabulary == ("France", "Spain")
    assert encoding.encode_rows([["Malta"], ["Peru"]]).ravel().tolist() == [2.0, 2.0]


def test_json_round_trip() -> None:
    assert Encoding.from_json(ENCODING.to_json()) == ENCODING


def test_preparation_fills_scales_and_spreads_codes() -> None:
    rows = ENCODING.encode_rows([(1, None, True, "Spain"), (3, 2.0, False, "Peru"), (5, 4.0, None, None)])
    prepared = fit_preparation(ENCODING, rows).apply(rows)
    spread = math.sqrt(8 / 3)
    expected = [
        # count, share, known; flags of share and known; France, Spain, unseen, missing
        [-2 / spread, 0, 1, 1, 0, 0, 1, 0, 0],
        [0, -1, -1, 0, 0, 0, 0, 1, 0],
        [2 / spread, 1, 0, 0, 1, 0, 0, 0, 1],
    ]
    np.testing.assert_allclose(prepared, expected, atol=1e-6)
