"""A fresh database for each test, and a check at its end that no connection is left open."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pymysql
from sqlalchemy import URL, make_url

from tests.support.keeper import DRIVERS, Offer
from tests.support.waiting import wait_until

NAMES = ("sqlite", "postgresql", "mariadb")
LEAK_GRACE = 30.0
"""Seconds until a closed connection must have disappeared from the server."""


class Strangers:
    """The connections to a test's database. There must be none after the test."""

    def found(self) -> list[str]:
        raise NotImplementedError

    def must_be_gone(self) -> None:
        """Raises AssertionError with each connection that is still open after ``LEAK_GRACE`` seconds."""
        wait_until(lambda: not self.found(), LEAK_GRACE, lambda: f"the test left connections open: {self.found()}")


@dataclass(frozen=True, slots=True)
class Database:
    """An empty database that belongs to one test."""

    name: str
    """"sqlite", "postgresql" or "mariadb"."""
    url: str
    """For ``create_engine``: ``sqlite:///...``, ``postgresql+psycopg://...``, ``mysql+pymysql://...``."""
    async_urls: Sequence[tuple[str, str]]
    """(driver, url) of each driver for ``create_async_engine``: aiosqlite; asyncpg, psycopg; asyncmy."""
    label: str
    """The server's name and version, such as "PostgreSQL 18.6 (wheel)"."""
    strangers: Strangers
    """The connections to it."""


@contextmanager
def sqlite(folder: Path) -> Iterator[Database]:
    path = folder / "outbox.db"
    urls = [("aiosqlite", f"sqlite+aiosqlite:///{path}")]
    label = f"SQLite {sqlite3.sqlite_version}"
    yield Database("sqlite", f"sqlite:///{path}", urls, label, _OpenFiles(path))


@contextmanager
def postgresql(offer: Offer) -> Iterator[Database]:
    name = _new_name()
    admin = make_url(offer.urls[0]).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        try:
            yield _on_server("postgresql", offer, name, _PostgresSessions(connection, name))
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def mariadb(offer: Offer) -> Iterator[Database]:
    name = _new_name()
    with closing(_connect_mariadb(make_url(offer.urls[0]))) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
        sessions = _MariaDBSessions(cursor, name)
        try:
            yield _on_server("mariadb", offer, name, sessions)
        finally:
            sessions.end()  # an open transaction would block DROP DATABASE
            cursor.execute(f"DROP DATABASE {name}")


@dataclass
class _OpenFiles(Strangers):
    """For SQLite, which has no server to ask: a connection is an open file of this process."""

    path: Path

    def found(self) -> list[str]:
        if not os.path.isdir("/proc/self/fd"):
            return []
        links = (_readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
        return sorted(link for link in links if link.startswith(str(self.path)))


@dataclass
class _PostgresSessions(Strangers):
    connection: psycopg.Connection
    name: str

    def found(self) -> list[str]:
        query = "SELECT pid, state, query FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
        return [f"pid {pid} {state}: {query}" for pid, state, query in self.connection.execute(query, [self.name])]


@dataclass
class _MariaDBSessions(Strangers):
    cursor: pymysql.cursors.Cursor
    name: str

    def found(self) -> list[str]:
        return [f"id {number} {command}: {info}" for number, command, info in self._rows()]

    def end(self) -> None:
        for number, *_ in self._rows():
            with suppress(pymysql.err.OperationalError):  # the session has ended since
                self.cursor.execute("KILL %s", [number])

    def _rows(self) -> Sequence[Sequence[object]]:
        self.cursor.execute("SELECT id, command, info FROM information_schema.processlist WHERE db = %s", [self.name])
        return list(self.cursor.fetchall())


def _new_name() -> str:
    return f"t_{uuid.uuid4().hex[:20]}"


def _on_server(name: str, offer: Offer, database: str, strangers: Strangers) -> Database:
    sync_url, *async_urls = (
        make_url(url).set(database=database).render_as_string(hide_password=False) for url in offer.urls
    )
    _, *async_drivers = DRIVERS[name]
    return Database(name, sync_url, list(zip(async_drivers, async_urls, strict=True)), offer.label, strangers)


def _connect_mariadb(url: URL) -> pymysql.Connection:
    return pymysql.connect(
        host=url.host,
        port=url.port or 3306,
        user=url.username,
        password=url.password or "",
        autocommit=True,
        ssl_disabled="ssl_disabled" in url.query,
    )


def _readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # closed since it was listed
        return ""
