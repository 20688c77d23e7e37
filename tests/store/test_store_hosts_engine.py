"""A host's engine of any make: its pool, and what listens on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from sqlalchemy import AssertionPool, Engine, SingletonThreadPool, StaticPool, create_engine

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
