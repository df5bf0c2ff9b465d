"""The gates: what is checked before anything downstream of a table runs, and what each check found.

Pure but for reading the lake: no dagster. Five checks, always all of them and by these names, so that whoever watches
knows what to expect: schema, volume, contract, keys, freshness. A table that breaks in a way that a check cannot get
past (a column that it needs is gone) fails that check; nothing passes because it could not be looked at.

A raw table is a history: one key has many rows, so its `keys` check holds the log position unique instead, rows of
deletions are exempt from the contract (a source may send their key alone), and `volume` also bounds the share of rows
that landing had to put into quarantine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Literal

import duckdb

from catalog import keys
from catalog.keys import Key
from catalog.spec import Gate, Source
from lake import expectations
from lake.schema import TableColumn, dbt_columns, source_columns
from lake.tables import Lake, quoted

__all__ = ["CHECK_NAMES", "CheckOutcome", "evaluate_gate"]

CHECK_NAMES = ("schema", "volume", "contract", "keys", "freshness")

# The newest landing is judged by its own share of quarantined rows only from this size on: in a trickle of changes one
# bad row would be half a batch, and stop the shop.
_JUDGED_BATCH_ROWS = 100

Severity = Literal["warn", "block"]
Number = int | float | str


@dataclass(frozen=True)
class CheckOutcome:
    """One check's result. `message` names the table, what was found and what is allowed; `metadata` has the numbers."""

    name: str
    passed: bool
    severity: Severity
    message: str
    metadata: dict[str, Number] = field(default_factory=dict)


def evaluate_gate(
    lake: Lake,
    key: Key,
    gate: Gate,
    now: datetime,
    source: Source | None = None,
    columns: Sequence[TableColumn] | None = None,
) -> tuple[CheckOutcome, ...]:
    """Check one table at the instant `now` (naive UTC): one outcome for each of CHECK_NAMES, in their order.

    The declared columns are those of `source` for a raw table, else `columns`, else what dbt_project says.
    """
    if not lake.exists(key):
        return tuple(
            CheckOutcome(name, False, "block", f"{key.dotted} does not exist: it was never written")
            for name in CHECK_NAMES
        )
    if columns is None:
        columns = source_columns(source) if source else dbt_columns(key)
    with _Table(lake, key, gate) as table:
        return (
            _schema(table, columns),
            _volume(table),
            _contract(table),
            _keys(table),
            _freshness(table, now),
        )


@dataclass(frozen=True)
class _Table:
    """A table under inspection: its columns and rows through one DuckDB connection."""

    lake: Lake
    key: Key
    gate: Gate

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.db.close()

    @cached_property
    def db(self) -> duckdb.DuckDBPyConnection:
        return self.lake.connect([self.key])

    @cached_property
    def types(self) -> dict[str, str]:
        return {row[0]: str(row[1]) for row in self.db.execute(f"DESCRIBE {quoted(self.key)}").fetchall()}

    @property
    def is_history(self) -> bool:
        return self.key.layer == "raw" and "change_op" in self.types

    @property
    def live(self) -> str:
        """The table without the rows of deletions."""
        return quoted(self.key) + (" WHERE coalesce(change_op NOT IN ('d', 't'), true)" if self.is_history else "")

    def row(self, sql: str) -> tuple[Any, ...]:
        """The first row of a query."""
        return tuple(self.db.execute(sql).fetchall()[0])

    def lacking(self, names: Sequence[str]) -> list[str]:
        return [n for n in dict.fromkeys(names) if n not in self.types]

    def cannot(self, check: str, severity: Severity, missing: Sequence[str]) -> CheckOutcome:
        """The outcome of a check whose columns are gone."""
        message = f"{self.key.dotted} has no column {', '.join(missing)}, which its {check} check needs"
        return CheckOutcome(check, False, severity, message)


def _schema(table: _Table, columns: Sequence[TableColumn]) -> CheckOutcome:
    declared = {c.name: c.sql_type for c in columns}
    problems = list(_schema_problems(table, columns))
    unexpected = [n for n in table.types if n not in declared] if declared else []
    note = f"; not declared, but there: {', '.join(unexpected)}" if unexpected else ""
    found = "; ".join(problems) or f"has its {len(declared)} declared columns"
    return CheckOutcome(
        "schema",
        not problems,
        "block",
        f"{table.key.dotted} {found}{note}",
        {"declared_columns": len(declared), "unexpected_columns": len(unexpected), "problems": len(problems)},
    )


