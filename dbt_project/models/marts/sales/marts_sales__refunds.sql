select
  line.customer_id,
  line.invoice_no,
  line.line_no,
  line.stock_code,
  line.quantity,
  line.unit_price_gbp,
  {{ amount_gbp('line') }} as amount_gbp,
  line.invoiced_at,
  booked.country
from {{ ref('staging_shop__order_lines') }} as line
left join {{ ref('staging_shop__orders') }} as booked on booked.invoice_no = line.invoice_no
where {{ is_refund('line.invoice_no') }}
