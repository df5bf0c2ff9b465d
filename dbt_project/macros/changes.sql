{#- How a history of changes becomes state. `keys` is a list of column names.

    A change is in force when its place in the source's history is beyond every place that reached the log before it for
    the same key: what the log delivered twice, or late and overtaken, changes nothing. A row that a snapshot read has
    the place at which it was read. Change t says that the table was emptied: once in each partition of the log. -#}

{% macro place(alias) -%}
({{ alias }}.source_epoch, {{ alias }}.source_position, {{ alias }}.source_order, {{ alias }}.log_offset)
{%- endmacro %}

{#- The changes of rows that came after the table was last emptied, as `change`. -#}
{% macro from_rows_since_emptied(relation) -%}
from {{ relation }} as change
  left join (
    select log_partition as emptied_partition, max({{ place('emptied') }}) as emptied_place
    from {{ relation }} as emptied where change_op = 't' group by log_partition
  ) as emptying on change.log_partition = emptying.emptied_partition
  where change_op <> 't' and (emptied_place is null or {{ place('change') }} > emptied_place)
{%- endmacro %}

{% macro current_rows(relation, keys) -%}
select * from (
  select change.*,
    row_number() over (
      partition by {{ keys | join(', ') }}
      order by source_epoch desc, source_position desc, source_order desc, log_partition desc, log_offset desc
    ) as recency
  {{ from_rows_since_emptied(relation) }}
) as ranked
where recency = 1 and change_op <> 'd'
{%- endmacro %}

{#- The same for a table without key, of whose rows several may be alike: each row as often as it came (an update lands
    as the row that went, change d, and the one that came). `columns` is all of the captured table's. -#}
{% macro current_copies(relation, columns) -%}
select {{ columns | join(', ') }} from (
  select {{ columns | join(', ') }}, cast(sum(case change_op when 'd' then -1 else 1 end) as bigint) as copies
  {{ from_rows_since_emptied(relation) }}
  group by {{ columns | join(', ') }}
) as counted, unnest(range(copies))
{%- endmacro %}

{#- Every state that each key had, with the knowledge time [known_from, known_to) in which it held. A delete ends the
    state before it; a state that was replaced at its very first instant was never visible and is left out. -#}
{% macro versions(relation, keys) -%}
{%- set order = 'partition by ' ~ keys | join(', ') ~ ' order by log_partition, log_offset' -%}
select * from (
  select *, least(lead(known_from) over ({{ order }}), emptied_at) as known_to
  from (
    select *, max(landed_at) over ({{ order }} rows between unbounded preceding and current row) as known_from
    from (
      select change.*, emptying.emptied_at,
        (source_epoch, source_position, source_order) as place,
        max((source_epoch, source_position, source_order)) over (
          {{ order }} rows between unbounded preceding and 1 preceding
        ) as place_before
      from {{ relation }} as change
      asof left join (
        select log_partition as emptied_partition, log_offset as emptied_offset, landed_at as emptied_at
        from {{ relation }} where change_op = 't'
      ) as emptying
        on change.log_partition = emptying.emptied_partition and change.log_offset < emptying.emptied_offset
      where change_op <> 't'
    ) as ordered
    where place_before is null or place > place_before
  ) as in_force
) as bounded
where change_op <> 'd' and (known_to is null or known_to > known_from)
{%- endmacro %}
