with line_totals as (
  select
    line.invoice_no,
    count(line.line_no) as lines,
    cast(sum(line.quantity) as bigint) as quantity,
    round(sum({{ amount_gbp('line') }}), 6) as amount_gbp
  from {{ ref('staging_shop__order_lines') }} as line
  group by line.invoice_no
)

select
  booked.invoice_no,
  booked.customer_id,
  booked.country,
  booked.kind,
  booked.refund_status,
  booked.refunded_gbp,
  coalesce(totals.lines, 0) as lines,
  coalesce(totals.quantity, 0) as quantity,
  coalesce(totals.amount_gbp, 0.0) as amount_gbp,
  booked.ordered_at,
  booked.updated_at
from {{ ref('staging_shop__orders') }} as booked
left join line_totals as totals on totals.invoice_no = booked.invoice_no
