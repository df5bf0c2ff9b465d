select
  line.invoice_no,
  line.line_no,
  line.customer_id,
  line.stock_code,
  line.quantity,
  line.unit_price_gbp,
  line.invoiced_at,
  line.event_at,
  line.known_from as landed_at
from {{ ref('staging_shop__order_line_versions') }} as line
where line.known_to is null
