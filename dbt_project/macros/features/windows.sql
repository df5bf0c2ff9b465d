{#
    Windows that are exact at every instant.

    A window (t - days, t] changes twice for each event: when the event enters, at the later of its own time and the
    instant it became known, and when it leaves, `days` after its own time or when its version stops being valid. These
    macros turn spans [entered_at, left_at) into changes (customer_id, changed_at, delta); a running sum over the
    changes is the value of the window at every instant. They produce plain SQL, so column lineage can be parsed.

    A relation of events has customer_id, invoiced_at, entered_at, known_to (null: still valid).
#}

{# When an event leaves a window; with no window, when its version stops being valid. #}
{% macro left_at(days) -%}
    {%- if days -%}
        least(coalesce(known_to, invoiced_at + interval '{{ days }}' day), invoiced_at + interval '{{ days }}' day)
    {%- else -%}
        coalesce(known_to, timestamp '9999-12-31 00:00:00')
    {%- endif -%}
{%- endmacro %}

{# Spans in the window with how far earlier spans of the same item reach: items that overlap must count once. #}
{% macro covered_spans(relation, item, condition, days) %}
        select
            customer_id,
            item,
            entered_at,
            left_at,
            max(left_at) over (
                partition by customer_id, item order by entered_at, left_at
                rows between unbounded preceding and 1 preceding
            ) as covered_to
        from (
            select customer_id, {{ item }} as item, entered_at, {{ left_at(days) }} as left_at
            from {{ relation }}
            where {{ condition }}
        ) as spans
        where entered_at < left_at
{% endmacro %}

{# Changes of the number of distinct items in the window, from spans that `covered_spans` made. #}
{% macro distinct_changes(spans) %}
    select customer_id, entered_at as changed_at, 1 as delta
    from {{ spans }}
    where covered_to is null or entered_at > covered_to
    union all
    select customer_id, covered_to as changed_at, -1 as delta
    from {{ spans }}
    where entered_at > covered_to
    union all
    select customer_id, max(left_at) as changed_at, -1 as delta
    from {{ spans }}
    group by customer_id, item
{% endmacro %}

{# Changes of the sum of a value over the events in the window. #}
{% macro sum_changes(relation, value, condition, days) %}
    select customer_id, entered_at as changed_at, {{ value }} as delta
    from {{ relation }}
    where {{ condition }} and entered_at < {{ left_at(days) }}
    union all
    select customer_id, {{ left_at(days) }} as changed_at, -{{ value }} as delta
    from {{ relation }}
    where {{ condition }} and entered_at < {{ left_at(days) }}
{% endmacro %}

{# Every change of one measure as a row that leaves the other measures, and the milestones, alone. #}
{% macro wide_changes(measures) %}
    {%- for measure in measures %}
    select
        customer_id,
        changed_at,
        {%- for other in measures %}
        {{ 'delta' if other.name == measure.name else '0' }} as {{ other.name }},
        {%- endfor %}
        cast(null as timestamp) as event_at,
        cast(null as timestamp) as last_purchase_at,
        cast(null as timestamp) as first_purchase_at
    from {{ measure.name }}_changes
    {{ 'union all' if not loop.last }}
    {%- endfor %}
{% endmacro %}

{# Everything of one customer up to and including this change. #}
{% macro so_far() -%}
    partition by customer_id order by changed_at rows between unbounded preceding and current row
{%- endmacro %}
