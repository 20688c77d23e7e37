"""Driver connections that belong to a pool of the host's go back to it as they were."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import psycopg
import pymysql
import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, make_url, text

from outbox import Outbox, Settings, Worker
from outbox.core.lane import Lane
from tests.store.driving import DELIVERED
from tests.support.databases import Database
from tests.support.intervals import intervals
from tests.support.waiting import wait_until

SERVERS = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
STATE = {
    "postgresql": "SELECT current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout'),"
    " current_setting('transaction_isolation'), (SELECT count(*) FROM pg_listening_channels())",
    "mariadb": "SELECT @@autocommit, @@tx_isolation, @@innodb_lock_wait_timeout, @@group_concat_max_len, @@sql_mode",
}


class HostsPool:
    """What ``close()`` of its connections gives back, it hands out again. As psycopg_pool does with ``close_returns``,
    and as others do that override ``close``."""

    close_returns = True

    def __init__(self, database: Database) -> None:
        url = make_url(database.url)
        self.name = database.name
        self._where: dict[str, Any] = {"host": url.host, "port": url.port, "user": url.username}
        self._database = url.database
        self._idle: SimpleQueue[Any] = SimpleQueue()
        self.opened: list[Any] = []
        self.out = 0
        self._lock = threading.Lock()

    def getconn(self) -> Any:
        with self._lock:
            self.out += 1
        with suppress(Exception):
            while self._idle.qsize():
                connection = self._idle.get_nowait()
                if self.is_alive(connection):
                    return connection
        self.opened.append(connection := self._open())
        return connection

    def putconn(self, connection: Any) -> None:
        with self._lock:
            self.out -= 1
        if self.is_alive(connection):
            self._idle.put(connection)

    def is_alive(self, connection: Any) -> bool:
        return bool(connection.open if self.name == "mariadb" else not connection.closed)

    def _open(self) -> Any:
        if self.name == "postgresql":
            connection = psycopg.connect(**self._where, dbname=self._database)
            connection._pool = self  # type: ignore[assignment]
            return connection

        class Returning(pymysql.Connection):
            def close(given) -> None:  # type: ignore[override]  # noqa: N805 - "self" is the pool
                self.putconn(given)

        return Returning(**self._where, database=self._database, ssl_disabled=True)

    def close(self) -> None:
        for connection in self.opened:
            if self.name == "mariadb":
                connection._force_close()
            else:
                connection.pgconn.finish()


@pytest.fixture
def pool(database: Database) -> Iterator[HostsPool]:
    pool = HostsPool(database)
    yield pool
    pool.close()


@pytest.fixture
def host(database: Database, pool: HostsPool) -> Engine:
    """As SQLAlchemy's documentation of psycopg has it."""
    driver = make_url(database.url).drivername
    return create_engine(f"{driver}://", creator=pool.getconn, poolclass=NullPool)


def state(connection: Connection) -> tuple[Any, ...]:
    driver_connection: Any = connection.connection.driver_connection
    seen = (getattr(driver_connection, "autocommit", None), getattr(driver_connection, "isolation_level", None))
    rows = connection.execute(text(STATE[connection.dialect.name.replace("mysql", "mariadb")])).one()
    return (*(one for one in seen if not callable(one)), *rows)


def states(host: Engine) -> set[tuple[Any, ...]]:
    """The states of several of the pool's connections at once."""
    several = [host.connect() for _ in range(4)]
    seen = {state(connection) for connection in several}
    for connection in several:
        connection.close()
    return seen


def use(host: Engine) -> None:
    """Migrate, put each way that there is, deliver by a worker, stop."""
    settings = Settings(license_key="test-license-key")
    transport: Any = SimpleNamespace(send=lambda _: DELIVERED, close=lambda: None, settings=settings)
    with Outbox(host, settings=settings) as box:
        box.migrate()
        with Worker(box, transport):
            for count in (1, 3, 150, 1):
                box.put(*intervals(count))
            wait_until(lambda: box.status().lanes[Lane.USAGE].sent == 155)


@SERVERS
def test_the_hosts_pool_gets_its_connections_back_as_they_were(host: Engine, pool: HostsPool) -> None:
    before = states(host)
    use(host)
    assert states(host) == before
    assert pool.out == 0, "each was given back"


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_session_that_listened_is_never_the_hosts_again(host: Engine, pool: HostsPool) -> None:
    with Outbox(host) as box:
        with box.store.database.dialect.watch_commits(box.engine, {}, {}):
            [listened] = pool.opened
        assert not pool.is_alive(listened)
        assert pool.out == 0, "the pool may open another for it"


@SERVERS
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, ZeroDivisionError])
def test_one_whose_work_was_cut_off_goes_back_dead(
    host: Engine, pool: HostsPool, interrupt: type[BaseException]
) -> None:
    def cut_off(pooled: Any) -> Callable[[], None]:
        used.append(pooled.driver_connection)
        raise interrupt

    used: list[Any] = []
    with Outbox(host, settings=Settings(notify=False)) as box, pytest.raises(interrupt):
        box.store.database.alone(cut_off, statements=1)
    assert not pool.is_alive(used[0])
    assert pool.out == 0
