"""Capture from MariaDB (and MySQL): the binary log as a stream of changes, consistent chunks of what was there before.

`source` is what the capture engine talks to; `stream` follows the binary log, `chunks` reads tables; `table_map`,
`decoders` and `values` turn their bytes into JSON; `types` says what becomes of each column type; `checks` what a
server must be set to. Nothing here imports a table library.
"""
