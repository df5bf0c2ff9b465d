"""Fills in values that the database did not send because they had not changed (PostgreSQL's TOAST columns).

The value is that of the same row's change before, in the batch or in the table. Where that change is in quarantine, or
nowhere, the value is not known, and the change goes to quarantine too: an older value would be a wrong one. Whether a
change lands does therefore not depend on where batches are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb

from catalog.keys import Key
from lake.tables import Lake

if TYPE_CHECKING:
    from streaming.contract import Field

__all__ = ["Unchanged"]

_NOT_KNOWN = "the database did not send it (unchanged), and no earlier value has landed"


@dataclass(frozen=True)
class Unchanged:
    """What has landed of one topic partition before the batch that begins at `offset`."""

    lake: Lake
    table: Key
    quarantine: Key
    fields: Sequence[Field]
    partition: int
    offset: int

    def fill(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Fill in, in the table `checked` of contract.check. What cannot be filled is not `ok`, and `told` why."""
        columns = ", ".join(f'"t_{f.name}", "u_{f.name}"' for f in self.fields)
        connection.execute(
            f"CREATE TEMP TABLE wanted AS SELECT DISTINCT ON (key) key, {self._columns('t_', self._key)} "
            f"FROM checked WHERE ok AND ({self._any_unsent()})"
        )
        connection.execute(
            f"""CREATE TEMP TABLE past AS {self._landed_sql()} UNION ALL BY NAME {self._quarantined_sql()}
            UNION ALL BY NAME SELECT key, log_offset, epoch, position, ordinal, ok AND op <> 'd' AS known, {columns}
            FROM checked WHERE key IN (SELECT key FROM wanted)"""
        )
        while self._not_known(connection):
            pass
        self._write(connection)

    @property
    def _key(self) -> list[Field]:
        return [f for f in self.fields if f.key]

    def _columns(self, prefix: str, fields: Sequence[Field]) -> str:
        return ", ".join(f'"{prefix}{f.name}"' for f in fields)

    def _any_unsent(self) -> str:
        return " OR ".join(f'"u_{f.name}"' for f in self.fields)

    def _landed_sql(self) -> str:
        """The last change that landed of each row."""
        own = ", ".join(f'raw."{f.name}" AS "t_{f.name}", false AS "u_{f.name}"' for f in self.fields if self._has(f))
        same = " AND ".join(f'raw."{f.name}" = wanted."t_{f.name}"' for f in self._key)
        return f"""
            (SELECT wanted.key AS key, raw.log_offset AS log_offset, source_epoch AS epoch, source_position AS position,
                source_order AS ordinal, change_op <> 'd' AS known, {own}
            FROM {self.lake.scan_sql(self.table)} AS raw JOIN wanted ON {same}
            WHERE log_partition = {self.partition} AND raw.log_offset < {self.offset}
            QUALIFY row_number() OVER (PARTITION BY wanted.key ORDER BY epoch DESC, position DESC, ordinal DESC,
                raw.log_offset DESC) = 1)"""

    def _has(self, field: Field) -> bool:
        return field.name in self.lake.schema(self.table).names

    def _quarantined_sql(self) -> str:
        """Every change of these rows that is in quarantine: of whatever came before it nothing is known any more."""
        number = "TRY_CAST(value -> 'source' -> 'headwater' ->> '{}' AS BIGINT) AS {}"
        place = ", ".join(number.format(*names) for names in (("epoch", "epoch"), ("commit", "position")))
        return f"""
            (SELECT key, log_offset, {place}, {number.format("order", "ordinal")}, false AS known
            FROM (SELECT * FROM {self.lake.scan_sql(self.quarantine)} WHERE json_valid(value))
            WHERE key IN (SELECT key FROM wanted) AND log_partition = {self.partition}
                AND log_offset < {self.offset})"""

    def _not_known(self, connection: duckdb.DuckDBPyConnection) -> bool:
        """Resolve; changes whose value is not known make those after them unknown as well, so once more then."""
        before = "PARTITION BY key ORDER BY epoch, position, ordinal, log_offset"
        resolved = ", ".join(
            f"""last_value(CASE WHEN NOT known THEN {{'known': false, 'v': NULL}}
                WHEN NOT "u_{f.name}" THEN {{'known': true, 'v': "t_{f.name}"}} END IGNORE NULLS) OVER rows_before
                AS "r_{f.name}" """
            for f in self.fields
        )
        connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE resolved AS
            SELECT key, log_offset, known, {self._columns("u_", self.fields)}, {resolved} FROM past
            WINDOW rows_before AS ({before} ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)"""
        )
        lost = " OR ".join(f'("u_{f.name}" AND NOT coalesce("r_{f.name}".known, false))' for f in self.fields)
        connection.execute(f"CREATE OR REPLACE TEMP TABLE lost AS SELECT * FROM resolved WHERE known AND ({lost})")
        self._tell(connection)
        found = connection.sql("SELECT count(*) FROM lost").fetchall()[0][0]
        connection.execute("UPDATE past SET known = false WHERE log_offset IN (SELECT log_offset FROM lost)")
        return bool(found)

    def _tell(self, connection: duckdb.DuckDBPyConnection) -> None:
        why = " ".join(
            f"""WHEN "u_{f.name}" AND NOT coalesce("r_{f.name}".known, false) THEN '{f.name}: {_NOT_KNOWN}'"""
            for f in self.fields
        )
        connection.execute(
            f"""UPDATE checked SET ok = false, told = why FROM (SELECT log_offset, CASE {why} END AS why FROM lost)
            AS l WHERE l.log_offset = checked.log_offset"""
        )

    def _write(self, connection: duckdb.DuckDBPyConnection) -> None:
        filled = ", ".join(
            f'"t_{f.name}" = CASE WHEN checked."u_{f.name}" THEN "r_{f.name}".v ELSE "t_{f.name}" END'
            for f in self.fields
        )
        connection.execute(
            f"UPDATE checked SET {filled} FROM resolved AS r WHERE r.log_offset = checked.log_offset AND checked.ok"
        )