def _schema_problems(table: _Table, columns: Sequence[TableColumn]) -> Iterator[str]:
    if missing := table.lacking([c.name for c in columns]):
        yield f"misses column {', '.join(missing)} (it has {', '.join(table.types)})"
    for column in columns:
        found = table.types.get(column.name, column.sql_type)
        if found != column.sql_type:
            yield f"column {column.name} is {found}, allowed is {column.sql_type}"
    required = [c.name for c in columns if not c.nullable and c.name in table.types]
    if required:
        counts = ", ".join(f'count(*) - count("{name}")' for name in required)
        for name, nulls in zip(required, table.row(f"SELECT {counts} FROM {table.live}"), strict=True):
            if nulls:
                yield f"column {name} is null on {nulls:,} rows, allowed is none"


def _volume(table: _Table) -> CheckOutcome:
    rows = int(table.row(f"SELECT count(*) FROM {quoted(table.key)}")[0])
    least, most_pct = table.gate.min_rows, table.gate.max_quarantined_pct
    metadata: dict[str, Number] = {"rows": rows, "min_rows": least}
    problems = [] if rows >= least else [f"has {rows:,} rows, allowed are {least:,} or more"]
    if table.key.layer == "raw":
        shares = _quarantined(table)
        metadata |= {f"quarantined_pct_{s.of}": round(s.pct, 4) for s in shares}
        problems += [
            f"lost {s.pct:.1f} % of {s.of} ({s.quarantined:,} of {s.rows:,} rows) to quarantine, allowed are "
            f"{most_pct:g} %; most often because: {_reasons(table)}"
            for s in shares
            if s.pct > most_pct and (s.of == "all" or s.rows < shares[0].rows)
        ]
    message = f"{table.key.dotted} {'; '.join(problems) or f'has {rows:,} rows'}"
    return CheckOutcome("volume", not problems, "block", message, metadata)


@dataclass(frozen=True)
class _Share:
    """How many of some rows that arrived were put into quarantine."""

    of: str
    rows: int
    quarantined: int

    @property
    def pct(self) -> float:
        return 100.0 * self.quarantined / self.rows if self.rows else 0.0


def _quarantined(table: _Table) -> list[_Share]:
    """The share over everything that ever arrived and, when it is large enough, over the newest landing."""
    aside = keys.quarantine(table.key.subject, table.key.name)
    position = {"log_partition", "log_offset"}
    if not table.lake.exists(aside) or not position <= set(table.types):
        return []
    last = _newest(table)
    rows, bad, newest, newest_bad = table.row(f"""
        WITH arrived AS (
            SELECT log_partition, log_offset, false AS bad FROM {table.lake.scan_sql(table.key)}
            UNION ALL SELECT log_partition, log_offset, true FROM {table.lake.scan_sql(aside)})
        SELECT count(*), count(*) FILTER (bad), count(*) FILTER ({last}), count(*) FILTER (bad AND {last})
        FROM arrived""")
    shares = [_Share("all", rows, bad), _Share("newest", newest, newest_bad)]
    return [s for s in shares if s.of == "all" or s.rows >= _JUDGED_BATCH_ROWS]


def _newest(table: _Table) -> str:
    """SQL for: the row arrived with the last batch that was landed, whether in the table or in quarantine.

    Landing commits the log offset that it has reached, as `topic-partition`, with the rows of each batch: the last
    batch is what lies beyond the offset of the version before.
    """
    topic, version = keys.cdc_topic(table.key.subject, table.key.name), table.lake.version(table.key) or 0
    if version == 0:
        return "true"
    before = table.lake.table(table.key, version - 1)
    found = table.db.execute(f"SELECT DISTINCT log_partition FROM {quoted(table.key)}").fetchall()
    reached = {p: before.transaction_version(f"{topic}-{p}") or 0 for p in [row[0] for row in found] or [0]}
    return "(" + " OR ".join(f"log_partition = {p} AND log_offset >= {o}" for p, o in reached.items()) + ")"


