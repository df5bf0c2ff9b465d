"""The local stack: real PostgreSQL, MariaDB, Kafka and Redis as ordinary processes on loopback ports.

    from headwater.stack import postgresql
    from headwater.stack.server import kill, restart, stop

    server = postgresql.start(directory)     # the same server again when it runs already
    psycopg.connect(server.admin_url)
    kill(server)                             # kill -9 of it and its children
    server = restart(server)
    stop(server)

One module for each server says how it is made, configured and asked; `server.py` is the life that they share,
`process.py` the operating system's part, `place.py` where files lie and whose they are, `packages.py` what has to be
installed, `shop.py` the database `shop` with its roles. Settings are not known here: `headwater.stack_commands` does.
"""
