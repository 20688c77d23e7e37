"""The next batch is leased while the one before it is in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event
from uuid import UUID

import pytest
from sqlalchemy import Engine

from outbox import Dispatcher, DispatchReport, Outbox, Settings
from outbox.core.lane import Lane
from outbox.core.lifecycle import Status
from outbox.store.ledger import locked
from tests.store.driving import DELIVERED, UNAUTHORIZED
from tests.support import ledger
from tests.support.databases import Database
from tests.support.intervals import intervals
from tests.support.transports import PATIENCE_SECONDS, Beacon
from tests.support.waiting import wait_until


class Scene:
    """Three batches of one entry each: one in flight, the next one leased."""

    def __init__(self, box: Outbox, dispatcher: Dispatcher, run: Callable[..., Future[DispatchReport]]) -> None:
        self.beacon = Beacon()
        self.box = box
        self.stop = Event()
        dispatcher.transport = self.beacon
        self.ids = box.put(*intervals(3))
        self.report = run(dispatcher.run_lane, Lane.USAGE, stop=self.stop)
        self.left()
        wait_until(lambda: self.status_of(1) == Status.IN_FLIGHT)

    def left(self) -> None:
        self.beacon.left.get(timeout=PATIENCE_SECONDS)

    def status_of(self, number: int) -> Status:
        view = self.box.find(UUID(str(self.ids[number])))
        assert view is not None
        assert view.num_failed_send_attempts == 0
        return view.status

    @property
    def statuses(self) -> list[Status]:
        return [self.status_of(number) for number in range(3)]


@pytest.fixture
def scene(database: Database, engine: Engine, box: Outbox) -> Iterator[Scene]:
    with ExitStack() as stack:
        settings = Settings(license_key="test-license-key", max_senders=1, batch_max_rows=1)
        one_by_one = stack.enter_context(Outbox(database.url, settings=settings))
        dispatcher = Dispatcher(one_by_one, Beacon())
        stack.callback(dispatcher.close)
        stack.callback(ledger.check, engine)
        yield Scene(one_by_one, dispatcher, stack.enter_context(ThreadPoolExecutor(1)).submit)


def test_it_leaves_before_the_answer_to_the_last_is_settled(scene: Scene) -> None:
    with scene.box.store.database.write() as connection, locked(connection, Lane.USAGE):  # nothing can be settled now
        scene.beacon.answers.put(DELIVERED)
        scene.left()
        assert scene.statuses == [Status.IN_FLIGHT, Status.IN_FLIGHT, Status.PENDING]
    for _ in range(2):
        scene.beacon.answers.put(DELIVERED)
    assert scene.report.result(PATIENCE_SECONDS).sent == 3
    assert scene.statuses == [Status.SENT] * 3


def test_it_does_not_leave_once_the_worker_is_to_stop(scene: Scene) -> None:
    scene.stop.set()
    scene.beacon.answers.put(DELIVERED)
    assert scene.report.result(PATIENCE_SECONDS).sent == 1
    assert scene.statuses == [Status.SENT, Status.WAITING, Status.PENDING]
    assert scene.beacon.left.empty()


def test_it_does_not_leave_once_the_lane_is_paused(scene: Scene) -> None:
    scene.beacon.answers.put(UNAUTHORIZED)
    scene.report.result(PATIENCE_SECONDS)
    assert scene.statuses == [Status.WAITING, Status.WAITING, Status.PENDING]
    assert scene.beacon.left.empty()
