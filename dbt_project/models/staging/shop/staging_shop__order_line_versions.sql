with history as (
  {{ versions(source('raw_shop', 'order_lines'), ['invoice_no', 'line_no']) }}
)

select
  cast(invoice_no as varchar) as invoice_no,
  cast(line_no as bigint) as line_no,
  cast(customer_id as bigint) as customer_id,
  cast(stock_code as varchar) as stock_code,
  cast(quantity as bigint) as quantity,
  cast(unit_price_gbp as double) as unit_price_gbp,
  cast(invoiced_at as timestamp) as invoiced_at,
  cast(event_at as timestamp) as event_at,
  cast(known_from as timestamp) as known_from,
  cast(known_to as timestamp) as known_to
from history
