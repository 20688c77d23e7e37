"""The state of one examination: the settings, the database and the exchange with beacon, as far as they are known.

    SETTINGS ─┬─ DATABASE ── TABLES
              └─ EGRESS ──── ANSWER

A check names the resource that it needs, if any; a resource implies those to its left. A check whose resource is
lacking is skipped with the reason; the others run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine

from outbox.doctor.finding import Finding
from outbox.settings import Settings
from outbox.store.database import Database

if TYPE_CHECKING:
    from outbox.doctor.exchange import Exchange

DATABASE_SECONDS = 5.0
"""Timeout for connecting to the database, and for each statement."""
REQUEST_SECONDS = 10.0
"""Upper bound of the deadline of the one request to beacon; ``OUTBOX_REQUEST_TIMEOUT`` applies where it is shorter."""
RESOLVE_SECONDS = 5.0


class Need(StrEnum):
    """The resource that a check depends on."""

    SETTINGS = "settings"
    DATABASE = "database"
    """The database accepts connections."""
    TABLES = "tables"
    """The tables exist, at this version's revision."""
    EGRESS = "egress"
    """The settings allow requests to beacon, and its host name resolves."""
    ANSWER = "answer"
    """Beacon answered the request."""


_STANDS_ON = {
    Need.DATABASE: Need.SETTINGS,
    Need.TABLES: Need.DATABASE,
    Need.EGRESS: Need.SETTINGS,
    Need.ANSWER: Need.EGRESS,
}


@dataclass(slots=True)
class Patient:
    """``config`` and ``database_url`` are the global options of the command line."""

    config: Path | None = None
    database_url: str | None = None
    wrong: frozenset[str] = frozenset()
    """Names of invalid settings; ``settings`` has their defaults instead."""
    _settings: Settings | None = None
    _database: Database | None = None
    _reader: Engine | None = None
    _exchange: Exchange | None = None
    _lacking: dict[Need, str] = field(default_factory=dict)

    # --- missing resources

    def lack(self, need: Need, why: str) -> None:
        self._lacking.setdefault(need, why)

    def lacks(self, need: Need | None) -> str | None:
        """Why a check with this need cannot run; None if it can."""
        while need is not None:
            if need in self._lacking:
                return self._lacking[need]
            need = _STANDS_ON.get(need)
        return None

    # --- available resources

    @property
    def settings(self) -> Settings:
        assert self._settings is not None, "the check needs SETTINGS"
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def database(self) -> Database:
        """The configured database. Checks read it only through ``read()``, whose transactions are read-only."""
        if self._database is None:
            self._database = Database(self.settings.database_url, synchronous=self.settings.sqlite_synchronous)
        return self._database

    @property
    def knows_database(self) -> bool:
        """Whether a check has made ``database``: the settings name a supported kind."""
        return self._database is not None

    def open(self, reader: Callable[[Database], Engine]) -> None:
        """Make the engine that ``read()`` uses from now on."""
        self._reader = reader(self.database)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only transaction with one snapshot, on a new connection. Raises as ``Database.read`` does."""
        assert self._reader is not None, "the check needs DATABASE"
        with self.database.explained(), self._reader.connect() as connection:
            yield connection

    @property
    def exchange(self) -> Exchange:
        """The one request to beacon and its outcome."""
        assert self._exchange is not None, "the check needs ANSWER"
        return self._exchange

    @exchange.setter
    def exchange(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def close(self) -> None:
        if self._reader is not None:
            self._reader.dispose()
        if self._database is not None:
            self._database.close()


@dataclass(frozen=True, slots=True)
class Check:
    """One check. ``look`` may raise: an ``OutboxError`` is reported as a problem."""

    name: str
    needs: Need | None
    look: Callable[[Patient], Iterable[Finding]]
    seconds: float = 2 * DATABASE_SECONDS
    """Time limit. A check that exceeds it is abandoned, and its ``needs`` count as lacking from then on."""
