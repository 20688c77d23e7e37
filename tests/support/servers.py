"""Real database servers for the tests.

    with PostgresServer(durable=True) as server:
        engine = create_engine(server.url("psycopg"))
        server.crash()
        server.start()          # the same data, the same port

Ordinary tests use the fixture ``database`` instead, and share one server of each kind, which
``tests/support/keeper.py`` starts when the first test asks for it.
"""

from tests.support.mariadb import MariaDBServer
from tests.support.postgres import PostgresServer
from tests.support.processes import Server, ServerStartError

__all__ = ["MariaDBServer", "PostgresServer", "Server", "ServerStartError"]
