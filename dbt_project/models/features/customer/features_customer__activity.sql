{#
    A customer's activity: one row for each instant at which any of these features changes, exact until the next row.

    created_timestamp is that instant, from which the row holds; event_timestamp is the time of the customer's latest
    event known by then (of any kind, and even if that line was deleted later: what was seen stays seen), so that a
    time to live counts from real events. Rows before anything valid is known of a customer do not exist; when every
    line of a customer has been deleted, all features are null.

    One definition for each feature: the measures below, and what the last select derives from them.
#}
{% set counts = [
    {'name': 'txn_count_7d', 'relation': 'invoices', 'item': 'invoice_no', 'where': 'is_purchase', 'days': 7},
    {'name': 'txn_count_30d', 'relation': 'invoices', 'item': 'invoice_no', 'where': 'is_purchase', 'days': 30},
    {'name': 'txn_count_90d', 'relation': 'invoices', 'item': 'invoice_no', 'where': 'is_purchase', 'days': 90},
    {'name': 'txn_count_365d', 'relation': 'invoices', 'item': 'invoice_no', 'where': 'is_purchase', 'days': 365},
    {'name': 'distinct_products_90d', 'relation': 'products', 'item': 'stock_code', 'where': 'is_purchase', 'days': 90},
    {'name': 'refund_count_90d', 'relation': 'invoices', 'item': 'invoice_no', 'where': 'is_refund', 'days': 90},
    {'name': 'invoice_count_90d', 'relation': 'invoices', 'item': 'invoice_no', 'where': 'true', 'days': 90},
    {'name': 'known_invoices', 'relation': 'invoices', 'item': 'invoice_no', 'where': 'true', 'days': none},
] %}
{% set sums = [
    {'name': 'txn_amount_sum_7d', 'relation': 'invoices', 'value': 'amount_gbp', 'where': 'is_purchase', 'days': 7},
    {'name': 'txn_amount_sum_30d', 'relation': 'invoices', 'value': 'amount_gbp', 'where': 'is_purchase', 'days': 30},
    {'name': 'txn_amount_sum_90d', 'relation': 'invoices', 'value': 'amount_gbp', 'where': 'is_purchase', 'days': 90},
    {'name': 'txn_amount_sum_365d', 'relation': 'invoices', 'value': 'amount_gbp', 'where': 'is_purchase', 'days': 365},
] %}
{% set measures = counts + sums %}

with lines as (
    select
        customer_id,
        invoice_no,
        stock_code,
        -- Exact: a running sum of doubles would leave a residue in an empty window.
        cast(amount_gbp as decimal(38, 6)) as amount_gbp,
        is_purchase,
        is_refund,
        invoiced_at,
        greatest(invoiced_at, known_from) as entered_at,
        known_to
    from {{ ref('marts_sales__customer_lines') }}
    where customer_id is not null and (known_to is null or known_to > greatest(invoiced_at, known_from))
),

-- Lines of one invoice that share their instants act as one event.
invoices as (
    select
        customer_id,
        invoice_no,
        is_purchase,
        is_refund,
        invoiced_at,
        entered_at,
        known_to,
        sum(amount_gbp) as amount_gbp
    from lines
    group by customer_id, invoice_no, is_purchase, is_refund, invoiced_at, entered_at, known_to
),

products as (
    select distinct customer_id, stock_code, is_purchase, invoiced_at, entered_at, known_to
    from lines
    where is_purchase
),

{% for m in counts %}
{{ m.name }}_spans as (
    {{ covered_spans(m.relation, m.item, m.where, m.days) }}
),

{{ m.name }}_changes as (
    {{ distinct_changes(m.name ~ '_spans') }}
),

{% endfor %}
{% for m in sums %}
{{ m.name }}_changes as (
    {{ sum_changes(m.relation, m.value, m.where, m.days) }}
),

{% endfor %}
-- Spans in which a purchase instant is known, merged over the lines that share it.
purchase_marks as (
    select
        customer_id,
        item as purchased_at,
        entered_at,
        left_at,
        sum(case when covered_to is null or entered_at > covered_to then 1 else 0 end) over (
            partition by customer_id, item order by entered_at, left_at
            rows between unbounded preceding and current row
        ) as span_no
    from ({{ covered_spans('invoices', 'invoiced_at', 'is_purchase', none) }}) as spans
),

purchase_spans as (
    select customer_id, purchased_at, min(entered_at) as entered_at, max(left_at) as left_at
    from purchase_marks
    group by customer_id, purchased_at, span_no
),

-- What only ever grows: the latest event, and the first and last purchase as long as none is taken back. Every event
-- and every purchase taken back is a change point, also where no window changes.
milestones as (
    select
        customer_id,
        entered_at as changed_at,
        invoiced_at as event_at,
        cast(null as timestamp) as last_purchase_at,
        cast(null as timestamp) as first_purchase_at
    from invoices
    union all
    select
        customer_id,
        entered_at as changed_at,
        cast(null as timestamp) as event_at,
        purchased_at as last_purchase_at,
        purchased_at as first_purchase_at
    from purchase_spans
    where left_at = timestamp '9999-12-31 00:00:00'
    union all
    select
        customer_id,
        left_at as changed_at,
        cast(null as timestamp) as event_at,
        cast(null as timestamp) as last_purchase_at,
        cast(null as timestamp) as first_purchase_at
    from purchase_spans
),

changes as (
    {{ wide_changes(measures) }}
    union all
    select
        customer_id,
        changed_at,
        {%- for m in measures %}
        0 as {{ m.name }},
        {%- endfor %}
        event_at,
        last_purchase_at,
        first_purchase_at
    from milestones
),

net_changes as (
    select
        customer_id,
        changed_at,
        {%- for m in measures %}
        sum({{ m.name }}) as {{ m.name }},
        {%- endfor %}
        max(event_at) as event_at,
        max(last_purchase_at) as last_purchase_at,
        min(first_purchase_at) as first_purchase_at
    from changes
    where changed_at < timestamp '9999-12-31 00:00:00'
    group by customer_id, changed_at
),

points as (
    select
        customer_id,
        changed_at,
        {%- for m in measures %}
        sum({{ m.name }}) over ({{ so_far() }}) as {{ m.name }},
        {%- endfor %}
        max(event_at) over ({{ so_far() }}) as event_at,
        max(last_purchase_at) over ({{ so_far() }}) as last_purchase_at,
        min(first_purchase_at) over ({{ so_far() }}) as first_purchase_at
    from net_changes
),

-- Purchases that were taken back count only while they were known; there are few.
taken_back as (
    select
        points.customer_id,
        points.changed_at,
        max(purchase_spans.purchased_at) as last_purchase_at,
        min(purchase_spans.purchased_at) as first_purchase_at
    from points
    inner join purchase_spans
        on points.customer_id = purchase_spans.customer_id
        and points.changed_at >= purchase_spans.entered_at
        and points.changed_at < purchase_spans.left_at
    where purchase_spans.left_at < timestamp '9999-12-31 00:00:00'
    group by points.customer_id, points.changed_at
),

states as (
    select
        points.*,
        greatest(points.last_purchase_at, taken_back.last_purchase_at) as last_txn_at,
        least(points.first_purchase_at, taken_back.first_purchase_at) as first_txn_at
    from points
    left join taken_back on points.customer_id = taken_back.customer_id and points.changed_at = taken_back.changed_at
)

select
    customer_id,
    event_at as event_timestamp,
    changed_at as created_timestamp,
    {%- for days in [7, 30, 90, 365] %}
    case when known_invoices > 0 then cast(txn_count_{{ days }}d as bigint) end as txn_count_{{ days }}d,
    case when known_invoices > 0 then cast(txn_amount_sum_{{ days }}d as double) end as txn_amount_sum_{{ days }}d,
    {%- endfor %}
    case when txn_count_30d > 0 then cast(txn_amount_sum_30d as double) / cast(txn_count_30d as double) end
        as avg_txn_amount_30d,
    case when known_invoices > 0 then cast(distinct_products_90d as bigint) end as distinct_products_90d,
    case when invoice_count_90d > 0 then cast(refund_count_90d as double) / cast(invoice_count_90d as double) end
        as refund_rate_90d,
    last_txn_at,
    first_txn_at
from states
-- One customer's rows lie together: what reads a few customers skips the rest of the files.
order by customer_id, created_timestamp
