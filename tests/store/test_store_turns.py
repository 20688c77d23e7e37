"""Producers and the worker share SQLite's single write lock."""

from __future__ import annotations

import signal
import statistics
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from outbox import Outbox
from outbox.errors import DatabaseUnavailable
from outbox.store import database as store_database
from tests.store.driving import Worker
from tests.support.databases import Database
from tests.support.intervals import interval

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
HELD_SECONDS = 0.004


@pytest.fixture
def elsewhere(box: Outbox, database: Database) -> Iterator[Outbox]:
    """Another outbox on the database, which shares no memory with ``box``: as in another process."""
    with Outbox(database.url) as other:
        yield other


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each pause between turns. The clock advances in pauses only."""
    taken: list[float] = []
    monkeypatch.setattr(store_database, "time", SimpleNamespace(monotonic=lambda: sum(taken), sleep=taken.append))
    return taken


def test_a_producer_is_next_after_a_worker_that_takes_one_turn_after_the_other(box: Outbox, elsewhere: Outbox) -> None:
    over, held, taken = threading.Event(), threading.Event(), 0

    def work() -> None:
        nonlocal taken
        while not over.is_set():
            with box.store.database.write(in_turn=True):
                taken += 1
                held.set()
                over.wait(HELD_SECONDS)
                held.clear()

    worker = threading.Thread(target=work)
    worker.start()
    turns_in_between = []
    try:
        for _ in range(50):
            assert held.wait(30)
            before = taken
            elsewhere.put(interval())
            turns_in_between.append(taken - before)
    finally:
        over.set()
        worker.join()
    assert statistics.median(turns_in_between) <= 1
    assert turns_in_between[0] < 50, "nobody had written before: the worker cannot know that somebody waits"


def test_steps_and_purges_are_turns_and_puts_are_not(box: Outbox, worker: Worker, pauses: list[float]) -> None:
    box.put(interval())
    worker.claim()
    assert not pauses
    box.put(interval())
    assert not pauses
    worker.claim()
    assert pauses == [store_database.TURN_PAUSE_SECONDS]
    worker.purge()
    assert len(pauses) > 1


def test_a_signals_handler_that_puts_while_its_thread_writes_is_told_and_waits_no_longer_than_others(
    box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box.store.database.dialect, "waits_ms", 20)
    box.close()
    refused = []

    def put(*_: object) -> None:
        with pytest.raises(DatabaseUnavailable) as told:
            box.put(interval())
        refused.append(told.value)

    before = signal.signal(signal.SIGUSR1, put)
    try:
        with box.store.database.write():
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert refused
    box.put(interval())
    assert box.status().lanes["usage"].pending == 1
