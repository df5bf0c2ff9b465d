"""What was landed beside what the source holds: rows missing, rows too many, changes that are there twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import jinja2

from catalog import keys
from catalog.load import load_catalog
from lake.schema import DBT_PROJECT_DIR
from lake.tables import Lake, quoted
from streaming.change import SNAPSHOT_ORDER
from streaming.landing import contract_of
from streaming.shop_database.compare import source_rows

__all__ = ["TableVerdict", "judge"]

_MACROS = (DBT_PROJECT_DIR / "macros" / "changes.sql").read_text(encoding="utf-8")


@dataclass(frozen=True)
class TableVerdict:
    """Counts of one table.

    `missing`: rows of the source that the derived state has not, or not so; `surplus`: rows of the derived state that
    the source has not. `twice_in_raw`: streamed changes of a key whose place (epoch, commit, order) is there already;
    `twice_in_state`: rows whose key is there already; `impossible`: changes that cannot follow the key's change before
    (created while it was there, changed while it was not), between which one must have been lost (none in a table
    that was emptied). Of a table without key the last two are 0, and rows that are alike are counted.
    """

    table: str
    source_rows: int
    landed_rows: int
    raw_changes: int
    missing: int
    surplus: int
    twice_in_raw: int
    twice_in_state: int
    impossible: int
    quarantined: int

    @property
    def lost(self) -> int:
        return max(self.missing, self.surplus) + self.impossible

    @property
    def duplicates(self) -> int:
        return self.twice_in_raw + self.twice_in_state

    @property
    def is_right(self) -> bool:
        return not (self.lost or self.duplicates or self.quarantined)

    def __str__(self) -> str:
        return "  ".join(f"{field.name} {getattr(self, field.name)}" for field in fields(self))


def judge(url: str, lake: Lake, catalog: Path) -> Sequence[TableVerdict]:
    """Compare every declared table of the shop at `url` with what was landed of it; nothing may be on its way."""
    return [
        _judge_table(url, lake, source.table, source.gate.key if contract_of(source).keyed else ())
        for source in load_catalog(catalog).sources
    ]


def _judge_table(url: str, lake: Lake, table: str, key: Sequence[str]) -> TableVerdict:
    source, raw, quarantine = source_rows(url, table), keys.raw("shop", table), keys.quarantine("shop", table)
    names = [f'"{name}"' for name in source.column_names]
    history, columns, by_key = quoted(raw), ", ".join(names), ", ".join(key or [*names, "change_op"])
    macro = "{{ current_rows(history, keys) }}" if key else "{{ current_copies(history, columns) }}"
    state = jinja2.Environment().from_string(_MACROS + macro).render(history=history, keys=list(key), columns=names)
    with lake.connect([raw, quarantine]) as db:

        def count(query: str) -> int:
            return int(db.sql(f"SELECT count(*) FROM ({query})").fetchall()[0][0])

        db.execute(f"CREATE TABLE state AS {state}")
        for added in set(source.column_names) - set(db.sql("FROM state").columns):
            db.execute(f'ALTER TABLE state ADD COLUMN "{added}" VARCHAR')  # no row has landed that has it
        db.register("source", source)
        here, there = f"SELECT {columns} FROM source", f"SELECT {columns} FROM state"
        places = f"{by_key}, source_epoch, source_position, source_order"
        return TableVerdict(
            table=table,
            source_rows=source.num_rows,
            landed_rows=count(there),
            raw_changes=count(f"FROM {history}"),
            missing=count(f"{here} EXCEPT ALL {there}"),
            surplus=count(f"{there} EXCEPT ALL {here}"),
            twice_in_raw=count(
                f"SELECT row_number() OVER (PARTITION BY {places}) AS occurrence FROM {history} "
                f"WHERE change_op <> 't' AND source_order < {SNAPSHOT_ORDER} QUALIFY occurrence > 1"
            ),
            twice_in_state=0
            if not key
            else count(
                f"SELECT row_number() OVER (PARTITION BY {by_key}) AS occurrence FROM state QUALIFY occurrence > 1"
            ),
            impossible=0
            if not key
            else count(
                f"SELECT change_op, lag(change_op) OVER (PARTITION BY {by_key}, source_epoch "
                f"ORDER BY source_position, source_order) AS previous FROM {history} "
                f"WHERE NOT EXISTS (FROM {history} WHERE change_op = 't') "
                "QUALIFY (change_op = 'c' AND previous <> 'd') OR (change_op IN ('u', 'd') AND previous = 'd')"
            ),
            quarantined=count(f"FROM {quoted(quarantine)}"),
        )
