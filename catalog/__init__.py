"""What exists: settings, keys, specs and the YAML declarations. Everybody imports it; it reads only its own YAML."""
