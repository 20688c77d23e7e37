"""How long a worker waits: a slow request, a changed clock or an error delays it by its poll at most."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, tzinfo
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine

from outbox import Outbox, Receipt, Settings, UsageInterval, Worker
from outbox.core.batch import Batch
from outbox.core.concurrency import Concurrency
from outbox.core.lane import Lane
from outbox.core.step import Outlook
from outbox.errors import DatabaseUnavailable
from outbox.store.watch import Watch
from tests.store.driving import DELIVERED
from tests.support.databases import Database
from tests.support.intervals import interval
from tests.support.waiting import wait_until

HOUR = 3600.0


class Held:
    """A transport that delivers at once, except the batch with the entry ``slow``: that one when ``let_go`` is set."""

    def __init__(self, slow: UUID | None = None) -> None:
        self.slow = slow
        self.let_go = threading.Event()
        self.arrived: set[UUID] = set()

    def send(self, batch: Batch) -> Receipt:
        ids = {UUID(json.loads(line)["id"]) for line in batch.lines.split("\n")}
        self.arrived |= ids
        if self.slow in ids:
            assert self.let_go.wait(300)
        return DELIVERED

    def wait_for(self, *ids: UUID) -> None:
        wait_until(lambda: set(ids) <= self.arrived)


@pytest.fixture
def box(database: Database, request: pytest.FixtureRequest) -> Iterator[Outbox]:
    with Outbox(database.url, settings=Settings(license_key="lic_x", poll_seconds=HOUR)) as box:
        box.migrate()
        yield box


@pytest.fixture
def silent(box: Outbox, database: Database) -> Iterator[Outbox]:
    """The outbox of another process that sends no notifications."""
    with Outbox(database.url, settings=Settings(notify=False)) as silent:
        yield silent


def under_way(box: Outbox, worker: Worker, transport: Held, message: UsageInterval, *, limit: float) -> None:
    """The request of ``message``, of so many that the lane may have on the wire."""
    worker.dispatcher.concurrency[Lane.USAGE] = Concurrency(limit=limit)
    box.put(message)
    transport.wait_for(message.id)


def must_arrive_beside_a_slow_request(box: Outbox, put: Callable[[UsageInterval], object]) -> None:
    """What ``put`` commits while the lane waits for an answer is sent before that answer comes."""
    first, second = interval(), interval()
    transport = Held(slow=first.id)
    with Worker(box, transport) as worker:
        under_way(box, worker, transport, first, limit=4.0)
        put(second)
        transport.wait_for(second.id)
        transport.let_go.set()


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_what_nobody_told_of_does_not_wait_for_a_slow_request(box: Outbox, silent: Outbox) -> None:
    must_arrive_beside_a_slow_request(box, silent.put)


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_what_is_put_behind_a_number_that_was_rolled_back_does_not_wait_for_a_slow_request(
    box: Outbox, engine: Engine
) -> None:
    def put(message: UsageInterval) -> None:
        roll_back(box, engine)
        box.put(message)

    must_arrive_beside_a_slow_request(box, put)


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_what_was_put_behind_a_number_that_was_rolled_back_does_not_wait_for_the_poll(
    box: Outbox, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its notification was used up by a look that came too early, before the request ahead of it ended."""
    looks, outlook = [], box.store.outlook
    monkeypatch.setattr(box.store, "outlook", lambda *a, **b: looks.append(a) or outlook(*a, **b))
    monkeypatch.setattr("outbox.core.idle.FIRST_PAUSE_SECONDS", HOUR)  # as after a long time without an entry
    monkeypatch.setattr(Watch, "start", lambda _: None)  # it notifies of commits before its start
    first, second = interval(), interval()
    transport = Held(slow=first.id)
    with Worker(box, transport) as worker:
        wait_until(lambda: len(looks) >= len(Lane))
        monkeypatch.setattr("outbox.core.idle.FIRST_PAUSE_SECONDS", 0.001)
        under_way(box, worker, transport, first, limit=1.0)
        roll_back(box, engine)
        box.put(second)
        transport.let_go.set()
        transport.wait_for(second.id)


