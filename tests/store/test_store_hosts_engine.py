"""A host's engine of any make: its pool, and what listens on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from sqlalchemy import AssertionPool, Engine, SingletonThreadPool, StaticPool, create_engine, event

from outbox import ConfigError, Outbox, Settings
from tests.support.databases import Database
from tests.support.intervals import interval

SERVERS = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)


@pytest.fixture(params=[StaticPool, AssertionPool, SingletonThreadPool])
def sharing(request: pytest.FixtureRequest, database: Database) -> Iterator[Engine]:
    """An engine whose pool has one connection for several users."""
    engine = create_engine(database.url, poolclass=request.param)
    yield engine
    engine.dispose()


@SERVERS
def test_a_put_beside_a_transaction_that_is_rolled_back_stays_whatever_the_hosts_pool(sharing: Engine) -> None:
    with Outbox(sharing, settings=Settings(notify=False)) as box:
        box.migrate()
        with suppress(ZeroDivisionError), box.store.database.write() as connection:
            [undone] = box.enqueue(connection, interval())
            [id] = box.put(interval())
            raise ZeroDivisionError
        assert box.find(undone) is None
        assert box.find(id) is not None


@SERVERS
def test_a_creator_that_gives_one_connection_to_all_is_refused(database: Database) -> None:
    opener = create_engine(database.url)
    opened = opener.raw_connection()
    one: Any = opened.driver_connection
    host = create_engine(database.url, creator=lambda: one, poolclass=StaticPool)
    with Outbox(host, settings=Settings(notify=False)) as box, ExitStack() as held:
        held.enter_context(box.engine.connect())
        with pytest.raises(ConfigError, match="returned one driver connection a second time"):
            held.enter_context(box.engine.connect())
    opened.invalidate()
    opener.dispose()


def listeners(engine: Engine) -> list[int]:
    return [len(list(events)) for events in (engine.dialect.dispatch.do_connect, engine.pool.dispatch.connect)]


def test_each_further_outbox_leaves_nothing_on_the_hosts_engine(engine: Engine) -> None:
    Outbox(engine).close()
    before = listeners(engine)
    for _ in range(3):
        Outbox(engine).close()
    assert listeners(engine) == before


# --- listeners that run statements ---------------------------------------------------------------------------


@pytest.fixture(params=["connect", "checkout", "checkin"])
def listening(request: pytest.FixtureRequest, database: Database) -> Iterator[Engine]:
    """An engine with a listener that sets a variable of the session, and commits nothing."""
    engine = create_engine(database.url)
    statement = "SET application_name = 'ours'" if database.name == "postgresql" else "SET @ours = (SELECT 1)"

    @event.listens_for(engine, request.param)
    def run(driver_connection: Any, *_: Any) -> None:
        with driver_connection.cursor() as cursor:
            cursor.execute(statement)

    yield engine
    engine.dispose()


@SERVERS
@pytest.mark.parametrize("idle", [True, False], ids=["each is idle for long", "none is"])
def test_a_listener_of_the_host_may_run_statements(
    listening: Engine, idle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.store.connections.IDLE_SECONDS", 0 if idle else 3600)
    with Outbox(listening, settings=Settings(notify=False)) as box:
        box.migrate()
        with box.store.database.write() as connection:
            box.enqueue(connection, interval())
        for _ in range(3):
            box.put(interval())
        assert box.status().lanes["usage"].pending == 4
        with box.store.database.read() as connection:
            if connection.dialect.name == "postgresql":
                assert connection.exec_driver_sql("SHOW application_name").scalar() == "ours", "what it set holds"
