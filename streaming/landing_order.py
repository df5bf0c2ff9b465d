"""Which changes of a topic partition have come before: by their place in the source's history, (epoch, commit, order).

A connector that was killed sends some changes again; their places are not beyond the last one's. Rows that a snapshot
read, the emptying of a table before it, and dead letters that were put through again, have a place but no order of
arrival: they are never taken for repeated. A change from somebody else's connector has no place, and is taken as it
comes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streaming.change import SNAPSHOT_ORDER

__all__ = ["Place", "repeated", "streamed_sql"]

_Ints = npt.NDArray[np.int64]


class Place(NamedTuple):
    """A change's place in the source's history."""

    epoch: int
    commit: int
    order: int


def streamed_sql() -> str:
    """Whether a parsed record (see change.parse_sql) is a change that has its place in the order of arrival."""
    there = f"epoch >= 0 AND position IS NOT NULL AND ordinal BETWEEN 0 AND {SNAPSHOT_ORDER - 1}"
    return f"placed AND NOT replayed AND op <> 'r' AND {there}"


def repeated(places: pa.Table, watermark: Place | None) -> tuple[pa.Table, Place | None]:
    """Those rows of `places` (log_offset, epoch, position, ordinal; in order of offset) that are not beyond all before
    them or the watermark, and the watermark after them.
    """
    if not places.num_rows:
        return places, watermark
    first = watermark or Place(-1, 0, 0)
    columns = [
        np.concatenate([np.array([at], np.int64), places[name].to_numpy()])
        for at, name in zip(first, ("epoch", "position", "ordinal"), strict=True)
    ]
    if _grows(*columns):
        return places.slice(0, 0), Place(*(int(column[-1]) for column in columns))
    ranks = _ranks(*columns)
    highest = np.maximum.accumulate(ranks)
    last = int(np.argmax(ranks))
    again = places.filter(pa.array(ranks[1:] <= highest[:-1]))
    return again, Place(*(int(column[last]) for column in columns))


def _grows(epoch: _Ints, commit: _Ints, order: _Ints) -> bool:
    """Whether each place is beyond the one before it: so it is unless a connector was killed."""
    later, same = commit[1:] > commit[:-1], commit[1:] == commit[:-1]
    within = later | (same & (order[1:] > order[:-1]))
    return bool(np.all((epoch[1:] > epoch[:-1]) | ((epoch[1:] == epoch[:-1]) & within)))


def _ranks(epoch: _Ints, commit: _Ints, order: _Ints) -> _Ints:
    """The position of each place among all, the same for the same places."""
    sorted_by = np.lexsort((order, commit, epoch))
    new = np.ones(len(epoch), np.int64)
    new[1:] = (
        [0]
        if len(epoch) == 1
        else np.any([column[sorted_by][1:] != column[sorted_by][:-1] for column in (epoch, commit, order)], axis=0)
    )
    ranks = np.empty(len(epoch), np.int64)
    ranks[sorted_by] = np.cumsum(new)
    return ranks
