"""A database whose clock jumps: what an engine asks of it is answered by a clock that is set ahead."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, event

_AHEAD = {
    "clock_timestamp()": "(clock_timestamp() + interval '{0:.0f} seconds')",
    "UTC_TIMESTAMP(6)": "(UTC_TIMESTAMP(6) + INTERVAL {0:.0f} SECOND)",
    "julianday('now')": "julianday('now', '{0:.0f} seconds')",
}
"""How PostgreSQL, MariaDB and SQLite are asked for the time, and for that of another clock."""


class JumpingClock:
    """Of the database that ``engine`` asks. What a table's default writes is dated by the right clock."""

    def __init__(self, engine: Engine) -> None:
        self.ahead = 0.0
        """Seconds, from now on; below 0: behind."""
        event.listen(engine, "before_cursor_execute", self._asked, retval=True)

    def _asked(self, _connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        for right, ahead in _AHEAD.items():
            statement = statement.replace(right, ahead.format(self.ahead))
        return statement, parameters
