"""How changes flow: source, change log, landing. No dagster; imports catalog and lake only."""
