"""A dispatcher that commits notify sends new entries without waiting for answers first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, Select, delete, select, update

from outbox import Dispatcher, DispatchReport, Outbox, Receipt, Settings, dispatcher, flight
from outbox.core.batch import Batch
from outbox.core.concurrency import AT_ONCE_ANSWERS, Concurrency
from outbox.core.lane import Lane
from outbox.core.pace import Pace
from outbox.core.step import Step
from outbox.flight import LOOK_DUE_SECONDS
from outbox.store.schema import BATCH, LANE
from tests.store.driving import DELIVERED
from tests.support import ledger
from tests.support.databases import Database
from tests.support.intervals import interval
from tests.support.transports import PATIENCE_SECONDS, Beacon
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def no_look_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: a lane that has not looked for a while does so, whatever it is told."""
    monkeypatch.setattr(flight, "LOOK_DUE_SECONDS", 3600)


class Scene:
    """A notified dispatcher that may have two requests in flight, and has one."""

    def __init__(self, box: Outbox, dispatcher: Dispatcher, thread: ThreadPoolExecutor) -> None:
        self.beacon, self.box, self.dispatcher, self.stop = Beacon(), box, dispatcher, Event()
        dispatcher.transport = self.beacon
        dispatcher.concurrency[Lane.USAGE] = Concurrency(limit=2)
        box.put(interval())
        self.report: Future[DispatchReport] = thread.submit(
            dispatcher.run_lane, Lane.USAGE, stop=self.stop, notified=True
        )
        self.left()

    def left(self) -> int:
        """The number of entries in the next request that is sent."""
        return self.beacon.left.get(timeout=PATIENCE_SECONDS).rows

    def commit(self, entries: int = 1) -> None:
        for _ in range(entries):
            self.box.put(interval())
        self.dispatcher.signals[Lane.USAGE].notify(entries=True)

    def end(self) -> int:
        """What was sent."""
        self.stop.set()
        self.dispatcher.signals[Lane.USAGE].notify(entries=True)
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
        scene.dispatcher.signals[Lane.USAGE].notify(entries=True)
        wait_until(lambda: made)
    scene.beacon.answers.put(DELIVERED)
    assert scene.report.result(PATIENCE_SECONDS).sent == 1
    assert [(len(each.batches), each.settled.sent) for each in made] == [(0, 0), (0, 1)]


