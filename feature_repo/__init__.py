"""Feast's definitions: what features there are. Nothing is computed here; dbt does that, and ml/ stores and reads."""
