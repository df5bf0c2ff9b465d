"""Change data capture: what every connector shares. A database's own part lies beside this package.

`engine` runs a source into a log writer; `sink` turns rows into Debezium-compatible records; `snapshot` reads what was
there before, without a lock and without holding the stream up; `checkpoint` is where to resume; `tables` what a table
looks like. Nothing here imports a table library: a connector starts within a second and stays small.
"""