@pytest.fixture
def told(database: Database, engine: Engine, box: Outbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    with Outbox(database.url, settings=Settings(license_key="test-license-key")) as told:
        dispatcher = Dispatcher(told, Beacon())
        yield Told(dispatcher, monkeypatch)
        dispatcher.close()
        ledger.check(engine)


class Told:
    """A dispatcher whose own process commits all entries, and a record of its steps: batches wanted, and the result."""

    def __init__(self, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dispatcher, self.signal = dispatcher, dispatcher.signals[Lane.USAGE]
        self.steps: list[tuple[int, Step]] = []
        step = dispatcher.box.store.step

        def noted(*arguments: Any, want: int, **options: Any) -> Step:
            done = step(*arguments, want=want, **options)
            self.steps.append((want, done))
            return done

        monkeypatch.setattr(dispatcher.box.store, "step", noted)

    def deliver(self, *, tell: bool = True, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Deliver an entry to a beacon; ``meanwhile`` is called before its answer."""
        self.put(tell=tell)
        self.steps.clear()
        self.dispatcher.transport = Meanwhile(meanwhile)
        self.dispatcher.run_lane(Lane.USAGE, notified=True)

    def put(self, *, tell: bool = True) -> None:
        self.dispatcher.box.put(interval())  # type: ignore[attr-defined]
        if tell:
            self.signal.notify(entries=True)

    @property
    def looked_after_sending(self) -> bool:
        """Whether the step that settled the delivery claimed more as well."""
        [want] = [want for want, done in self.steps if done.settled.batches and not done.batches]
        return want > 0

    @property
    def delivered(self) -> int:
        return sum(done.settled.sent for _, done in self.steps)


class Meanwhile:
    def __init__(self, does: Callable[[], None]) -> None:
        self._does = [does]

    def send(self, _batch: Batch) -> Receipt:
        while self._does:
            self._does.pop()()
        return DELIVERED


def test_what_was_sent_is_settled_without_a_look_where_all_is_told_of(told: Told) -> None:
    told.deliver()
    assert not told.looked_after_sending
    assert told.delivered == 1


def test_it_looks_where_entries_were_found_that_nobody_told_of(told: Told) -> None:
    told.deliver(tell=False)
    assert told.looked_after_sending


@pytest.mark.parametrize("how", ["early", "other_process"])
def test_it_looks_where_there_may_be_more_than_was_told_of(
    told: Told, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.lanesignal.EXPECTED_SECONDS", 3600)  # however slow the machine is
    told.deliver(meanwhile=lambda: told.signal.notify(entries=False, **{how: True}))
    assert told.looked_after_sending


def test_what_is_told_of_meanwhile_is_claimed_by_whatever_settles(told: Told) -> None:
    told.deliver(meanwhile=told.put)
    assert told.delivered == 2
    assert [(len(done.batches), done.settled.sent) for _, done in told.steps] == [(1, 0), (1, 1), (0, 1)]


def test_what_is_told_of_while_it_is_settled_is_sent_by_the_same_flight(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, late = told.dispatcher.box.store.step, [told.put]

    def settling(*arguments: Any, **options: Any) -> Step:
        done: Step = step(*arguments, **options)
        if done.settled.batches and late:
            late.pop()()
        return done

    monkeypatch.setattr(told.dispatcher.box.store, "step", settling)
    told.deliver()
    assert told.delivered == 2


def test_due_batches_are_not_looked_for_under_the_lock_where_an_outlook_said_that_none_waits(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(flight, "LOOK_DUE_SECONDS", LOOK_DUE_SECONDS)
    for module in (dispatcher, flight):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    looked: list[bool] = []
    step = told.dispatcher.box.store.step

    def noted(*arguments: Any, look_due: bool, **options: Any) -> Step:
        looked.append(look_due)
        done: Step = step(*arguments, look_due=look_due, **options)
        return done

    monkeypatch.setattr(told.dispatcher.box.store, "step", noted)
    for _ in range(5):
        told.deliver()
        now += 0.9 * LOOK_DUE_SECONDS
    looked_first, *later = looked
    assert looked_first is told.dispatcher.box.store.notifies
    assert len(later) >= 4
    assert not any(later)


def test_what_is_above_the_cursor_is_sent_though_the_server_lost_what_the_worker_committed_last(
    told: Told, engine: Engine
) -> None:
    """As after a failover to a lagging standby, or a crash of a server that does not wait for its disk."""
    for _ in range(3):
        told.deliver()
    with engine.connect() as connection:
        before = connection.execute(select(LANE).where(LANE.c.lane == "usage")).mappings().one()
        kept = connection.execute(select(BATCH.c.id)).scalars().all()
    for _ in range(2):
        told.deliver()
    with engine.begin() as connection:
        connection.execute(update(LANE).where(LANE.c.lane == "usage").values(**before))
        connection.execute(delete(BATCH).where(BATCH.c.id.not_in(kept)))
    told.steps.clear()
    told.dispatcher.run_lane(Lane.USAGE, notified=True)
    assert told.delivered == 2


@pytest.mark.parametrize("answers", [AT_ONCE_ANSWERS, AT_ONCE_ANSWERS - 1])
def test_where_beacon_answers_at_once_the_thread_of_the_lane_sends_by_itself(told: Told, answers: int) -> None:
    told.dispatcher.concurrency[Lane.USAGE] = Concurrency(quick=answers)
    threads: list[int] = []
    told.deliver(meanwhile=lambda: threads.append(threading.get_ident()))
    assert told.delivered == 1
    assert (threads == [threading.get_ident()]) is (answers == AT_ONCE_ANSWERS)


def test_who_is_not_told_of_commits_has_others_send(told: Told) -> None:
    told.dispatcher.concurrency[Lane.USAGE] = Concurrency(quick=AT_ONCE_ANSWERS)
    threads: list[int] = []
    told.put()
    told.dispatcher.transport = Meanwhile(lambda: threads.append(threading.get_ident()))
    told.dispatcher.run_lane(Lane.USAGE)
    assert threads
    assert threading.get_ident() not in threads


def test_what_has_landed_is_settled_before_the_thread_of_the_lane_sends_again(told: Told, engine: Engine) -> None:
    """One is on the wire, one is ready, and the answer to the first comes at once."""
    told.dispatcher.box.store.policy = replace(told.dispatcher.box.store.policy, batch_max_rows=2)
    told.dispatcher.concurrency[Lane.USAGE] = Concurrency(quick=AT_ONCE_ANSWERS)
    beacon = told.dispatcher.transport = Beacon()
    for _ in range(3):
        told.put()
    with ThreadPoolExecutor(1) as thread:
        flight = thread.submit(told.dispatcher.run_lane, Lane.USAGE, notified=True)
        first = beacon.left.get(timeout=PATIENCE_SECONDS)
        beacon.answers.put(DELIVERED)
        beacon.left.get(timeout=PATIENCE_SECONDS)
        state = select(BATCH.c.state).where(BATCH.c.id == first.id)
        wait_until(lambda: rows(engine, state) == [("settled",)])
        beacon.answers.put(DELIVERED)
        assert flight.result(PATIENCE_SECONDS).sent == 3


def rows(engine: Engine, query: Select[Any]) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query)]


def test_where_there_is_more_to_send_others_send_it(told: Told) -> None:
    told.dispatcher.box.store.policy = replace(told.dispatcher.box.store.policy, batch_max_rows=1)
    told.dispatcher.concurrency[Lane.USAGE] = Concurrency(limit=2, quick=AT_ONCE_ANSWERS)
    threads: list[int] = []
    told.put()
    told.deliver(meanwhile=lambda: threads.append(threading.get_ident()))
    assert told.delivered == 2
    assert threading.get_ident() not in threads


def test_while_one_is_on_the_wire_others_send(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    send = scene.beacon.send

    def noted(batch: Batch) -> Receipt:
        threads.append(threading.current_thread().name)
        return send(batch)

    monkeypatch.setattr(scene.beacon, "send", noted)
    scene.dispatcher.concurrency[Lane.USAGE] = Concurrency(limit=2, quick=AT_ONCE_ANSWERS)
    scene.commit()
    scene.left()
    [name] = threads
    assert name.startswith("outbox-sender")
    for _ in range(2):
        scene.beacon.answers.put(DELIVERED)
    wait_until(lambda: scene.box.status().lanes["usage"].sent == 2)
    scene.end()


def test_at_a_limited_pace_entries_leave_when_their_time_has_come_whatever_else_is_on_the_wire(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time comes once they are committed, however late a slow machine commits them."""
    now = 1000.0
    for module in (dispatcher, flight):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    told.dispatcher.concurrency[Lane.USAGE] = Concurrency(limit=2)
    told.dispatcher.pace[Lane.USAGE] = Pace(rate=4.0)
    beacon = told.dispatcher.transport = Beacon()
    told.put()
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(told.dispatcher.run_lane, Lane.USAGE, notified=True)
        beacon.left.get(timeout=PATIENCE_SECONDS)
        told.put()
        now += 1 / 4
        beacon.left.get(timeout=PATIENCE_SECONDS)
        beacon.answers.put(DELIVERED)  # to one of the two; the other's does not come
        wait_until(lambda: told.delivered == 1)
        told.put()
        now += 1 / 4
        beacon.left.get(timeout=PATIENCE_SECONDS)
        for _ in range(2):
            beacon.answers.put(DELIVERED)
        wait_until(lambda: told.delivered == 3)
        now += 1 / 4  # of the pace it looks once more before it ends
        assert run.result(PATIENCE_SECONDS).sent == 3
