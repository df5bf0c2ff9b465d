with latest as (
  {{ current_rows(source('raw_shop', 'customers'), ['customer_id']) }}
)

select
  cast(customer_id as bigint) as customer_id,
  cast(country as varchar) as country,
  cast(registered_at as timestamp) as registered_at,
  cast(updated_at as timestamp) as updated_at,
  cast(event_at as timestamp) as event_at,
  cast(landed_at as timestamp) as landed_at
from latest
