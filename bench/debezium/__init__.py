"""The Debezium engine as a peer: what our connectors are compared with, in tests and benchmarks only."""
