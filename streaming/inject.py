"""Injects drift: weeks of real changes in which existing customers order more often and larger quantities.

The changes go through the same envelopes into the same log as the replay's, after its last event, and move its clock.
They are drawn from what has landed; nothing of them is marked but the invoice numbers (J...) and the connector's name.

Errors: InjectError   no completed replay to follow, or no purchase to draw from
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog import keys
from lake.tables import Lake, quoted
from streaming.change import envelope_sql
from streaming.locks import exclusive
from streaming.log import ChangeLog, TopicPartition
from streaming.replay_state import SYSTEM, Injection, ReplayState, ends, last_landing, topics
from streaming.retail import LINE_SCHEMA
from streaming.shop import LSN_STEP, order_lines, stage_changes

__all__ = ["INJECT_CONNECTOR", "InjectError", "InjectReport", "inject_drift"]

INJECT_CONNECTOR = "headwater-inject"
_MORE_OFTEN = 2.0
# Orders of the latest quarter are repeated: customers who have left long ago should not all come back at once.
_DRAWN_WEEKS = 13
_MIN_ORDERS = 20


class InjectError(RuntimeError):
    """There is no completed replay to follow, or no purchase to draw from."""


@dataclass(frozen=True)
class InjectReport:
    """What was appended, and the stretch of time that it covers: after `since`, until `last_event_at`, the new now."""

    orders: int
    lines: int
    since: datetime
    last_event_at: datetime
    factor: float


def inject_drift(
    log: ChangeLog, lake: Lake, state_path: Path, *, weeks: int = 4, factor: float = 3.0, seed: int = 7
) -> InjectReport:
    """Append `weeks` weeks of orders with quantities x `factor`, twice as often; each call appends a further stretch.

    Raises InjectError, and MissingTableError when nothing has landed yet.
    """
    if weeks < 1 or not 0 < factor < 1e6:
        raise InjectError(f"found weeks {weeks} and factor {factor}, allowed are at least 1 and above 0")
    with exclusive(state_path.with_suffix(".lock")):
        state = _completed(log, state_path)
        since = last_landing(log)
        assert since is not None  # a completed replay has emitted something
        last_lsn, last_tx = _last_position(log)
        first_lsn = min([last_lsn + 1, *(i.first_lsn for i in state.injections)])
        stretch = len(state.injections) + 1
        random = np.random.default_rng([seed, stretch])
        lines = _draw(lake, since, weeks, factor, random, first_lsn, stretch)
        # Announced before the append: whatever then is in the log beyond the replay's end was injected.
        injection = Injection(last_lsn + 1, weeks, factor, seed)
        announced = replace(state, injections=(*state.injections, injection))
        announced.save(state_path)
        log.append(_changes(lines, last_lsn // LSN_STEP, last_tx))
        now = last_landing(log)
        assert now is not None
        replace(announced, last_event_at=now.isoformat()).save(state_path)
    return InjectReport(pc.count_distinct(lines["invoice_no"]).as_py(), lines.num_rows, since, now, factor)


def _completed(log: ChangeLog, state_path: Path) -> ReplayState:
    state = ReplayState.load(state_path)
    if state is None or not (state.injected(log) or ends(log) == state.ends):
        raise InjectError(f"no completed replay in {state_path.parent}: run `headwater run` first")
    return state


def _last_position(log: ChangeLog) -> tuple[int, int]:
    """The highest log sequence number and transaction in the shop's topics."""
    sources = []
    for (_, topic), end in zip(topics().items(), ends(log).values(), strict=True):
        if end:
            value = log.read(TopicPartition(topic, 0), end - 1, 1)["value"][0].as_py()
            sources.append(json.loads(value)["source"])
    return max(s["lsn"] for s in sources), max(s["txId"] for s in sources)


def _draw(
    lake: Lake, since: datetime, weeks: int, factor: float, random: np.random.Generator, first_lsn: int, stretch: int
) -> pa.Table:
    """Lines of new orders (retail.LINE_SCHEMA, in order of time), each a copy of one that was replayed."""
    lines, orders = keys.raw(SYSTEM, "order_lines"), keys.raw(SYSTEM, "orders")
    with lake.connect([lines, orders]) as connection:
        # Not from injected lines: a second stretch would otherwise multiply the factor.
        connection.execute(
            f"""
            CREATE TEMP TABLE bought AS SELECT * FROM {quoted(lines)}
            WHERE source_position < {first_lsn} AND customer_id IS NOT NULL AND quantity > 0 AND unit_price_gbp > 0
                AND invoice_no NOT LIKE 'C%' AND invoice_no NOT LIKE 'A%'"""
        )
        recent = connection.sql(_RECENT_SQL).to_arrow_table()["invoice_no"]
        if not len(recent):
            raise InjectError(f"no purchase of a known customer in {lines.dotted} to draw from")
        count = max(_MIN_ORDERS, math.ceil(len(recent) / _DRAWN_WEEKS * weeks * _MORE_OFTEN))
        connection.register("drawn", _schedule(recent, count, since, weeks, random, stretch))
        copies = connection.sql(_COPY_SQL.format(orders=quoted(orders), factor=factor)).to_arrow_table()
        return copies.cast(LINE_SCHEMA)


def _schedule(
    recent: pa.ChunkedArray, count: int, since: datetime, weeks: int, random: np.random.Generator, stretch: int
) -> pa.Table:
    """Number, minute and original of each new order; the last one closes the stretch."""
    minutes = np.sort(random.integers(1, weeks * 7 * 1440 + 1, count))
    minutes[-1] = weeks * 7 * 1440
    at = np.datetime64(since, "us") + minutes.astype("timedelta64[m]")
    return pa.table(
        {
            "copy_of": recent.take(pa.array(random.integers(0, len(recent), count))),
            "invoice_no": [f"J{stretch:02d}{i:06d}" for i in range(1, count + 1)],
            "at": pa.array(at, pa.timestamp("us")),
        }
    )


_RECENT_SQL = f"""
SELECT DISTINCT invoice_no FROM bought
WHERE invoiced_at > (SELECT max(invoiced_at) FROM bought) - INTERVAL {_DRAWN_WEEKS} WEEK
ORDER BY invoice_no"""
_COPY_SQL = """
WITH countries AS (
    SELECT invoice_no, any_value(country) AS country FROM {orders} WHERE change_op IN ('c', 'r') GROUP BY invoice_no)
SELECT d.invoice_no, l.stock_code, NULL AS description,
    greatest(1, least(round(l.quantity * {factor}), 1e15))::BIGINT AS quantity,
    d.at AS invoiced_at, l.unit_price_gbp, l.customer_id, c.country, NULL AS landed_at, NULL AS unread
FROM drawn d JOIN bought l ON l.invoice_no = d.copy_of LEFT JOIN countries c ON c.invoice_no = d.copy_of
ORDER BY d.at, d.invoice_no, l.line_no"""


def _changes(lines: pa.Table, places: int, transactions: int) -> Mapping[str, pa.Table]:
    """Only orders and their lines: customers and products exist, and a larger basket does not change them."""
    ordered = order_lines(lines)
    for name, last in (("seq", places), ("tx_id", transactions)):
        ordered = ordered.set_column(ordered.column_names.index(name), name, pc.add(ordered[name], last))
    with duckdb.connect() as connection:
        stage_changes(connection, ordered)
        return {
            topic: connection.sql(
                envelope_sql(table, system=SYSTEM, table=table, connector=INJECT_CONNECTOR)
            ).to_arrow_table()
            for table, topic in topics().items()
            if table in ("orders", "order_lines")
        }
