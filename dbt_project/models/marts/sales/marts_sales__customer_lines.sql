select
  line.customer_id,
  line.invoice_no,
  line.line_no,
  line.stock_code,
  booked.country,
  line.quantity,
  {{ amount_gbp('line') }} as amount_gbp,
  {{ is_purchase('line') }} as is_purchase,
  {{ is_refund('line.invoice_no') }} as is_refund,
  line.invoiced_at,
  line.known_from,
  line.known_to
from {{ ref('staging_shop__order_line_versions') }} as line
left join {{ ref('staging_shop__orders') }} as booked on booked.invoice_no = line.invoice_no
where line.customer_id is not null
