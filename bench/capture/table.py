"""The table that changes: made, filled with a backlog, written at a steady rate, on PostgreSQL and on MariaDB."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from bench.debezium.peers import Database, connect
from headwater.stack.server import Server

__all__ = ["DATABASE", "DELETED", "INSERTED", "SOURCE_YAML", "TABLE", "UPDATED", "Table", "fresh_table"]

DATABASE, TABLE = "bench", "sale_lines"
# Changes of one transaction of the backlog: 100 rows of one table.
INSERTED, UPDATED, DELETED = 60, 30, 10
_STEADY_ROWS = 10  # in a transaction
_COLUMNS = (
    "id bigint PRIMARY KEY, invoice_no varchar(20) NOT NULL, stock_code varchar(20) NOT NULL, description varchar(60), "
    "quantity int NOT NULL, unit_price numeric(12,2) NOT NULL, customer_id bigint, invoiced_at {instant} NOT NULL, "
    "sent_us bigint NOT NULL"
)
_ROW = (
    "{id}, concat('5', {id}), concat('SC', {id} % 4000), 'WHITE HANGING HEART T-LIGHT HOLDER', {id} % 50, "
    "({id} % 1000) * 0.25, {id} % 5000, '2011-09-10 12:34:56.123456', {us}"
)
SOURCE_YAML = f"""system: {{system}}
table: {TABLE}
description: The lines that the benchmark writes.
owner: team:data-platform
domain: sales
columns:
  - {{{{name: id, type: int64, nullable: false, description: "Number of the line."}}}}
gate: {{{{key: [id], event_time: id, freshness_days: 7}}}}
"""


class Table:
    """Rows with an id below zero are marks, by which one sees how far a connector is."""

    def __init__(self, kind: str, database: Database) -> None:
        self._kind, self._database = kind, database
        self._marks = itertools.count(1)
        self._ids = itertools.count(1_000_000_000, _STEADY_ROWS)
        self._blocks = 0

    def next_mark(self) -> int:
        """The id of a mark that is not there yet."""
        return -next(self._marks)

    def mark(self, mark: int) -> None:
        """Commit it, a row by itself."""
        self._database.run(f"INSERT INTO {TABLE} VALUES ({_ROW.format(id=mark, us=0)})")

    def backlog(self, changes: int) -> None:
        """So many row changes (a multiple of 100): inserts, updates and deletes, 100 in a transaction."""
        for block in range(self._blocks, self._blocks + changes // (INSERTED + UPDATED + DELETED)):
            first = 1 + block * INSERTED
            last = first + INSERTED - 1
            series = f"generate_series({first}, {last}) i" if self._kind == "postgresql" else f"seq_{first}_to_{last}"
            row = _ROW.format(id="i" if self._kind == "postgresql" else "seq", us=0)
            with self._database.transaction():
                self._database.run(f"INSERT INTO {TABLE} SELECT {row} FROM {series}")
                self._change(f"UPDATE {TABLE} SET quantity = quantity + 1", first, first + UPDATED - 1)
                self._change(f"DELETE FROM {TABLE}", last - DELETED + 1, last)
        self._blocks += changes // (INSERTED + UPDATED + DELETED)

    def _change(self, statement: str, first: int, last: int) -> None:
        self._database.run(f"{statement} WHERE id BETWEEN {first} AND {last}")

    def write_steadily(self, rows_per_s: int, seconds: float) -> int:
        """Insert at that rate, ten rows in a transaction; each row says when it was sent. Returns how many rows."""
        began, step, written = time.monotonic(), _STEADY_ROWS / rows_per_s, 0
        while written * step < seconds:
            time.sleep(max(0.0, began + written * step - time.monotonic()))
            first, now_us = next(self._ids), time.time_ns() // 1000
            rows = ", ".join(f"({_ROW.format(id=first + n, us=now_us)})" for n in range(_STEADY_ROWS))
            self._database.run(f"INSERT INTO {TABLE} VALUES {rows}")
            written += 1
        return written * _STEADY_ROWS

    def rows(self) -> int:
        """How many it has."""
        ((count,),) = self._database.ask(f"SELECT count(*) FROM {TABLE}")
        return int(count)

    def forget(self, slot: str, publication: str) -> None:
        """Let PostgreSQL forget a connector, once the server has noticed that it is gone."""
        if self._kind != "postgresql":
            return
        while self._database.ask(f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{slot}' AND active"):
            time.sleep(0.05)
        held = f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}'"
        self._database.ask(held)
        self._database.run(f"DROP PUBLICATION IF EXISTS {publication}")


@contextmanager
def fresh_table(kind: str, server: Server) -> Iterator[Table]:
    """An empty table in a database of its own, which is dropped at the end."""
    with closing(connect(kind, server, None)) as admin:
        admin.run(f"CREATE DATABASE {DATABASE}")
        try:
            with closing(connect(kind, server, DATABASE)) as database:
                instant = "timestamp" if kind == "postgresql" else "datetime(6)"
                database.run(f"CREATE TABLE {TABLE} ({_COLUMNS.format(instant=instant)})")
                yield Table(kind, database)
        finally:
            admin.run(f"DROP DATABASE {DATABASE}" + (" WITH (FORCE)" if kind == "postgresql" else ""))