def roll_back(box: Outbox, engine: Engine) -> None:
    with suppress(ZeroDivisionError), engine.begin() as connection:
        box.enqueue(connection, interval())
        raise ZeroDivisionError


class AnHourAgo(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        return datetime.now(tz) - timedelta(hours=1)


@pytest.fixture
def short_poll(database: Database) -> Iterator[Outbox]:
    with Outbox(database.url, settings=Settings(license_key="lic_x", poll_seconds=0.02)) as box:
        box.migrate()
        yield box


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_lane_goes_on_after_an_error_also_when_the_wall_clock_was_set_back(
    short_poll: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler's next run would be in an hour."""
    outlook, failed, message = short_poll.store.outlook, threading.Event(), interval()

    def fail_once(lane: Lane, **asked: Any) -> Outlook:
        if lane is Lane.USAGE and not failed.is_set():
            failed.set()
            raise DatabaseUnavailable("the server restarts")
        return outlook(lane, **asked)

    transport = Held()
    with Worker(short_poll, transport):
        monkeypatch.setattr("apscheduler.schedulers.base.datetime", AnHourAgo)
        monkeypatch.setattr(short_poll.store, "outlook", fail_once)
        assert failed.wait(30)
        short_poll.put(message)
        transport.wait_for(message.id)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_upkeep_goes_on_when_the_wall_clock_was_set_back(short_poll: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    purged, purge = [], short_poll.store.purge
    monkeypatch.setattr(short_poll.store, "purge", lambda *a: (purge(*a), purged.append(a)))
    with Worker(short_poll, Held()):
        wait_until(lambda: len(purged) == len(Lane))
        wall = time.time
        monkeypatch.setattr("apscheduler.schedulers.base.datetime", AnHourAgo)
        monkeypatch.setattr("outbox.worker.datetime", AnHourAgo)
        monkeypatch.setattr("time.time", lambda: wall() - HOUR)
        wait_until(lambda: len(purged) > len(Lane))


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_free_room_that_nothing_took_since_the_last_upkeep_goes_back_to_the_disk(box: Outbox, engine: Engine) -> None:
    def pages(what: str) -> int:
        with engine.connect() as connection:
            return int(connection.exec_driver_sql(f"PRAGMA {what}").scalar_one())

    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE another (room)")
        connection.exec_driver_sql("INSERT INTO another VALUES (zeroblob(8000000))")
        connection.exec_driver_sql("DROP TABLE another")
    full = pages("page_count")
    assert pages("freelist_count") > full / 2
    with Worker(box, Held()):
        wait_until(lambda: pages("page_count") < full / 2)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_lane_that_cannot_be_audited_keeps_no_other_from_its_upkeep(
    box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    purged: set[Lane] = set()
    audit, purge = box.store.audit, box.store.purge

    def broken(lane: Lane, **options: Any) -> Any:
        if lane is Lane.USAGE:
            raise DatabaseUnavailable("this lane's lock is somebody's")
        return audit(lane, **options)

    monkeypatch.setattr(box.store, "audit", broken)
    monkeypatch.setattr(box.store, "purge", lambda lane, rules: (purge(lane, rules), purged.add(lane)))
    with Worker(box, Held()):
        wait_until(lambda: purged == set(Lane) - {Lane.USAGE})


def test_what_is_committed_into_a_lane_that_was_stopped_causes_no_steps(
    box: Outbox, silent: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite each step would take the lock that producers wait for."""
    steps, step, transport, message = [], box.store.step, Held(), interval()

    def counted(lane: Lane, *arguments: Any, **options: Any) -> Any:
        steps.append(lane)
        return step(lane, *arguments, **options)

    monkeypatch.setattr(box.store, "audit", lambda *_, **__: None)  # it finds nothing, and opens the lane again
    with Worker(box, transport):
        box.put(message)
        transport.wait_for(message.id)
        wait_until(lambda: box.status().lanes["usage"].sent == 1)
        silent.store._stop(Lane.USAGE, "it contradicts its log")
        monkeypatch.setattr(box.store, "step", counted)
        for _ in range(100):
            box.put(interval())
    assert steps.count(Lane.USAGE) < 10
