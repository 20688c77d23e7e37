"""An async host: the same promises through every async driver."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import URL, Engine, make_url
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from outbox import ConfigError, DatabaseUnavailable, Outbox
from outbox.simulator import Simulator
from outbox.testing import drain
from tests.support.databases import Database
from tests.support.intervals import interval, intervals


def on_each_driver(database: Database, use: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    async def on(url: str) -> None:
        engine = create_async_engine(url)
        try:
            await use(engine)
        finally:
            await engine.dispose()

    assert database.async_urls
    for _, url in database.async_urls:
        asyncio.run(on(url))


def test_an_async_session_delivers_what_it_commits_and_nothing_else(
    box: Outbox, database: Database, beacon: Simulator
) -> None:
    committed: list[str] = []

    async def use(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            await box.enqueue_async(session, interval())
            await session.rollback()
        async with AsyncSession(engine) as session, session.begin():
            committed.extend(map(str, await box.enqueue_async(session, *intervals(2))))
            savepoint = await session.begin_nested()
            await box.enqueue_async(session, interval())
            await savepoint.rollback()

    on_each_driver(database, use)
    drain(box, beacon)
    assert beacon.received.ids() == dict.fromkeys(committed, 1)


def test_an_async_connection_delivers_what_it_commits_and_nothing_else(
    box: Outbox, database: Database, beacon: Simulator
) -> None:
    committed: list[str] = []

    async def use(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await box.enqueue_async(connection, interval())
            await connection.rollback()
        async with engine.begin() as connection:
            committed.extend(map(str, await box.enqueue_async(connection, interval())))

    on_each_driver(database, use)
    drain(box, beacon)
    assert beacon.received.ids() == dict.fromkeys(committed, 1)


def test_an_async_bulk_counts_its_duplicates(box: Outbox, database: Database, beacon: Simulator) -> None:
    committed: set[str] = set()

    async def use(engine: AsyncEngine) -> None:
        messages = intervals(1500)
        async with AsyncSession(engine) as session, session.begin():
            await box.enqueue_async(session, *messages[:5])
        async with AsyncSession(engine) as session, session.begin():
            result = await box.enqueue_many_async(session, messages)
        assert (len(result), result.duplicates) == (1500, 5)
        committed.update(map(str, result))

    on_each_driver(database, use)
    drain(box, beacon, timeout=30)
    assert beacon.received.ids() == dict.fromkeys(committed, 1)


def test_an_async_connection_that_commits_each_statement_takes_all_or_none(
    box: Outbox, database: Database, beacon: Simulator
) -> None:
    committed: set[str] = set()

    async def use(engine: AsyncEngine) -> None:
        messages = intervals(1500)
        await box.put_async(*messages[:5])
        async with engine.connect() as connection:
            result = await box.enqueue_many_async(
                await connection.execution_options(isolation_level="AUTOCOMMIT"), messages
            )
        assert (len(result), result.duplicates) == (1500, 5)
        committed.update(map(str, result))

    on_each_driver(database, use)
    drain(box, beacon, timeout=30)
    assert beacon.received.ids() == dict.fromkeys(committed, 1)


def test_a_scoped_async_session_is_the_session_of_its_scope(box: Outbox, database: Database, beacon: Simulator) -> None:
    committed: set[str] = set()

    async def use(engine: AsyncEngine) -> None:
        scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
        committed.update(map(str, await box.enqueue_async(scoped, interval())))
        await scoped.commit()
        await scoped.remove()

    on_each_driver(database, use)
    drain(box, beacon)
    assert beacon.received.ids() == dict.fromkeys(committed, 1)


def test_what_is_not_asynchronous_is_named(box: Outbox, engine: Engine) -> None:
    wrong: Any
    for wrong, said in (
        (Session(engine), r"enqueue_async: Session is not asynchronous: box\.enqueue\("),
        (engine, r"enqueue_async needs the Session or Connection of your transaction, got Engine"),
    ):
        with pytest.raises(TypeError, match=said):
            asyncio.run(box.enqueue_async(wrong, interval()))


def test_options_in_the_url_that_only_the_async_driver_knows_are_no_hindrance(
    box: Outbox, database: Database, beacon: Simulator
) -> None:
    options = {"asyncpg": {"ssl": "disable", "command_timeout": "60", "prepared_statement_cache_size": "0"}}
    urls = [make_url(url).update_query_dict(options.get(driver, {})) for driver, url in database.async_urls]
    ids = [id for url in urls for id in asyncio.run(enqueued_by(url))]
    drain(box, beacon)
    assert beacon.received.ids() == {str(id): 1 for id in ids}


async def enqueued_by(url: URL) -> list[UUID]:
    """Enqueues by an AsyncEngine that both the host and the outbox have."""
    host = create_async_engine(url)
    try:
        with Outbox(host) as box:
            async with AsyncSession(host) as session, session.begin():
                ids = [*await box.enqueue_async(session, interval())]
            return ids + await box.put_async(interval())
    finally:
        await host.dispose()


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_an_async_engine_whose_url_does_not_suffice_is_told_that_only_the_url_is_used(
    database: Database, dead_port: int
) -> None:
    said = r"Of an AsyncEngine the outbox uses the URL only.*give Outbox an Engine"
    for _, url in database.async_urls:
        nowhere = create_async_engine(make_url(url).set(port=dead_port))
        with Outbox(nowhere) as box, pytest.raises(DatabaseUnavailable, match=said):
            box.status()
        odd = create_async_engine(make_url(url).update_query_dict({"odd": "1"}))
        with Outbox(odd) as box, pytest.raises(ConfigError, match=r"its options: odd$"):
            box.status()


def test_put_async_is_durable_when_it_returns(box: Outbox, engine: Engine, beacon: Simulator) -> None:
    ids = asyncio.run(box.put_async(*intervals(2)))
    drain(box, beacon)
    assert beacon.received.ids() == {str(id): 1 for id in ids}
