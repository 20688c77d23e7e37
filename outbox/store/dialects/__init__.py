"""Everything that differs between databases, with the reason beside it. Code outside asks a ``Dialect``.

`base.Dialect` holds the defaults; `sqlite`, `postgresql` (with `postgresql_sessions`) and `mysql` (MariaDB too)
override what is theirs.
"""

from __future__ import annotations

from sqlalchemy import Connection

from outbox.store.dialects.base import RUNS_AT_ONCE, SOON, Dialect, Inserted, Place, Row
from outbox.store.dialects.mysql import MySQL
from outbox.store.dialects.postgresql import PostgreSQL
from outbox.store.dialects.sqlite import SQLite
from outbox.store.dialects.types import EXACT_NAME, LONG_TEXT, SEQ, EntryId, lines_of, now_us

__all__ = [
    "EXACT_NAME",
    "LONG_TEXT",
    "RUNS_AT_ONCE",
    "SEQ",
    "SOON",
    "Dialect",
    "EntryId",
    "Inserted",
    "Place",
    "Row",
    "dialect_named",
    "dialect_of",
    "is_of",
    "lines_of",
    "now_us",
]

_DIALECTS: dict[str, Dialect] = {"sqlite": SQLite(), "postgresql": PostgreSQL(), "mysql": MySQL()}
_DIALECTS["mariadb"] = _DIALECTS["mysql"]


def dialect_named(name: str) -> Dialect:
    """The dialect of a SQLAlchemy backend name. Raises ``KeyError`` for one that outbox does not know."""
    return _DIALECTS[name]


def dialect_of(connection: Connection) -> Dialect:
    return _DIALECTS[connection.dialect.name]


def is_of(connection: Connection, dialect: Dialect) -> bool:
    """Whether the connection's database, which may be one that outbox does not know, is of this dialect."""
    return _DIALECTS.get(connection.dialect.name) is dialect
