{#
    Who a customer was on record as, in Feast's own vocabulary: event_timestamp is when the shop made the change,
    created_timestamp when it became known here. A deleted customer's row is null from then on, and so is everybody's
    who was in the table when it was emptied. Of changes with the same two instants the last in the source's order
    counts.
#}
with changes as (
    select
        customer_id,
        case when change_op <> 'd' then country end as country,
        case when change_op <> 'd' then registered_at end as registered_at,
        event_at,
        landed_at,
        source_epoch,
        source_position,
        source_order,
        log_partition,
        log_offset
    from {{ source('raw_shop', 'customers') }}
    where change_op <> 't' and customer_id is not null
),

emptied as (
    select
        changes.customer_id,
        cast(null as varchar) as country,
        cast(null as timestamp) as registered_at,
        emptying.event_at,
        emptying.landed_at,
        emptying.source_epoch,
        emptying.source_position,
        emptying.source_order,
        emptying.log_partition,
        emptying.log_offset
    from changes
    asof join (
        select event_at, landed_at, source_epoch, source_position, source_order, log_partition, log_offset
        from {{ source('raw_shop', 'customers') }}
        where change_op = 't'
    ) as emptying
        on changes.log_partition = emptying.log_partition and changes.log_offset < emptying.log_offset
),

history as (
    select
        *,
        row_number() over (
            partition by customer_id, event_at, landed_at
            order by source_epoch desc, source_position desc, source_order desc, log_partition desc, log_offset desc
        ) as recency
    from (select * from changes union all select * from emptied) as every_change
)

select
    cast(customer_id as bigint) as customer_id,
    cast(country as varchar) as country,
    cast(registered_at as timestamp) as registered_at,
    cast(event_at as timestamp) as event_timestamp,
    cast(landed_at as timestamp) as created_timestamp
from history
where recency = 1
