"""Servers of this folder's own: to crash, to fill up, to fail over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import pytest

from tests.support.postgres import PostgresServer
from tests.support.processes import ServerStartError
from tests.support.replication import Pair

T = TypeVar("T")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL that survives a power cut, with few connections. A session that asks for it by its
    ``synchronous_commit`` waits at COMMIT for a standby that does not exist."""
    options = {"max_connections": "30", "synchronous_standby_names": "nobody", "synchronous_commit": "local"}
    yield from _started(PostgresServer(durable=True, options=options))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A primary and its synchronous standby. Ask for it whole: ``pair.mend()``."""
    yield from _started(Pair())


def _started(server: AbstractContextManager[T]) -> Iterator[T]:
    try:
        started = server.__enter__()
    except ServerStartError as error:
        if os.environ.get("OUTBOX_TEST_REQUIRE_ALL") == "1":
            raise
        pytest.skip(f"no PostgreSQL of our own: {error}")
    try:
        yield started
    finally:
        server.__exit__(None, None, None)
