"""What is examined: the settings, the database and the way to beacon, as far as they are known by now.

    SETTINGS ─┬─ DATABASE ── TABLES
              └─ EGRESS ──── ANSWER

A check names what it needs. Where that is lacking, it is skipped and says why; every other check runs.
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
from outbox.settings_secrets import mask_password
from outbox.store.database import Database

if TYPE_CHECKING:
    from outbox.doctor.exchange import Exchange

DATABASE_SECONDS = 5.0
"""How long a database may take to connect, and for each statement."""
REQUEST_SECONDS = 10.0
"""The longest deadline of the one request to beacon; ``OUTBOX_REQUEST_TIMEOUT`` where that is shorter."""
RESOLVE_SECONDS = 5.0


class Need(StrEnum):
    """What a check cannot do without."""

    SETTINGS = "settings"
    DATABASE = "database"
    """It can be connected to."""
    TABLES = "tables"
    """They are there, at this version."""
    EGRESS = "egress"
    """It is allowed, and beacon has an address."""
    ANSWER = "answer"
    """Beacon answered."""


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
    """Names of settings that are wrong, so that ``settings`` holds their defaults."""
    _settings: Settings | None = None
    _database: Database | None = None
    _reader: Engine | None = None
    _exchange: Exchange | None = None
    _lacking: dict[Need, str] = field(default_factory=dict)

    # --- what is lacking

    def lack(self, need: Need, why: str) -> None:
        self._lacking.setdefault(need, why)

    def lacks(self, need: Need | None) -> str | None:
        """Why a check with this need cannot run; None: it can."""
        while need is not None:
            if need in self._lacking:
                return self._lacking[need]
            need = _STANDS_ON.get(need)
        return None

    # --- what is there

    @property
    def settings(self) -> Settings:
        assert self._settings is not None, "the check needs SETTINGS"
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def database(self) -> Database:
        """What the outbox knows of its database. It is read through ``read()`` alone, which changes nothing."""
        if self._database is None:
            self._database = Database(self.settings.database_url, synchronous=self.settings.sqlite_synchronous)
        return self._database

    @property
    def knows_database(self) -> bool:
        """Whether the settings named a database of a kind that outbox knows."""
        return self._database is not None

    def without_password(self, text: str) -> str:
        """``text`` without a password that the URL of the database has among its parameters."""
        if not self.knows_database:
            return text
        shown = self.database.safe_url
        return text.replace(shown, mask_password(shown))

    def open(self, reader: Callable[[Database], Engine]) -> None:
        """Read the database through the engine that ``reader`` makes from now on."""
        self._reader = reader(self.database)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only transaction on a connection of its own, in one snapshot. Raises as ``Database.read`` does."""
        assert self._reader is not None, "the check needs DATABASE"
        with self.database.explained(), self._reader.connect() as connection:
            yield connection

    @property
    def exchange(self) -> Exchange:
        """The one request to beacon, and what came of it."""
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
    """One look at one thing. ``look`` may raise: an ``OutboxError`` is a problem like any other."""

    name: str
    needs: Need | None
    look: Callable[[Patient], Iterable[Finding]]
    seconds: float = 2 * DATABASE_SECONDS
    """After so many it is given up, and what it needs is taken to be lacking."""
