"""Rows of the binary log into the sink: decoded by their table's images, one record or more for each."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson

from streaming.capture.sink import Sink
from streaming.mysql import events
from streaming.mysql.events import RowsEvent
from streaming.mysql.tables import Followed

__all__ = ["hand_over", "set_clock"]

_NULL = b"null"


def hand_over(sink: Sink, followed: Followed, rows: RowsEvent, kind: int, start: int) -> None:
    """The rows of an event of this kind that begins at `start`."""
    if kind in events.UPDATES:
        _updates(sink, followed, rows, start)
    else:
        _images(sink, followed, rows, start, written=kind in events.WRITES)


def _images(sink: Sink, followed: Followed, rows: RowsEvent, start: int, *, written: bool) -> None:
    """Rows that came or went: one image each."""
    table, images, row = sink.tables[followed.schema.name], followed.images, sink.row
    patterns, size, data, at, end = images.patterns, images.null_bytes, rows.data, rows.start, rows.end
    number = 0
    while at < end:
        nulls = data[at : at + size]
        decode = patterns.get(nulls) or images.pattern(nulls)
        at, key, image = decode(data, at + size)
        if written:
            row(table, b"c", key, _NULL, image, b',"pos":%d,"row":%d' % (start, number))
        else:
            row(table, b"d", key, image, _NULL, b',"pos":%d,"row":%d' % (start, number))
        number += 1


def _updates(sink: Sink, followed: Followed, rows: RowsEvent, start: int) -> None:
    """Rows that changed: an image before, one after."""
    table, images, row = sink.tables[followed.schema.name], followed.images, sink.row
    patterns, size, data, at, end = images.patterns, images.null_bytes, rows.data, rows.start, rows.end
    number = 0
    while at < end:
        nulls = data[at : at + size]
        decode = patterns.get(nulls) or images.pattern(nulls)
        at, old_key, before = decode(data, at + size)
        nulls = data[at : at + size]
        decode = patterns.get(nulls) or images.pattern(nulls)
        at, key, after = decode(data, at + size)
        source = b',"pos":%d,"row":%d' % (start, number)
        if key == old_key:
            row(table, b"u", key, before, after, source)
        else:
            # A table has a key in all of its rows or in none.
            sink.rekeyed(table, old_key or _NULL, key or _NULL, before, after, source)
        number += 1


def set_clock(sink: Sink, followed: Followed, rows: RowsEvent) -> None:
    """The rest of the transaction happened when the last image says."""
    images, at, image = followed.images, rows.start, b"{}"
    while at < rows.end:
        nulls = rows.data[at : at + images.null_bytes]
        at, _, image = (images.patterns.get(nulls) or images.pattern(nulls))(rows.data, at + images.null_bytes)
    found = orjson.loads(image)
    sink.clock(_instant_us(found["event_at"]), _instant_us(found["landed_at"]))


def _instant_us(value: Any) -> int:
    """A datetime is microseconds already, a timestamp ISO text."""
    return value if isinstance(value, int) else round(datetime.fromisoformat(value).timestamp() * 1_000_000)
