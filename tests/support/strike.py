"""An action on a PostgreSQL session at a chosen moment of a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import psycopg
from sqlalchemy import Connection, Engine, event, make_url

Moment = Literal["before", "after", "commit"]
"""Before or after a statement, or just before the COMMIT of the transaction that ran it."""


@contextmanager
def strike(engine: Engine, moment: Moment, statement: str, deed: Callable[[int], object]) -> Iterator[list[int]]:
    """Calls ``deed`` once, with the backend's pid, at the ``moment`` of the first SQL that contains ``statement``.

    Yields the list of pids for which it was called: empty until that moment.
    """
    struck: list[int] = []
    armed: list[Connection] = []

    def hit(connection: Connection) -> None:
        struck.append(connection.connection.driver_connection.info.backend_pid)  # type: ignore[union-attr]
        deed(struck[-1])

    def before(connection: Connection, _cursor: Any, sql: str, *_: Any) -> None:
        if moment == "before" and statement in sql and not struck:
            hit(connection)

    def after(connection: Connection, _cursor: Any, sql: str, *_: Any) -> None:
        if statement not in sql or struck:
            return
        if moment == "after":
            hit(connection)
        armed.append(connection)

    def commit(connection: Connection) -> None:
        if moment == "commit" and connection in armed and not struck:
            hit(connection)

    listeners = {"before_cursor_execute": before, "after_cursor_execute": after, "commit": commit}
    for name, listener in listeners.items():
        event.listen(engine, name, listener)
    try:
        yield struck
    finally:
        for name, listener in listeners.items():
            event.remove(engine, name, listener)


class Operator:
    """A database operator: a connection of its own in autocommit mode, opened before the fault."""

    def __init__(self, url: str) -> None:
        address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection = psycopg.connect(address, autocommit=True)

    def close(self) -> None:
        self._connection.close()

    def do(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run the statements; returns the rows of the last one, empty if it returns none."""
        for statement in statements:
            cursor = self._connection.execute(statement)
        return [] if cursor.description is None else cursor.fetchall()

    def terminate(self, pid: int) -> None:
        """End a session and wait until it has ended."""
        assert self.do(f"SELECT pg_terminate_backend({pid}, 10000)") == [(True,)]

    def sessions(self, condition: str = "true") -> list[int]:
        """The pids of the other sessions of this database for which a condition on ``pg_stat_activity`` holds."""
        others = "datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        return [pid for (pid,) in self.do(f"SELECT pid FROM pg_stat_activity WHERE {others} AND {condition}")]

    def terminate_all(self, condition: str = "true") -> int:
        """End the other sessions for which ``condition`` holds; returns their number."""
        ended = self.sessions(condition)
        for pid in ended:  # one may have ended by now
            self.do(f"SELECT pg_terminate_backend({pid}, 10000)")
        return len(ended)
