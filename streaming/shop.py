"""Invoice lines as the changes that the shop's operational database would have emitted: what changed, as SQL.

Every rule looks back only, so the changes of a file are a prefix of the changes of any longer file. A line has one
place in the stream (by landing time, then file order), and each change that it causes has its own log sequence number:
8 x place + rank, where the rank puts parents before children. Envelopes are change's, the log is replay's.

Rules. *Customers*: inserted by their first line, updated when the country of a later invoice differs. *Products*:
inserted by their first line; the description is that of the latest sale line; the list price is the price of the first
sale line in a calendar month (single lines differ by quantity and buyer; a list is reviewed now and then). *Orders*:
inserted by their first line; updated when a line of a later minute arrives, and when a line of a refund invoice (C...)
names a product that the same customer bought on it (the latest such order before). *Order lines*: inserted, never
changed; what could not be read of a line is in its row as the text that it was.
A line that landed late inserts what is missing but changes no customer and no product: newer news is already there.
"""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["LSN_STEP", "TABLES", "order_lines", "stage_changes"]

TABLES = ("customers", "products", "orders", "order_lines")
LSN_STEP = 8


def order_lines(lines: pa.Table) -> pa.Table:
    """Lines (retail.LINE_SCHEMA, file order) in stream order, with seq (from 1), tx_id, event_at, landed_at, is_late.

    A line without a readable date takes the place of the line before it.
    """
    event_at = pc.fill_null(
        pc.fill_null_backward(pc.fill_null_forward(lines["invoiced_at"].combine_chunks())),
        pa.scalar(0, pa.timestamp("us")),
    )
    landed_at = pc.max_element_wise(event_at, lines["landed_at"].combine_chunks())
    table = lines.drop_columns(["landed_at"]).append_column("event_at", event_at).append_column("landed_at", landed_at)
    table = _sort_stably(table.append_column("is_late", pc.greater(landed_at, event_at)))
    starts = _starts_transaction(table)
    return (
        table.append_column("seq", pa.array(np.arange(1, table.num_rows + 1, dtype=np.int64)))
        .append_column("starts_tx", pa.array(starts))
        .append_column("tx_id", pa.array(np.cumsum(starts, dtype=np.int64)))
    )


def _sort_stably(table: pa.Table) -> pa.Table:
    landed_us = table["landed_at"].combine_chunks().cast(pa.int64()).to_numpy()
    if bool(np.all(landed_us[1:] >= landed_us[:-1])):  # most files: saves moving every text
        return table.combine_chunks()
    return table.take(pa.array(np.argsort(landed_us, kind="stable"))).combine_chunks()


