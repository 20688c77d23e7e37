"""Tests of the fixtures that all other tests use."""

from __future__ import annotations

import asyncio
import threading

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support import databases
from tests.support.databases import Database
from tests.support.waiting import wait_until


def test_every_driver_of_a_database_reaches_the_same_empty_database(database: Database, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE greeting (word VARCHAR(20))"))
        connection.execute(text("INSERT INTO greeting VALUES ('hello')"))

    async def read(url: str) -> list[str]:
        async_engine = create_async_engine(url)
        async with async_engine.connect() as connection:
            words = list(await connection.scalars(text("SELECT word FROM greeting")))
        await async_engine.dispose()
        return words

    assert {driver: asyncio.run(read(url)) for driver, url in database.async_urls} == {
        driver: ["hello"] for driver, _ in database.async_urls
    }


def test_a_connection_left_open_is_reported(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create_engine(database.url)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        if database.name == "sqlite":
            connection.execute(text("PRAGMA user_version = 1"))
        with monkeypatch.context() as hurried:
            hurried.setattr(databases, "LEAK_GRACE", 0.1)
            with pytest.raises(AssertionError, match="left connections open"):
                database.strangers.must_be_gone()
    engine.dispose()
    database.strangers.must_be_gone()


def test_waiting_returns_what_the_condition_gives_and_fails_with_the_message_at_the_deadline() -> None:
    answers = iter([None, 0, "here"])
    assert wait_until(lambda: next(answers)) == "here"
    with pytest.raises(AssertionError, match=r"nothing came \(waited 0.01 s\)"):
        wait_until(threading.Event().is_set, timeout=0.01, message="nothing came")
