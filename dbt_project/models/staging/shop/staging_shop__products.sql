with latest as (
  {{ current_rows(source('raw_shop', 'products'), ['stock_code']) }}
)

select
  cast(stock_code as varchar) as stock_code,
  cast(description as varchar) as description,
  cast(list_price_gbp as double) as list_price_gbp,
  cast(updated_at as timestamp) as updated_at,
  cast(event_at as timestamp) as event_at,
  cast(landed_at as timestamp) as landed_at
from latest
