"""Encoded rows to what estimators without missing values or categories need: standardised, filled, one-hot.

Plain arithmetic with constants that are fixed at training and kept in schema.json, so that training and serving run
the very same lines. LightGBM needs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ml.encoding import Encoding, Matrix

__all__ = ["Preparation", "fit_preparation", "offset_of"]


def offset_of(rows: Matrix, position: int) -> Matrix:
    """What predictions for encoded rows [n, n_features] start from: one column [n], missing as 0."""
    offset: Matrix = np.nan_to_num(rows[:, position], nan=0.0)
    return offset


@dataclass(frozen=True)
class Preparation:
    """Columns of a prepared row: every number standardised (missing: the mean), a flag for each number that training
    saw missing, one column for each code of each text feature. Single precision: what ONNX's operators compute in.
    """

    numbers: tuple[int, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    flagged: tuple[int, ...]
    text: tuple[tuple[int, int], ...]
    """(position, number of codes)"""

    @property
    def width(self) -> int:
        return len(self.numbers) + len(self.flagged) + sum(codes for _, codes in self.text)

    @property
    def _origin(self) -> list[int]:
        """For each prepared column the feature that it comes from."""
        return [*self.numbers, *self.flagged, *(p for p, codes in self.text for _ in range(codes))]

    def apply(self, rows: Matrix) -> npt.NDArray[np.float32]:
        """Prepared rows [n, width] for encoded rows [n, n_features]."""
        values = (rows[:, self.numbers] - np.array(self.mean)) / np.array(self.scale)
        parts = [np.where(np.isnan(values), 0.0, values), np.isnan(rows[:, self.flagged])]
        parts += [rows[:, [position]] == np.arange(codes) for position, codes in self.text]
        return np.hstack(parts).astype(np.float32)

    def by_feature(self, weights: Matrix) -> Matrix:
        """Weights of prepared columns summed over the feature that each comes from."""
        return np.bincount(self._origin, weights=weights).astype(np.float64)

    def to_json(self) -> dict[str, Any]:
        return {
            "numbers": list(self.numbers),
            "mean": list(self.mean),
            "scale": list(self.scale),
            "flagged": list(self.flagged),
            "text": [list(pair) for pair in self.text],
        }

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> Preparation:
        return cls(
            numbers=tuple(described["numbers"]),
            mean=tuple(described["mean"]),
            scale=tuple(described["scale"]),
            flagged=tuple(described["flagged"]),
            text=tuple((p, c) for p, c in described["text"]),
        )


def fit_preparation(encoding: Encoding, rows: Matrix) -> Preparation:
    """Constants from training rows [n, n_features]; a column that is all missing or constant gets mean 0 or scale 1."""
    text = encoding.text_columns
    numbers = tuple(i for i in range(len(encoding.features)) if i not in text)
    present = [rows[:, i][~np.isnan(rows[:, i])] for i in numbers]
    spread = [float(p.std()) if len(p) else 0.0 for p in present]
    return Preparation(
        numbers=numbers,
        mean=tuple(float(p.mean()) if len(p) else 0.0 for p in present),
        scale=tuple(s if s > 0 else 1.0 for s in spread),
        flagged=tuple(i for i in numbers if np.isnan(rows[:, i]).any()),
        # Two codes more than the vocabulary: unseen and missing.
        text=tuple((i, len(encoding.features[i].vocabulary or ()) + 2) for i in text),
    )
