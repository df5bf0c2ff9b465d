"""What the server's slot keeps for us: measured by a connector that runs, and by whoever asks while none does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import psycopg

from streaming.capture.credentials import Address
from streaming.capture.errors import CaptureError
from streaming.capture.source import Retained
from streaming.postgres import setup
from streaming.postgres.catalog import Query
from streaming.postgres.checks import ServerState, server_state
from streaming.postgres.connect import Server
from streaming.postgres.pgoutput import last_written, parse_lsn
from streaming.postgres.setup import Slot

__all__ = ["ask_retained", "end_of_log", "measured"]

_BOUND_SQL = """
SELECT setting::int8 * 1048576 FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size' AND setting <> '-1'
"""
_END_SQL = """
SELECT pg_current_wal_insert_lsn()::text,
  (SELECT setting::int8 FROM pg_catalog.pg_settings WHERE name = 'wal_segment_size')
"""


def end_of_log(query: Query) -> int:
    """Where the server's log ends."""
    ((end, segment_bytes),) = query(_END_SQL, ())
    return last_written(parse_lsn(end), segment_bytes)


def measured(query: Query, slot: Slot, end: int) -> Retained:
    """What the slot keeps, when the log ends there."""
    bound = query(_BOUND_SQL, ())
    kept = max(end - slot.restart, 0)
    left = None if slot.safe_wal_bytes is None else kept + slot.safe_wal_bytes
    limit = left or (bound[0][0] if bound else None)
    # The sink counts by last bytes (see `reader`).
    return Retained(max(end - slot.confirmed, 0), kept, limit, end - 1, bounded=limit is not None)


def ask_retained(address: Address, slot: str, within_s: int) -> Retained | None:
    """Over a connection of its own, which changes nothing; None when it cannot be asked in that time.

    Raises Halt when there is no such slot any more, or it was given up.
    """
    quick = replace(address, options={**address.options, "connect_timeout": str(within_s)})
    server = Server(quick, "headwater status")
    looked: tuple[ServerState, Slot, Retained] | None = None
    asked = False
    with suppress(CaptureError), closing(server.session(statement_timeout_s=within_s)) as connection:

        def query(statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
            try:
                return connection.execute(statement.encode(), values).fetchall()
            except psycopg.Error as error:
                raise server.problem(error, "ask what it keeps for us") from None

        found = setup.read_slot(query, slot, connection.info.server_version)
        asked = True
        if found is not None:
            looked = server_state(query), found, measured(query, found, end_of_log(query))
    if looked is None:
        if asked:
            raise setup.dropped(slot)
        return None
    state, found, kept = looked
    setup.check_slot(found, slot, state)
    return kept
