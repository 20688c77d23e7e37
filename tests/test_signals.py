"""A signal handler may run between any two steps of a put: it puts too, or raises, as a time limit does.

A trace function stands in for the handler: it is called between two steps as well, and at each of them in turn.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from itertools import count
from types import FrameType
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine

from outbox import Outbox, Settings
from outbox.autoreset import AutoResetEvent
from outbox.core.lane import Lane
from outbox.lanesignal import LaneSignal
from outbox.otel import OutboxSpanProcessor, SlowOrFailedSpanProcessor
from outbox.producer_privacy import Door
from outbox.store.wake import Announcer
from tests.otel.spanning import ended

PATIENCE_SECONDS = 60.0
EVERY_STEP = frozenset({"call", "opcode", "return"})
BETWEEN_FUNCTIONS = frozenset({"call", "return"})
"""Only where Python itself may call a handler: not between the acquisition of a ``with`` block's lock and its body,
where an exception would leave the lock held."""


class SoftTimeLimit(BaseException):
    """The exception of Celery's soft time limit."""


def raises() -> None:
    raise SoftTimeLimit


def ends(act: Callable[[], object], why: str = "it waits for ever") -> None:
    """Assert that ``act`` returns, in a daemon thread that the test may leave behind."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive(), why


def interrupted(act: Callable[[], object], handler: Callable[[], object], at: int, steps: frozenset[str]) -> bool:
    """Assert that ``act`` ends when ``handler`` runs before its step ``at``. False: ``act`` has fewer steps."""
    left = at

    def step(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal left
        frame.f_trace_opcodes = True
        if event in steps:
            left -= 1
            if left == -1:
                handler()
        return step

    def acting() -> None:
        sys.settrace(step)
        try:
            act()
        except SoftTimeLimit:
            pass
        finally:
            sys.settrace(None)

    ends(acting, f"it waits for itself: the handler came before step {at}")
    return left < 0


def at_each_step(act: Callable[[], object], handler: Callable[[], object], steps: frozenset[str] = EVERY_STEP) -> int:
    """Interrupt ``act`` at each of its steps in turn; the number of steps."""
    return next(at for at in count() if not interrupted(act, handler, at, steps))


def test_a_handler_may_tell_of_a_commit_at_any_step_of_who_tells_of_one() -> None:
    news = LaneSignal()
    tell = lambda: news.notify(entries=True)  # noqa: E731 - as the two who do it
    assert at_each_step(tell, tell) > 10
    ends(lambda: news.wait(None))
    assert news.entries


def test_where_a_handler_raised_while_it_was_told_of_a_commit_others_tell_of_theirs() -> None:
    """Whatever step it raised at, the lane is notified of the next commit."""
    news = LaneSignal()
    assert at_each_step(lambda: news.notify(entries=True), raises) > 10
    news.take()
    ends(lambda: news.notify(entries=True))
    ends(lambda: news.wait_for_entries(PATIENCE_SECONDS / 2))
    assert news.entries


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("handler", ["puts", "raises"])
def test_a_handler_may_come_at_any_step_of_who_announces_a_commit(box: Outbox, engine: Engine, handler: str) -> None:
    announcer = Announcer(box.store.database)
    announce = lambda: announcer({Lane.USAGE})  # noqa: E731 - as the two who do it
    announce()  # so that its thread is there
    if handler == "puts":
        assert at_each_step(announce, announce) > 10
    else:
        assert at_each_step(announce, raises, BETWEEN_FUNCTIONS) > 3
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        driver.autocommit = True
        driver.execute("LISTEN outbox")
        ends(announce)
        # Its thread may have had one of those before still to tell: then two arrive together.
        assert {told.payload for told in driver.notifies(timeout=60, stop_after=1)} == {"outbox_usage"}
    ends(announcer.close)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("handler", ["ends a span", "raises"])
def test_a_handler_may_come_at_any_step_of_who_ends_a_span(box: Outbox, handler: str) -> None:
    """The queue is full, so that the span is dropped and counted: that path uses all the state shared with the writing
    thread."""
    [span] = ended("order")
    processor = OutboxSpanProcessor(box, max_spans=1, max_queue=1, max_block_millis=0)
    end = lambda: processor.on_end(span)  # noqa: E731 - as the two who do it
    end()  # so that its thread is there
    assert processor.force_flush()
    if handler == "raises":
        assert at_each_step(end, raises, BETWEEN_FUNCTIONS) > 3
    else:
        assert at_each_step(end, end) > 10
    ends(processor.force_flush)
    ends(processor.shutdown)
    assert box.status().lanes["traces"].pending


@pytest.mark.parametrize("handler", ["ends spans", "raises"])
def test_a_handler_may_come_at_any_step_of_who_ends_a_span_that_is_selected(handler: str) -> None:
    kept = InMemorySpanExporter()
    selection = SlowOrFailedSpanProcessor(kept, 0)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(selection)
    tracer = provider.get_tracer("tests")
    request = lambda: tracer.start_span("request", Context(), start_time=0).end()  # noqa: E731 - as the two who do it
    if handler == "raises":
        assert at_each_step(request, raises, BETWEEN_FUNCTIONS) > 10
    else:
        steps = at_each_step(request, request, BETWEEN_FUNCTIONS)
        assert len(kept.get_finished_spans()) == selection.kept == 2 * steps + 1
    ends(request)
    assert kept.get_finished_spans()


@pytest.mark.parametrize("handler", ["counts", "raises"])
def test_a_handler_may_come_at_any_step_of_who_counts_what_was_taken_out(handler: str) -> None:
    door = Door(Settings())
    count_one = lambda: door._count(Lane.LOGS, {("log", "user.name", "key"): 1})  # noqa: E731 - as the two who do it
    if handler == "raises":
        assert at_each_step(count_one, raises, BETWEEN_FUNCTIONS) > 3
    else:
        assert at_each_step(count_one, count_one) > 10
    ends(count_one)
    assert sum(door.unsaved.values())


def test_a_bell_that_many_ring_is_waited_for_once_and_does_not_grow() -> None:
    event = AutoResetEvent()
    for _ in range(1000):
        event.set()
    assert event._signals.qsize() == 1
    assert event.wait(0)
    assert not event.wait(0)
    assert not event.wait(-1), "the time was over before it began"


def test_who_waits_for_a_bell_hears_it_in_another_thread() -> None:
    event = AutoResetEvent()
    waiting = threading.Thread(target=event.wait, daemon=True)
    waiting.start()
    event.set()
    waiting.join(PATIENCE_SECONDS)
    assert not waiting.is_alive()
    assert not event.is_set()
