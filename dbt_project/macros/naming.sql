{#- A table is called by its key: staging_shop__orders is the relation staging_shop.orders. -#}

{% macro generate_schema_name(custom_schema_name, node) -%}
  {{ node.name.split('__')[0] if '__' in node.name else target.schema }}
{%- endmacro %}

{% macro generate_alias_name(custom_alias_name=none, node=none) -%}
  {{ node.name.split('__')[1] if '__' in node.name else node.name }}
{%- endmacro %}
