{#- How a history of changes becomes state. `keys` is a list of column names.

    A change is in force when its source position is beyond every position that reached the log before it for the same
    key: what the log delivered twice, or late and overtaken, changes nothing. -#}

{% macro current_rows(relation, keys) -%}
select * from (
  select *,
    row_number() over (
      partition by {{ keys | join(', ') }} order by source_position desc, log_partition desc, log_offset desc
    ) as recency
  from {{ relation }}
) as ranked
where recency = 1 and change_op <> 'd'
{%- endmacro %}

{#- Every state that each key had, with the knowledge time [known_from, known_to) in which it held. A delete ends the
    state before it; a state that was replaced at its very first instant was never visible and is left out. -#}
{% macro versions(relation, keys) -%}
{%- set order = 'partition by ' ~ keys | join(', ') ~ ' order by log_partition, log_offset' -%}
select * from (
  select *, lead(known_from) over ({{ order }}) as known_to
  from (
    select *, max(landed_at) over ({{ order }} rows between unbounded preceding and current row) as known_from
    from (
      select *,
        max(source_position) over ({{ order }} rows between unbounded preceding and 1 preceding) as position_before
      from {{ relation }}
    ) as ordered
    where position_before is null or source_position > position_before
  ) as in_force
) as bounded
where change_op <> 'd' and (known_to is null or known_to > known_from)
{%- endmacro %}
