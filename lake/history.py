"""The columns that every raw table has beside the captured table's own: what makes a row a change.

Only their names, types and meaning. Who fills them is `streaming.landing`; who checks them is `lake.gates`.
"""

from __future__ import annotations

from catalog.spec import Column

__all__ = ["HISTORY_COLUMNS"]

HISTORY_COLUMNS: tuple[Column, ...] = (
    Column(name="change_op", type="string", nullable=False, description="c created, u updated, d deleted, r snapshot."),
    Column(name="source_position", type="int64", nullable=False, description="Position in the source's commit order."),
    Column(name="tx_id", type="int64", description="The source's transaction; null when the source gave none."),
    Column(name="event_at", type="timestamp", nullable=False, description="When the source made the change (UTC)."),
    Column(name="landed_at", type="timestamp", nullable=False, description="When the change became known to us (UTC)."),
    Column(name="log_partition", type="int64", nullable=False, description="Partition of the change log."),
    Column(name="log_offset", type="int64", nullable=False, description="Offset in that partition of the change log."),
)
