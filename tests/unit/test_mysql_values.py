"""What is remembered of values."""

from __future__ import annotations

import tracemalloc

import orjson

from streaming.mysql.values import Memo


def test_what_is_remembered_takes_no_more_than_it_is_long() -> None:
    """A hundred bytes a value for the two and the table's entry; orjson's own results keep 4 KiB each."""
    memo = Memo(lambda raw: orjson.dumps(raw.decode()), limit=10_000)
    raws = [b"value %d" % number for number in range(5_000)]
    tracemalloc.start()
    try:
        assert [memo[raw] for raw in raws] == [b'"%b"' % raw for raw in raws]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 200 * len(raws)
    for number in range(10_001):
        memo[b"another %d" % number]
    assert len(memo) <= 10_000
