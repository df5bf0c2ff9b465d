with purchases as (
  select
    purchase.customer_id,
    min(purchase.invoiced_at) as first_purchase_at,
    max(purchase.invoiced_at) as last_purchase_at,
    count(distinct purchase.invoice_no) as purchase_invoices,
    count(purchase.line_no) as purchase_lines,
    round(sum(purchase.amount_gbp), 6) as purchase_amount_gbp
  from {{ ref('marts_sales__purchase_lines') }} as purchase
  group by purchase.customer_id
),

refunds as (
  select
    refund.customer_id,
    count(distinct refund.invoice_no) as refund_invoices,
    round(0 - sum(refund.amount_gbp), 6) as refund_amount_gbp
  from {{ ref('marts_sales__refunds') }} as refund
  where refund.customer_id is not null
  group by refund.customer_id
)

select
  customer.customer_id,
  customer.country,
  customer.registered_at,
  customer.updated_at,
  purchases.first_purchase_at,
  purchases.last_purchase_at,
  coalesce(purchases.purchase_invoices, 0) as purchase_invoices,
  coalesce(purchases.purchase_lines, 0) as purchase_lines,
  coalesce(purchases.purchase_amount_gbp, 0.0) as purchase_amount_gbp,
  coalesce(refunds.refund_invoices, 0) as refund_invoices,
  coalesce(refunds.refund_amount_gbp, 0.0) as refund_amount_gbp
from {{ ref('staging_shop__customers') }} as customer
left join purchases on purchases.customer_id = customer.customer_id
left join refunds on refunds.customer_id = customer.customer_id
