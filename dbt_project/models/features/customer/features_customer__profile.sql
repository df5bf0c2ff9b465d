{#
    Who a customer was on record as, in Feast's own vocabulary: event_timestamp is when the shop made the change,
    created_timestamp when it became known here. A deleted customer's row is null from then on. Of changes with the
    same two instants the last in the source's order counts.
#}
with history as (
    select
        customer_id,
        case when change_op <> 'd' then country end as country,
        case when change_op <> 'd' then registered_at end as registered_at,
        event_at as event_timestamp,
        landed_at as created_timestamp,
        row_number() over (
            partition by customer_id, event_at, landed_at
            order by source_epoch desc, source_position desc, source_order desc, log_partition desc, log_offset desc
        ) as recency
    from {{ source('raw_shop', 'customers') }}
    where customer_id is not null
)

select
    cast(customer_id as bigint) as customer_id,
    cast(country as varchar) as country,
    cast(registered_at as timestamp) as registered_at,
    cast(event_timestamp as timestamp) as event_timestamp,
    cast(created_timestamp as timestamp) as created_timestamp
from history
where recency = 1
