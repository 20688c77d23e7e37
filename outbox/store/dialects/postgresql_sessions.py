"""Sessions of PostgreSQL: what the outbox sets in one, where it must set nothing, and how it is given back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from typing import Any

from sqlalchemy.engine import Dialect as Driver

from outbox.store.dialects.base import Dialect

logger = logging.getLogger("outbox.store")

IDLE = 0
"""libpq's PQTRANSIDLE: no transaction is open."""


def pooler_of(driver_connection: Any) -> str | None:
    """The address of the pooler between client and server, or None. Costs one round trip: a pooler reports a made-up
    backend process id to its client, so that it can route a cancel request to whichever session is in use then."""
    info = getattr(driver_connection, "info", None)
    told = getattr(info, "backend_pid", None)
    if info is None or told is None:  # a host's driver that does not store it
        return None
    with closing(driver_connection.cursor()) as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    return None if pid == told else f"{info.host}:{info.port}"


def _returns_to(driver_connection: Any) -> Any:
    """The pool of psycopg_pool that ``close()`` gives the connection back to, or None."""
    pool = getattr(driver_connection, "_pool", None)
    return pool if getattr(pool, "close_returns", False) else None


@cache
def _warn_of(pooler: str) -> None:
    """Warn once a process, not for each connection."""
    logger.warning(
        "%s is a connection pooler, which may hand each transaction to another session of PostgreSQL: statements are"
        " not prepared, entries of other processes are found by the poll and not by LISTEN, and lock_timeout and"
        " idle_in_transaction_session_timeout are not set, so a stopped worker holds its lane up until it is ended."
        " Better name the server itself in OUTBOX_DATABASE_URL; else ALTER ROLE ... SET both for the outbox's account",
        pooler,
    )


class Sessions(Dialect):
    """The part of the dialect that is about sessions."""

    def prepare(self, driver_connection: Any, *, synchronous: str) -> None:
        # Behind a pooler clients share sessions: settings would apply to other clients, and a prepared statement may be
        # another client's of the same name, whose rows go to another table.
        if not self._is_pooled(driver_connection):
            super().prepare(driver_connection, synchronous=synchronous)

    @staticmethod
    def _is_pooled(driver_connection: Any) -> bool:
        """Whether the connection leads to a pooler; no statements are prepared on it then."""
        pooler = pooler_of(driver_connection)
        if pooler is None:
            return False
        if hasattr(driver_connection, "prepare_threshold"):
            driver_connection.prepare_threshold = None
        driver_connection.commit()
        _warn_of(pooler)
        return True

    def is_borrowed(self, driver_connection: Any, driver: Driver) -> bool:
        return _returns_to(driver_connection) is not None or super().is_borrowed(driver_connection, driver)

    def borrow(self, driver_connection: Any, driver: Driver) -> Callable[[], None]:
        # No settings, as behind a pooler: to set them and to set them back would take a few round trips for each
        # transaction, since such an engine has no pool of its own (NullPool).
        before = [
            (name, getattr(driver_connection, name))
            for name in ("autocommit", "isolation_level")
            if hasattr(driver_connection, name)
        ]
        if not self._is_pooled(driver_connection):
            driver_connection.commit()

        def restore() -> None:
            driver_connection.rollback()
            for name, value in before:
                setattr(driver_connection, name, value)

        return restore

    def end(self, driver_connection: Any) -> None:
        getattr(getattr(driver_connection, "pgconn", None), "finish", driver_connection.close)()
        if (pool := _returns_to(driver_connection)) is not None:
            pool.putconn(driver_connection)  # it replaces a dead one; close() would not tell it of one

    def session_setup(self, *, synchronous: str) -> Sequence[str]:
        # A stopped worker that holds the lane's row lock delays the others for seconds, not for ever.
        return (
            "SET lock_timeout = '5s'",
            "SET idle_in_transaction_session_timeout = '10s'",
            "SET tcp_user_timeout = '10s'",
        )

    def end_begun(self, driver_connection: Any) -> None:
        session = getattr(driver_connection, "pgconn", None) or getattr(driver_connection, "info", None)  # of psycopg2
        if session is not None and session.transaction_status != IDLE:
            driver_connection.commit()
