"""A dispatcher that is told of commits does not wait for answers before it sends what is new."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event
from typing import Any

import pytest
from sqlalchemy import Engine, select

from outbox import Dispatcher, DispatchReport, Outbox, Settings
from outbox.core.concurrency import Concurrency
from outbox.core.lane import Lane
from outbox.core.step import Step
from outbox.store.schema import LANE
from tests.store.driving import DELIVERED
from tests.support import ledger
from tests.support.databases import Database
from tests.support.intervals import interval
from tests.support.waiting import wait_until
from tests.test_dispatcher_ahead import PATIENCE_SECONDS, Beacon


class Scene:
    """A dispatcher that is told of commits, and may have two requests on the wire. One is."""

    def __init__(self, box: Outbox, dispatcher: Dispatcher, thread: ThreadPoolExecutor) -> None:
        self.beacon, self.box, self.dispatcher, self.stop = Beacon(), box, dispatcher, Event()
        dispatcher.transport = self.beacon
        dispatcher.concurrency[Lane.USAGE] = Concurrency(limit=2)
        box.put(interval())
        self.report: Future[DispatchReport] = thread.submit(dispatcher.run_lane, Lane.USAGE, stop=self.stop, told=True)
        self.left()

    def left(self) -> int:
        """How many entries the next request has that leaves."""
        return self.beacon.left.get(timeout=PATIENCE_SECONDS).rows

    def commit(self, entries: int = 1) -> None:
        for _ in range(entries):
            self.box.put(interval())
        self.dispatcher.news[Lane.USAGE].tell(entries=True)

    def end(self) -> int:
        """What was sent."""
        self.stop.set()
        self.dispatcher.news[Lane.USAGE].tell(entries=True)
        return self.report.result(PATIENCE_SECONDS).sent

    @property
    def steps(self) -> int:
        """Commits of the dispatcher."""
        with self.box.store.database.read() as connection:
            found: int = connection.execute(select(LANE.c.version).where(LANE.c.lane == "usage")).scalar_one()
            return found


@pytest.fixture
def scene(database: Database, engine: Engine, box: Outbox) -> Iterator[Scene]:
    with ExitStack() as stack:
        told = stack.enter_context(Outbox(database.url, settings=Settings(license_key="test-license-key")))
        dispatcher = Dispatcher(told, Beacon())
        stack.callback(dispatcher.close)
        stack.callback(ledger.check, engine)
        thread = stack.enter_context(ThreadPoolExecutor(1))
        yield Scene(told, dispatcher, thread)


def test_entries_leave_while_the_answer_to_others_is_awaited(scene: Scene) -> None:
    scene.commit()
    assert scene.left() == 1, "and nothing was answered yet"
    for _ in range(2):
        scene.beacon.answers.put(DELIVERED)
    wait_until(lambda: scene.box.status().lanes["usage"].sent == 2)
    assert scene.end() == 2


def test_entries_wait_while_as_many_requests_are_out_as_may(scene: Scene) -> None:
    scene.commit()
    scene.left()
    before = scene.steps
    scene.commit(3)
    assert (scene.beacon.left.empty(), scene.steps) == (True, before)
    for _ in range(2):
        scene.beacon.answers.put(DELIVERED)
    assert scene.left() == 3
    scene.beacon.answers.put(DELIVERED)
    wait_until(lambda: scene.box.status().lanes["usage"].sent == 5)
    scene.end()


def test_news_of_what_is_not_there_cause_one_claim_until_something_lands(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, step = [], scene.box.store.step

    def counted(*arguments: Any, **options: Any) -> Step:
        made.append(step(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(scene.box.store, "step", counted)
    for _ in range(3):
        scene.dispatcher.news[Lane.USAGE].tell(entries=True)
        wait_until(lambda: made)
    scene.beacon.answers.put(DELIVERED)
    assert scene.report.result(PATIENCE_SECONDS).sent == 1
    assert [(len(each.batches), each.settled.sent) for each in made] == [(0, 0), (0, 1)]
