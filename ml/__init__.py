"""How models work: features, training, registry, packages, drift. No dagster; imports catalog and lake only."""
