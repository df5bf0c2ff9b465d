"""Thin Dagster definitions over the functions of streaming, lake and ml: read, call one function, return with metadata.

`build.py` makes every asset incremental; the other modules declare assets, one layer each.
"""
