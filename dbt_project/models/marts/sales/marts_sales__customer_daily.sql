with bought as (
  select
    purchase.customer_id,
    cast(purchase.invoiced_at as date) as day,
    count(distinct purchase.invoice_no) as invoices,
    count(purchase.line_no) as lines,
    cast(sum(purchase.quantity) as bigint) as quantity,
    round(sum(purchase.amount_gbp), 6) as amount_gbp
  from {{ ref('marts_sales__purchase_lines') }} as purchase
  group by purchase.customer_id, cast(purchase.invoiced_at as date)
),

refunded as (
  select
    refund.customer_id,
    cast(refund.invoiced_at as date) as day,
    round(0 - sum(refund.amount_gbp), 6) as refund_amount_gbp
  from {{ ref('marts_sales__refunds') }} as refund
  where refund.customer_id is not null
  group by refund.customer_id, cast(refund.invoiced_at as date)
)

select
  coalesce(bought.customer_id, refunded.customer_id) as customer_id,
  coalesce(bought.day, refunded.day) as day,
  coalesce(bought.invoices, 0) as invoices,
  coalesce(bought.lines, 0) as lines,
  coalesce(bought.quantity, 0) as quantity,
  coalesce(bought.amount_gbp, 0.0) as amount_gbp,
  coalesce(refunded.refund_amount_gbp, 0.0) as refund_amount_gbp
from bought
full join refunded on refunded.customer_id = bought.customer_id and refunded.day = bought.day
