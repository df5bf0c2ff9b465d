"""Where tables live: one Delta table for each asset key, read by everybody as files, queried with DuckDB.

Imports catalog only. Nothing here knows what a table means.
"""

from lake.tables import Lake, LakeError, MissingTableError

__all__ = ["Lake", "LakeError", "MissingTableError"]
