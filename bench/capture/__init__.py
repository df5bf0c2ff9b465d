"""What `bench.cdc` measures with: the table that changes, the two connectors as processes, the topics they write."""
