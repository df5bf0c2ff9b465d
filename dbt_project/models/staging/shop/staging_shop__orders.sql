with latest as (
  {{ current_rows(source('raw_shop', 'orders'), ['invoice_no']) }}
)

select
  cast(invoice_no as varchar) as invoice_no,
  cast(customer_id as bigint) as customer_id,
  cast(country as varchar) as country,
  cast(kind as varchar) as kind,
  cast(refund_status as varchar) as refund_status,
  cast(refunded_gbp as double) as refunded_gbp,
  cast(ordered_at as timestamp) as ordered_at,
  cast(updated_at as timestamp) as updated_at,
  cast(event_at as timestamp) as event_at,
  cast(landed_at as timestamp) as landed_at
from latest