def _starts_transaction(table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """True where invoice or instant differ from the line before."""
    starts = np.ones(table.num_rows, dtype=bool)
    invoice, instant = pc.fill_null(table["invoice_no"], ""), table["event_at"]
    differs = pc.or_(
        pc.not_equal(invoice.slice(1), invoice.slice(0, table.num_rows - 1)),
        pc.not_equal(instant.slice(1), instant.slice(0, table.num_rows - 1)),
    )
    starts[1:] = differs.to_numpy()
    return starts


def stage_changes(connection: duckdb.DuckDBPyConnection, ordered: pa.Table) -> None:
    """Make the relations `customers`, `products`, `orders`, `order_lines`: what change.envelope_sql takes."""
    _stage_lines(connection, ordered)
    for statement in (_CUSTOMERS, _PRODUCTS, _REFUNDED, _ORDERS, _ORDER_LINES):
        connection.execute(statement)


def _stage_lines(connection: duckdb.DuckDBPyConnection, ordered: pa.Table) -> None:
    connection.register("ordered_lines", ordered)
    connection.execute(
        """
        CREATE TEMP TABLE line AS
        SELECT *, row_number() OVER (PARTITION BY invoice_no ORDER BY seq) AS line_no,
            CASE WHEN invoice_no LIKE 'C%' THEN 'refund' WHEN invoice_no LIKE 'A%' THEN 'adjustment'
                ELSE 'sale' END AS kind,
            coalesce(invoice_no NOT LIKE 'C%' AND invoice_no NOT LIKE 'A%' AND stock_code IS NOT NULL
                AND quantity > 0 AND unit_price_gbp > 0, false) AS is_sale
        FROM ordered_lines"""
    )


_CUSTOMERS = """
CREATE TEMP TABLE customers AS
WITH first_lines AS (SELECT min(seq) AS seq FROM line WHERE customer_id IS NOT NULL GROUP BY customer_id),
heard AS (
    SELECT *, last_value(country IGNORE NULLS) OVER w AS known_country, first_value(event_at) OVER w AS registered_at
    FROM line
    WHERE customer_id IS NOT NULL AND ((starts_tx AND NOT is_late) OR seq IN (FROM first_lines))
    WINDOW w AS (PARTITION BY customer_id ORDER BY seq ROWS UNBOUNDED PRECEDING)),
moved AS (
    SELECT * FROM heard WINDOW w AS (PARTITION BY customer_id ORDER BY seq)
    QUALIFY row_number() OVER w = 1 OR known_country IS DISTINCT FROM lag(known_country) OVER w),
imaged AS (
    SELECT *, {'customer_id': customer_id, 'country': known_country, 'registered_at': epoch_us(registered_at),
        'updated_at': epoch_us(greatest(event_at, registered_at))} AS after FROM moved)
SELECT seq * 8 AS lsn, tx_id, event_at, landed_at, {'customer_id': customer_id} AS key, after,
    lag(after) OVER (PARTITION BY customer_id ORDER BY seq) AS before,
    CASE WHEN before IS NULL THEN 'c' ELSE 'u' END AS op, NULL::VARCHAR AS unread
FROM imaged ORDER BY lsn"""

_PRODUCTS = """
CREATE TEMP TABLE products AS
WITH offered AS (
    SELECT *, date_trunc('month', event_at) IS DISTINCT FROM lag(date_trunc('month', event_at)) OVER w AS new_month,
        description IS DISTINCT FROM lag(description) OVER w AS new_description
    FROM line WHERE is_sale AND NOT is_late WINDOW w AS (PARTITION BY stock_code ORDER BY seq)),
first_lines AS (SELECT min(seq) AS seq FROM line WHERE stock_code IS NOT NULL GROUP BY stock_code),
news AS (
    SELECT seq, tx_id, event_at, landed_at, stock_code, description,
        CASE WHEN new_month THEN unit_price_gbp END AS price
    FROM offered WHERE new_month OR new_description
    UNION ALL
    SELECT seq, tx_id, event_at, landed_at, stock_code, description, CASE WHEN is_sale THEN unit_price_gbp END
    FROM line WHERE (is_late OR NOT is_sale) AND seq IN (FROM first_lines)),
known AS (
    SELECT * EXCLUDE (description), last_value(description IGNORE NULLS) OVER w AS description,
        last_value(price IGNORE NULLS) OVER w AS list_price_gbp
    FROM news WINDOW w AS (PARTITION BY stock_code ORDER BY seq ROWS UNBOUNDED PRECEDING)),
moved AS (
    SELECT * FROM known WINDOW w AS (PARTITION BY stock_code ORDER BY seq)
    QUALIFY row_number() OVER w = 1 OR description IS DISTINCT FROM lag(description) OVER w
        OR list_price_gbp IS DISTINCT FROM lag(list_price_gbp) OVER w),
imaged AS (
    SELECT *, {'stock_code': stock_code, 'description': description, 'list_price_gbp': list_price_gbp,
        'updated_at': epoch_us(event_at)} AS after FROM moved)
SELECT seq * 8 + 1 AS lsn, tx_id, event_at, landed_at, {'stock_code': stock_code} AS key, after,
    lag(after) OVER (PARTITION BY stock_code ORDER BY seq) AS before,
    CASE WHEN before IS NULL THEN 'c' ELSE 'u' END AS op, NULL::VARCHAR AS unread
FROM imaged ORDER BY lsn"""

# One row for each refund line that names an earlier sale: what of that order is refunded once it is booked. Refunding
# more units of a product than the order has does not make up for another product that was kept: hence `covered`.
_REFUNDED = """
CREATE TEMP TABLE refunded AS
WITH matched AS (
    SELECT r.seq, r.tx_id, r.event_at, r.landed_at, r.stock_code, s.invoice_no, -(r.quantity::HUGEINT) AS units,
        abs(TRY_CAST(r.unit_price_gbp AS DECIMAL(16, 4)) * TRY_CAST(r.quantity AS INTEGER)) AS gbp
    FROM (FROM line WHERE kind = 'refund' AND quantity < 0) r
    ASOF JOIN (FROM line WHERE is_sale AND customer_id IS NOT NULL) s
        ON r.customer_id = s.customer_id AND r.stock_code = s.stock_code AND r.seq > s.seq),
ordered AS (
    SELECT m.seq, sum(s.quantity) AS units_ordered, sum(s.quantity) FILTER (s.stock_code = m.stock_code) AS of_product
    FROM matched m JOIN line s ON s.invoice_no = m.invoice_no AND s.is_sale AND s.seq < m.seq
    GROUP BY m.seq),
covering AS (
    SELECT *, least(sum(units) OVER (PARTITION BY invoice_no, stock_code ORDER BY seq), of_product) AS covered
    FROM matched JOIN ordered USING (seq)),
growing AS (
    SELECT *, covered - coalesce(lag(covered) OVER (PARTITION BY invoice_no, stock_code ORDER BY seq), 0) AS more
    FROM covering)
SELECT seq, tx_id, event_at, landed_at, invoice_no, coalesce(gbp, 0) AS gbp,
    CASE WHEN sum(more) OVER (PARTITION BY invoice_no ORDER BY seq) >= units_ordered THEN 'full'
        ELSE 'partial' END AS status
FROM growing"""

_ORDERS = """
CREATE TEMP TABLE orders AS
WITH minutes AS (
    SELECT invoice_no, min(seq) AS seq FROM line WHERE invoice_no IS NOT NULL GROUP BY invoice_no, event_at),
touched AS (
    SELECT seq * 8 + 2 AS lsn, tx_id, event_at, landed_at, invoice_no, 0::DECIMAL(38, 4) AS gbp, NULL AS status
    FROM line WHERE seq IN (SELECT seq FROM minutes)
    UNION ALL
    SELECT seq * 8 + 4, tx_id, event_at, landed_at, invoice_no, gbp, status FROM refunded),
opened AS (
    SELECT invoice_no, customer_id, country, kind, event_at AS ordered_at FROM line
    WHERE seq IN (SELECT min(seq) FROM minutes GROUP BY invoice_no)),
imaged AS (
    SELECT t.*, {'invoice_no': invoice_no, 'customer_id': customer_id, 'country': country, 'kind': kind,
        'refund_status': coalesce(last_value(status IGNORE NULLS) OVER w, 'none'),
        'refunded_gbp': (sum(gbp) OVER w)::DOUBLE, 'ordered_at': epoch_us(ordered_at),
        'updated_at': epoch_us(max(event_at) OVER w)} AS after
    FROM touched t JOIN opened USING (invoice_no)
    WINDOW w AS (PARTITION BY invoice_no ORDER BY lsn ROWS UNBOUNDED PRECEDING))
SELECT lsn, tx_id, event_at, landed_at, {'invoice_no': invoice_no} AS key, after,
    lag(after) OVER (PARTITION BY invoice_no ORDER BY lsn) AS before,
    CASE WHEN before IS NULL THEN 'c' ELSE 'u' END AS op, NULL::VARCHAR AS unread
FROM imaged ORDER BY lsn"""

_ORDER_LINES = """
CREATE TEMP VIEW order_lines AS
SELECT seq * 8 + 3 AS lsn, tx_id, event_at, landed_at, {'invoice_no': invoice_no, 'line_no': line_no} AS key,
    NULL::STRUCT(invoice_no VARCHAR) AS before, 'c' AS op,
    {'invoice_no': invoice_no, 'line_no': line_no, 'customer_id': customer_id, 'stock_code': stock_code,
     'quantity': quantity, 'unit_price_gbp': unit_price_gbp, 'invoiced_at': epoch_us(invoiced_at)} AS after, unread
FROM line"""
