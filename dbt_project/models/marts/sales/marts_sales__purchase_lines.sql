select
  line.customer_id,
  line.invoice_no,
  line.line_no,
  line.stock_code,
  line.quantity,
  line.unit_price_gbp,
  {{ amount_gbp('line') }} as amount_gbp,
  line.invoiced_at,
  booked.country,
  row_number() over (
    partition by
      line.invoice_no, line.stock_code, line.quantity, line.unit_price_gbp, line.invoiced_at, line.customer_id
    order by line.line_no
  ) > 1 as is_exact_duplicate
from {{ ref('staging_shop__order_lines') }} as line
left join {{ ref('staging_shop__orders') }} as booked on booked.invoice_no = line.invoice_no
where {{ is_purchase('line') }}
