"""Fixtures of the store's conformance suite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from outbox import Outbox
from outbox.core.lane import Lane
from outbox.store import ledger as store_ledger
from outbox.store import store as store_store
from tests.store.driving import Worker
from tests.support.databases import Database


@pytest.fixture
def worker(box: Outbox) -> Worker:
    return Worker(box)


@pytest.fixture
def another(worker: Worker, database: Database) -> Iterator[Worker]:
    """A worker of another process on the same lane: it shares nothing with ``worker`` but the database."""
    with Outbox(database.url, settings=worker.box.settings) as box:
        yield Worker(box)


@pytest.fixture
def tracer(box: Outbox) -> Worker:
    """A worker of a telemetry lane."""
    return Worker(box, Lane.TRACES)


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> list[Lane]:
    """A lane for each time that it was locked."""
    taken: list[Lane] = []
    locked = store_ledger.locked

    def locking(connection: Any, lane: Lane, *rest: Any) -> Any:
        taken.append(lane)
        return locked(connection, lane, *rest)

    monkeypatch.setattr(store_store, "locked", locking)
    return taken
