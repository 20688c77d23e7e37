"""Whether somebody waits for a lock in a test's own database: other tests wait for theirs on the same server."""

from __future__ import annotations

import re

from sqlalchemy import Engine, text

_POSTGRESQL = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
_MARIADB_SESSIONS = "SELECT id FROM information_schema.processlist WHERE db = database()"


def waits_for_a_lock(engine: Engine) -> bool:
    """Whether a session of this database, PostgreSQL or MariaDB, waits for a lock.

    MariaDB by its monitor's text: InnoDB's tables in information_schema stand still while anybody asks for them often.
    """
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            return bool(connection.scalar(text(_POSTGRESQL)))
        sessions = connection.scalars(text(_MARIADB_SESSIONS)).all()
        status = connection.execute(text("SHOW ENGINE INNODB STATUS")).one()[2]
    waiting = re.findall(r"LOCK WAIT.*?thread id (\d+)", status, re.DOTALL)
    return not {int(thread) for thread in waiting}.isdisjoint(sessions)
