"""Whether a host's connection finds the outbox's tables where the outbox's own connections find them.

A host may be connected to another database, or have another search_path: by ``connect_args`` of an AsyncEngine, by a
listener that came after ``Outbox(engine)``, by a session that routes. What it commits there is never sent. So each
driver connection of the host is asked once, and again when its driver knows that its search_path has changed.
"""

from __future__ import annotations

import math
import time
from threading import Thread
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from outbox.core.text import mask_password
from outbox.errors import NOTHING_WRITTEN, ConfigError, SchemaOutOfDate
from outbox.store.dialects import Place

if TYPE_CHECKING:
    from outbox.store.database import Database

NO_TABLES = "the outbox tables are not there. Run: outbox migrate"
"""A sentence of error messages: what to do next."""
ASK_AGAIN_SECONDS = 60.0
"""The pause after the outbox's own database did not answer: an enqueue does not need it."""
WAIT_SECONDS = 2.0
"""The longest wait for its answer: the hosts' transactions may hold all connections that a pooler has for both."""
_PLACES = "outbox_places"
_MOST_PLACES = 100
"""How many search_paths of one connection are remembered."""
_ELSEWHERE = f"what is committed here would never be sent. {NOTHING_WRITTEN}"
_GIVE = "Give enqueue a Session or Connection of the outbox's database, or name this one in OUTBOX_DATABASE_URL."


class SamePlace:
    """Compares hosts' connections with those of one outbox."""

    def __init__(self) -> None:
        self._ours: Place | None = None
        self._asking: Thread | None = None
        self._wait_until = self._ask_at = -math.inf

    def require(self, connection: Connection, database: Database) -> None:
        """Raise ``ConfigError`` where the connection finds other tables, ``SchemaOutOfDate`` where it finds none."""
        pooled = connection.connection
        setting = database.dialect.search_path(pooled)
        places: dict[Any, Place] = pooled.info.setdefault(_PLACES, {})
        place = places.get(setting)
        if place is not None and place == self._ours:
            return
        ours = self._ours_of(database)
        if place is None or ours is not None:  # a change that the driver does not know of may have mended it
            place = database.dialect.place(connection)
        if ours is not None and place != ours:
            ours = self._ours_of(database, anew=True)  # the tables may have been moved
        if ours is not None:
            _compare(place, ours, connection, database)
        if not place.has_tables:
            raise SchemaOutOfDate(f"{_named(connection)} ({place.in_words()}): {NO_TABLES}")
        if len(places) >= _MOST_PLACES:
            places.clear()
        places[setting] = place

    def _ours_of(self, database: Database, *, anew: bool = False) -> Place | None:
        """Where the outbox's own connections find the tables. None: its database does not answer, or not yet.

        Another thread asks, and goes on when the wait is over: the caller's transaction may hold the very connection
        that the answer needs, and so may another one that the caller's event loop runs.
        """
        known = self._ours is not None and self._ours.has_tables and not anew
        asking = self._asking
        if not known and not (asking and asking.is_alive()) and time.monotonic() >= self._ask_at:
            self._wait_until = time.monotonic() + WAIT_SECONDS
            asking = Thread(target=self._ask, args=(database,), name="outbox-place", daemon=True)
            try:
                asking.start()
            except RuntimeError:  # the interpreter ends, or there are too many threads
                return self._ours
            self._asking = asking
        if not known and asking is not None:
            asking.join(max(0.0, self._wait_until - time.monotonic()))
        return self._ours

    def close(self) -> None:
        """Wait for the answer: a connection that is made after the engine was disposed of would stay open."""
        if self._asking is not None and self._asking.is_alive():
            self._asking.join(WAIT_SECONDS)

    def _ask(self, database: Database) -> None:
        try:
            with database.read() as connection:
                self._ours = database.dialect.place(connection)
        except Exception:  # noqa: BLE001 - a host's way to connect may raise anything
            self._ask_at = time.monotonic() + ASK_AGAIN_SECONDS
            if self._ours is not None and not self._ours.has_tables:
                self._ours = None


def _compare(place: Place, ours: Place, connection: Connection, database: Database) -> None:
    if place == ours:
        return
    host, outbox = f"{_named(connection)} is in {place.in_words()}", f"{database.safe_url} in {ours.in_words()}"
    if place.database != ours.database:
        raise ConfigError(f"The transaction's connection {host}, and the outbox {outbox}: {_ELSEWHERE} {_GIVE}")
    if place.has_tables:
        raise ConfigError(
            f"The transaction's connection {host}, and the outbox {outbox}: {_ELSEWHERE} {database.dialect.same_place}"
        )
    if ours.has_tables:
        raise SchemaOutOfDate(
            f"The transaction's connection {host}, where it finds no outbox tables, and the outbox finds its own by"
            f" {outbox}. {NOTHING_WRITTEN} {database.dialect.same_place}. Where both are meant to be there, run:"
            " outbox migrate"
        )


def other_kind(connection: Connection, safe_url: str) -> ConfigError:
    return ConfigError(
        f"The transaction's connection is {_named(connection)}, and the outbox {safe_url}: {_ELSEWHERE} {_GIVE}"
    )


def no_tables(connection: Connection) -> SchemaOutOfDate:
    return SchemaOutOfDate(f"{_named(connection)}: {NO_TABLES}")


def _named(connection: Connection) -> str:
    return mask_password(connection.engine.url.render_as_string(hide_password=True))
