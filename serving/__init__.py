"""The prediction API: deployed packages and online features in, predictions out, each one logged.

Imports catalog, lake, ml and streaming.log. No Dagster; nothing here trains, registers or deploys.
"""
