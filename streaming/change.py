"""The change event: a Debezium-compatible envelope, built and taken apart as SQL over many rows at once. Pure.

An envelope is JSON without a schema part: `before` and `after` (the row's images; timestamps inside them are
microseconds since 1970, as io.debezium.time.MicroTimestamp), `op` (c create, u update, d delete, r read by a snapshot,
t all of the table's rows deleted: its images and its key are null),
`ts_ms` (when the connector saw it) and `source` (when and where it happened). A value that the connector could not read
as its column's type is in the row as the source's own text, for the contract to refuse. Which rows exist is for a
connector to say, which columns a row must have for the contract.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

__all__ = ["OPS", "REPLAY_CONNECTOR", "SNAPSHOT_ORDER", "UNAVAILABLE", "envelope_sql", "instant_sql", "parse_sql"]

OPS = ("c", "u", "d", "r", "t")
# The order of rows that a snapshot read, after every change of the transactions up to their position.
SNAPSHOT_ORDER = 0x3FFFFFFF
# What stands for a value that the database did not send (PostgreSQL's unchanged TOAST columns), as in Debezium.
UNAVAILABLE = "__debezium_unavailable_value"
REPLAY_CONNECTOR = "headwater-replay"
_VERSION = "0.1.0"


def envelope_sql(changes: str, *, system: str, table: str, connector: str = REPLAY_CONNECTOR) -> str:
    """SELECT of timestamp_us, key, value in order of lsn.

    `changes` is a relation with lsn, tx_id (int64, position and transaction), event_at, landed_at (timestamp: when it
    happened, when it became known), op, the structs key, before (null unless op is u or d) and after, and unread: null,
    or JSON of what takes the place of values in `after` (an object, by column), or of all of it (text).
    """
    source = (
        f"{{'version': '{_VERSION}', 'connector': '{connector}', 'name': '{system}', 'ts_ms': epoch_ms(event_at), "
        f"'snapshot': 'false', 'db': '{system}', 'ts_us': epoch_us(event_at), 'table': '{table}', 'txId': tx_id, "
        "'lsn': lsn}"
    )
    envelope = (
        f"{{'before': before, 'after': after, 'source': {source}, 'transaction': NULL, 'op': op, "
        "'ts_ms': epoch_ms(landed_at), 'ts_us': epoch_us(landed_at)}"
    )
    value = f"to_json({envelope})"
    patched = f"json_merge_patch({value}, json_object('after', unread::JSON))"
    return (
        "SELECT epoch_us(landed_at) AS timestamp_us, to_json(key)::VARCHAR AS key, "
        f"(CASE WHEN unread IS NULL THEN {value} ELSE {patched} END)::VARCHAR AS value FROM {changes} ORDER BY lsn"
    )


def instant_sql(text: str) -> str:
    """ISO 8601 text as a naive UTC timestamp, null if it is none: a plain cast ignores zones and knows "infinity"."""
    return (
        f"CASE WHEN regexp_matches({text}, '^[0-9].*:.*([+-][0-9]|[A-Za-z]{{2}})') "
        f"THEN TRY_CAST({text} AS TIMESTAMPTZ) AT TIME ZONE 'UTC' "
        f"WHEN {text} BETWEEN '0' AND ':' THEN TRY_CAST({text} AS TIMESTAMP) END"
    )


def parse_sql(records: str, columns: Sequence[str], *, replaced: bool = False) -> str:
    """SELECT of every column of `records` (key, value, ...) and `parsed`, `op`, `row`, `ts`, `tx_id`, and its place.

    `parsed` is null where the value is not JSON; `row` is a struct of `columns`, each the raw JSON of that column in
    `after` (in `before` for a delete) and null where it is null or missing; `ts` is the source's time in microseconds.
    The place is `epoch`, `position`, `ordinal` as a connector of ours gave it (with the table's `schema_version`);
    `placed` is false where there is none: then `position` is the source's lsn. `replayed`: it was a dead letter;
    `unsent`: columns whose value the database did not send.
    With `replaced` an update is read as the deletion of the row that it replaced.
    """
    shape = ", ".join(f'{_quoted(column)}: "JSON"' for column in columns)
    source = (
        '"ts_us": "JSON", "ts_ms": "JSON", "lsn": "JSON", "txId": "JSON", '
        '"headwater": {"epoch": "JSON", "commit": "JSON", "order": "JSON", "schema": "JSON", '
        '"replayed": "JSON", "unsent": ["VARCHAR"]}'
    )
    placed = "parsed.source.headwater IS NOT NULL"
    op = "CASE parsed.op WHEN 'u' THEN 'd' ELSE parsed.op END" if replaced else "parsed.op"
    # For its few deletes the row is read out of `before` a second time; all others cost one pass over the text.
    return f"""
        WITH envelopes AS (
            SELECT *, TRY(from_json(value, '{{"before": "JSON", "after": {{{shape}}}, "op": "VARCHAR",
                "source": {{{source}}}}}')) AS parsed
            FROM {records})
        SELECT *, {op} AS op,
            CASE WHEN {op} = 'd' THEN TRY(from_json(parsed.before, '{{{shape}}}')) ELSE parsed.after END AS row,
            coalesce(TRY_CAST(parsed.source.ts_us::VARCHAR AS BIGINT),
                TRY(TRY_CAST(parsed.source.ts_ms::VARCHAR AS BIGINT) * 1000)) AS ts,
            TRY_CAST(parsed.source.txId::VARCHAR AS BIGINT) AS tx_id,
            {placed} AS placed, parsed.source.headwater.replayed IS NOT NULL AS replayed,
            CASE WHEN {placed} THEN {_number("epoch")} ELSE 1 END AS epoch,
            CASE WHEN {placed} THEN {_number("commit")} ELSE TRY_CAST(parsed.source.lsn::VARCHAR AS BIGINT)
                END AS position,
            CASE WHEN {placed} THEN {_number("order")} ELSE 0 END AS ordinal,
            {_number("schema")} AS schema_version, parsed.source.headwater.unsent AS unsent
        FROM envelopes"""


def _number(field: str) -> str:
    return f'TRY_CAST(parsed.source.headwater."{field}"::VARCHAR AS BIGINT)'


def _quoted(column: str) -> str:
    """A column's name as a JSON string inside an SQL string."""
    return json.dumps(column, ensure_ascii=False).replace("'", "''")
