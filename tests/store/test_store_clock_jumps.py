"""The database's clock is ahead for a while: nothing young is purged or shed for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from outbox import Outbox
from outbox.boottime import boottime
from outbox.core.lane import Lane
from outbox.core.policy import MICROSECONDS, Bounds, Retention
from outbox.core.steady import STANDS_SECONDS, TOLERANCE
from outbox.store import age
from tests.store.driving import Worker, usage
from tests.support.databases import Database
from tests.support.jumping_clock import JumpingClock

MONTH = 31 * 86_400.0
KEEP_A_MONTH = Retention(sent_seconds=30 * 86_400, receipts_seconds=90 * 86_400, max_bytes=2**30, at_least_seconds=3600)
KEEP_AN_HOUR = Retention(sent_seconds=30 * 86_400, receipts_seconds=90 * 86_400, max_bytes=0, at_least_seconds=3600)
KEEP_SMALL = Retention(sent_seconds=30 * 86_400, receipts_seconds=90 * 86_400, max_bytes=0, at_least_seconds=0)
A_DAY = Bounds(entries=1_000_000, size=1_000_000_000, age_seconds=86_400)


@pytest.fixture
def worker(box: Outbox) -> Worker:
    """By the clock of the database."""
    return by_the_database(Worker(box))


@pytest.fixture
def tracer(box: Outbox) -> Worker:
    return by_the_database(Worker(box, Lane.TRACES))


def by_the_database(worker: Worker) -> Worker:
    worker.box.store.clock = None
    return worker


@pytest.fixture
def clock(box: Outbox) -> JumpingClock:
    return JumpingClock(box.engine)


@pytest.fixture
def an_hour_goes_by(clock: JumpingClock, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """For this host and for the database."""

    def go_on() -> None:
        clock.ahead += STANDS_SECONDS
        monkeypatch.setattr(age, "boottime", lambda: boottime() + STANDS_SECONDS)

    return go_on


def test_what_was_sent_a_moment_ago_is_not_purged_so_its_id_is_not_new_again(
    worker: Worker, clock: JumpingClock
) -> None:
    messages = [usage() for _ in range(3)]
    worker.box.put(*messages)
    worker.deliver_all()
    assert worker.purge(KEEP_A_MONTH) == 0
    clock.ahead = MONTH
    assert worker.purge(KEEP_A_MONTH) == 0
    clock.ahead = 0
    assert worker.purge(KEEP_A_MONTH) == 0
    assert worker.box.put(*messages).duplicates == 3


def test_usage_is_kept_for_its_hour_whatever_room_it_takes(worker: Worker, clock: JumpingClock) -> None:
    worker.put(3)
    worker.deliver_all()
    assert worker.purge(KEEP_AN_HOUR) == 0
    clock.ahead = 2 * 3600
    assert worker.purge(KEEP_AN_HOUR) == 0


def test_a_clock_that_stands_where_it_jumped_to_for_an_hour_is_right(
    worker: Worker, clock: JumpingClock, an_hour_goes_by: Callable[[], None]
) -> None:
    worker.put(3)
    worker.deliver_all()
    worker.purge(KEEP_A_MONTH)
    clock.ahead = MONTH
    assert worker.purge(KEEP_A_MONTH) == 0
    an_hour_goes_by()
    assert worker.purge(KEEP_A_MONTH) == 3


def test_receipts_are_kept_too(worker: Worker, clock: JumpingClock) -> None:
    worker.put(3)
    worker.deliver_all()
    at_once = Retention(sent_seconds=0, receipts_seconds=86_400, max_bytes=2**30, at_least_seconds=0)
    assert worker.purge(at_once) == 3
    clock.ahead = MONTH
    worker.purge(at_once)
    assert len(worker.batches()) == 1


def test_telemetry_that_was_sent_gives_its_room_back_though_the_clock_is_wrong(
    tracer: Worker, clock: JumpingClock
) -> None:
    """By its size, which no clock changes."""
    tracer.put(3)
    clock.ahead = MONTH
    tracer.deliver_all()
    assert tracer.purge(KEEP_SMALL) == 3


def test_traces_that_are_seconds_old_are_not_shed(tracer: Worker, clock: JumpingClock) -> None:
    tracer.put(5)
    store = tracer.box.store
    assert store.keep_within(tracer.lane, A_DAY) == 0
    clock.ahead = 2 * 86_400
    assert store.keep_within(tracer.lane, A_DAY) == 0
    assert store.keep_within(tracer.lane, replace(A_DAY, entries=3)) == 2, "its other bounds hold"


def test_traces_are_shed_for_their_age_once_the_clock_is_known_to_be_right(
    tracer: Worker, clock: JumpingClock, an_hour_goes_by: Callable[[], None]
) -> None:
    tracer.put(5)
    store = tracer.box.store
    clock.ahead = 2 * 86_400
    assert store.keep_within(tracer.lane, A_DAY) == 0
    an_hour_goes_by()
    assert store.keep_within(tracer.lane, A_DAY) == 5


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_process_that_starts_during_the_jump_knows_it_by_the_clock_of_its_host(
    worker: Worker, database: Database
) -> None:
    worker.put(3)
    worker.deliver_all()
    with Outbox(database.url, settings=worker.box.settings) as later:
        JumpingClock(later.engine).ahead = MONTH
        assert later.store.purge(Lane.USAGE, KEEP_A_MONTH) == 0


def test_a_jump_is_told_once_and_its_end_too(
    worker: Worker, clock: JumpingClock, caplog: pytest.LogCaptureFixture
) -> None:
    def told(words: str) -> int:
        return sum(words in record.getMessage() for record in caplog.records)

    clock.ahead = MONTH
    for _ in range(3):
        worker.purge(KEEP_A_MONTH)
    [seconds] = re.findall(r"the clock of the database is (\d+) s ahead", caplog.text)
    assert MONTH - TOLERANCE / MICROSECONDS < int(seconds) <= MONTH, "less what its reading took"
    clock.ahead = 0
    for _ in range(3):
        worker.purge(KEEP_A_MONTH)
    assert told("by the clock of the database again") == 1
    assert len(caplog.records) == 2
