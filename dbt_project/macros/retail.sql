{#- What kind of line it is, said once for every table. -#}

{% macro is_refund(invoice_no) -%}
starts_with({{ invoice_no }}, 'C')
{%- endmacro %}

{#- A purchase: a known customer, neither a cancellation (C) nor an adjustment (A), something bought, something paid. -#}
{% macro is_purchase(line) -%}
({{ line }}.customer_id is not null and not starts_with({{ line }}.invoice_no, 'C')
  and not starts_with({{ line }}.invoice_no, 'A') and {{ line }}.quantity > 0 and {{ line }}.unit_price_gbp > 0)
{%- endmacro %}

{#- Rounded to a millionth of a pound, so that the binary product 3 * 0.1 = 0.30000000000000004 is 0.3. -#}
{% macro amount_gbp(line) -%}
round({{ line }}.quantity * {{ line }}.unit_price_gbp, 6)
{%- endmacro %}