def _reasons(table: _Table) -> str:
    """The commonest problems; a reason also quotes the value after ", found", which would make each row its own."""
    aside = keys.quarantine(table.key.subject, table.key.name)
    problems = f"SELECT split_part(reason, ', found ', 1) AS problem FROM {table.lake.scan_sql(aside)}"
    found = table.db.execute(
        f"SELECT problem, count(*) FROM ({problems}) GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 3"
    ).fetchall()
    return ", ".join(f"{reason} ({count:,})" for reason, count in found)


def _contract(table: _Table) -> CheckOutcome:
    declared = table.gate.expectations
    names = expectations.needed_columns(declared)
    if missing := table.lacking(names):
        return table.cannot("contract", "block", missing)
    chosen = ", ".join(f'"{n}"' for n in names or list(table.types)[:1])
    rows = table.db.sql(f"SELECT {chosen} FROM {table.live}").to_arrow_table()
    verdicts = expectations.validate(rows, declared)
    broken = [v for v in verdicts if not v.passed]
    found = "; ".join(v.message for v in broken) or f"holds its {len(verdicts)} expectations"
    shares: dict[str, Number] = {
        f"unexpected_pct {v.expectation}": round(v.unexpected_pct, 4) for v in verdicts if v.unexpected_pct is not None
    }
    metadata: dict[str, Number] = {"expectations": len(verdicts), "broken": len(broken), **shares}
    return CheckOutcome("contract", not broken, "block", f"{table.key.dotted} {found}", metadata)


def _keys(table: _Table) -> CheckOutcome:
    unique = table.gate.key
    if table.key.layer == "raw":  # of a table without key an update is a deletion and a creation
        unique = ("log_partition", "log_offset", *(() if table.gate.key else ("change_op",)))
    if missing := table.lacking([*unique, *table.gate.key]):
        return table.cannot("keys", "block", missing)
    columns = ", ".join(f'"{n}"' for n in unique)
    empty = " OR ".join(f'"{n}" IS NULL' for n in dict.fromkeys([*unique, *table.gate.key]))
    # That a table was emptied is no row of it.
    keyed = " AND change_op IS DISTINCT FROM 't'" if table.is_history else ""
    nulls = int(table.row(f"SELECT count(*) FROM {quoted(table.key)} WHERE ({empty}){keyed}")[0])
    twice = f"SELECT {columns}, count(*) AS n FROM {quoted(table.key)} GROUP BY ALL HAVING n > 1"
    extra = int(table.row(f"SELECT coalesce(sum(n - 1), 0) FROM ({twice})")[0])
    problems = [f"has {nulls:,} rows with a null in their key ({', '.join(table.gate.key)})"] if nulls else []
    if extra:
        example = table.row(f"{twice} ORDER BY {columns} LIMIT 1")[:-1]
        named = ", ".join(f"{n} {v}" for n, v in zip(unique, example, strict=True))
        problems.append(f"has {extra:,} rows beyond the first for their ({columns}), such as {named}")
    found = "; ".join(problems) + ", allowed is none" if problems else f"has unique keys ({columns})"
    return CheckOutcome(
        "keys", not problems, "block", f"{table.key.dotted} {found}", {"nulls": nulls, "repeated": extra}
    )


def _freshness(table: _Table, now: datetime) -> CheckOutcome:
    severity, allowed = table.gate.freshness, table.gate.freshness_days
    if missing := table.lacking([table.gate.event_time]):
        return table.cannot("freshness", severity, missing)
    latest = table.row(f'SELECT try_cast(max("{table.gate.event_time}") AS TIMESTAMP) FROM {quoted(table.key)}')[0]
    if latest is None:
        # A table that may be empty (no refund yet) is not stale for being so.
        message = f"{table.key.dotted} has no {table.gate.event_time} to tell its age by"
        return CheckOutcome("freshness", table.gate.min_rows == 0, severity, message)
    age = (now - latest) / timedelta(days=1)
    message = (
        f"{table.key.dotted} has its latest {table.gate.event_time} at {latest.isoformat()}, {age:.2f} days before "
        f"{now.isoformat()}; allowed are {allowed:g}"
    )
    metadata: dict[str, Number] = {"age_days": round(age, 4), "freshness_days": allowed, "latest": latest.isoformat()}
    return CheckOutcome("freshness", age <= allowed, severity, message, metadata)
