"""The durable span processor: group commits, a full queue, drains, forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from outbox import Outbox
from outbox.errors import DatabaseUnavailable, OutcomeUnknown
from outbox.otel import OutboxSpanProcessor
from tests.otel import stored
from tests.otel.conftest import OpenBox
from tests.otel.spanning import ended, tracing
from tests.support.waiting import wait_until

NEVER = 3_600_000.0
"""Milliseconds; so long that no group is committed because of its age."""


class Gate:
    """Wraps ``box.put``: blocks every commit while it is shut, and counts them."""

    def __init__(self, box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commits: list[int] = []
        self.errors: list[Exception] = []
        """Exceptions that are raised instead of commits, one for each."""
        self.arrived = threading.Event()
        self._open = threading.Event()
        self._open.set()
        self._put: Callable[..., Any] = box.put
        monkeypatch.setattr(box, "put", self)

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def __call__(self, *messages: Any, **options: Any) -> Any:
        self.arrived.set()
        assert self._open.wait(30)
        self.commits.append(len(messages))
        if self.errors:
            raise self.errors.pop(0)
        return self._put(*messages, **options)


@pytest.fixture
def gate(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(box, monkeypatch)


def test_a_span_is_committed_soon_after_it_ended(box: Outbox) -> None:
    with tracing(OutboxSpanProcessor(box)) as tracer:
        tracer.start_span("order").end()
        wait_until(lambda: stored.names(box) == ["order"])


def test_a_full_group_is_committed_without_waiting_for_the_delay(box: Outbox) -> None:
    processor = OutboxSpanProcessor(box, max_spans=3, max_delay_millis=NEVER)
    with tracing(processor) as tracer:
        for name in "abc":
            tracer.start_span(name).end()
        wait_until(lambda: stored.names(box) == ["a", "b", "c"])
    assert box.status().lanes["traces"].pending == 1


def test_what_ends_during_a_commit_is_the_next_group(box: Outbox, gate: Gate) -> None:
    with tracing(OutboxSpanProcessor(box, max_spans=1, max_delay_millis=NEVER, max_queue=100)) as tracer:
        gate.shut()
        tracer.start_span("a").end()
        assert gate.arrived.wait(30)
        for name in "bcd":
            tracer.start_span(name).end()
        gate.open()
        wait_until(lambda: stored.names(box) == ["a", "b", "c", "d"])
    assert len(gate.commits) == 2


def test_a_flush_returns_when_what_ended_before_it_is_committed(box: Outbox) -> None:
    processor = OutboxSpanProcessor(box, max_delay_millis=NEVER)
    with tracing(processor) as tracer:
        tracer.start_span("a").end()
        assert processor.force_flush()
        assert stored.names(box) == ["a"]


def test_a_flush_that_takes_too_long_says_so(box: Outbox, gate: Gate) -> None:
    processor = OutboxSpanProcessor(box, max_delay_millis=NEVER)
    with tracing(processor) as tracer:
        gate.shut()
        tracer.start_span("a").end()
        assert not processor.force_flush(1)
        gate.open()
        assert processor.force_flush()


def test_a_shutdown_commits_what_has_ended(box: Outbox) -> None:
    with tracing(OutboxSpanProcessor(box, max_delay_millis=NEVER)) as tracer:
        for name in "ab":
            tracer.start_span(name).end()
    assert stored.names(box) == ["a", "b"]


def test_a_span_that_ends_after_shutdown_is_counted_and_told(box: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    processor = OutboxSpanProcessor(box)
    processor.shutdown()
    processor.on_end(ended("late")[0])
    assert processor.dropped == 1
    assert "spans are lost, 1 so far: they ended after shutdown()" in caplog.text


def test_a_span_that_is_not_sampled_is_not_stored(box: Outbox) -> None:
    processor = OutboxSpanProcessor(box)
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(processor)
    provider.get_tracer("shop").start_span("a").end()
    processor.on_end(ended("b")[0])
    provider.shutdown()
    assert stored.names(box) == ["b"]


def test_a_full_queue_lets_the_application_wait_and_loses_nothing(box: Outbox, gate: Gate) -> None:
    processor = OutboxSpanProcessor(box, max_spans=1, max_queue=2, max_block_millis=60_000)
    with tracing(processor) as tracer:
        gate.shut()
        tracer.start_span("taken").end()
        assert gate.arrived.wait(30)
        for name in "ab":
            tracer.start_span(name).end()
        waiting = threading.Thread(target=lambda: tracer.start_span("c").end())
        waiting.start()
        wait_until(lambda: bool(processor._room._waiters))  # type: ignore[attr-defined]
        gate.open()
        waiting.join(30)
    assert processor.dropped == 0
    assert stored.names(box) == ["taken", "a", "b", "c"]


def test_what_finds_no_room_in_time_is_counted_and_told_once(
    box: Outbox, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    processor = OutboxSpanProcessor(box, max_spans=1, max_queue=1, max_block_millis=1)
    with tracing(processor) as tracer:
        gate.shut()
        tracer.start_span("taken").end()
        assert gate.arrived.wait(30)
        for name in "abcd":
            tracer.start_span(name).end()
        gate.open()
    assert processor.dropped == 3
    assert stored.names(box) == ["taken", "a"]
    assert caplog.text.count("spans are lost, 1 so far: the database is away or too slow") == 1


def test_after_one_wait_in_vain_nobody_waits_until_there_was_room(
    box: Outbox, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = OutboxSpanProcessor(box, max_spans=1, max_queue=1, max_block_millis=1)
    waits: list[float] = []
    with tracing(processor) as tracer:
        gate.shut()
        tracer.start_span("taken").end()
        assert gate.arrived.wait(30)
        wait_for = processor._room.wait_for
        monkeypatch.setattr(processor._room, "wait_for", lambda *args: waits.append(args[1]) or wait_for(*args))
        for name in "abcd":
            tracer.start_span(name).end()
        gate.open()
    assert waits == [0.001]


@pytest.mark.parametrize("error", [DatabaseUnavailable("it is away"), OutcomeUnknown("COMMIT failed")])
def test_a_group_that_the_database_did_not_take_is_tried_again_with_the_same_ids(
    box: Outbox, gate: Gate, error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.otel.processor.LOG_EVERY_SECONDS", 3600)  # however slow the machine is
    caplog.set_level("INFO", "outbox.otel")
    processor = OutboxSpanProcessor(box)
    with tracing(processor) as tracer:
        gate.errors = [error, error]
        tracer.start_span("a").end()
        wait_until(lambda: stored.names(box) == ["a"])
    assert gate.commits == [1, 1, 1]
    assert processor.dropped == 0
    assert caplog.text.count(f"spans wait to be stored: {error}") == 1
    assert "spans are stored again" in caplog.text


def test_a_commit_that_held_although_it_failed_is_not_stored_twice(
    box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, tries = box.put, []

    def held(*messages: Any) -> Any:
        tries.append(messages)
        result = put(*messages)
        if len(tries) == 1:
            raise OutcomeUnknown("the connection was lost at COMMIT")
        return result

    monkeypatch.setattr(box, "put", held)
    with tracing(OutboxSpanProcessor(box)) as tracer:
        tracer.start_span("a").end()
        wait_until(lambda: len(tries) == 2)
    assert stored.names(box) == ["a"]


def test_a_shutdown_gives_up_in_time_and_tells_what_is_lost(
    box: Outbox, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    processor = OutboxSpanProcessor(box, max_spans=1, max_queue=100)
    gate.errors = [DatabaseUnavailable("it is away")] * 1000
    for span in ended("a", "b", "c"):
        processor.on_end(span)
    processor.shutdown(100)
    wait_until(lambda: not processor._thread.is_alive())  # type: ignore[union-attr]
    assert processor.dropped == 3
    assert "spans are lost" in caplog.text


def test_a_fault_of_the_program_does_not_stop_the_writer(
    box: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    processor = OutboxSpanProcessor(box)
    with monkeypatch.context() as broken:
        broken.setattr("outbox.otel.processor.of_spans", None)
        processor.on_end(ended("a")[0])
        wait_until(lambda: processor.dropped == 1)
    processor.on_end(ended("b")[0])
    processor.shutdown()
    assert stored.names(box) == ["b"]
    assert "they cannot be written as OTLP" in caplog.text


@pytest.mark.parametrize("off", [{"telemetry_traces": False}, {"offline": True}])
def test_a_lane_that_is_off_is_not_even_queued(open_box: OpenBox, off: dict[str, bool]) -> None:
    box = open_box(**off)
    processor = OutboxSpanProcessor(box, max_delay_millis=NEVER)
    processor.on_end(ended("a")[0])
    assert (len(processor._queue), processor._thread, processor.dropped) == (0, None, 0)
    assert processor.force_flush()
    processor.shutdown()
    assert box.status().unfinished == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_has_a_queue_and_a_thread_of_its_own_and_its_parent_keeps_its_own(box: Outbox) -> None:
    processor = OutboxSpanProcessor(box, max_delay_millis=NEVER)
    processor.on_end(ended("of the parent")[0])
    wait_until(lambda: processor._thread is not None and not processor._idle)
    child = os.fork()
    if child == 0:
        left = list(processor._queue)
        processor.on_end(ended("of the child")[0])
        flushed = processor.force_flush()
        os._exit(0 if flushed and not left else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert stored.names(box) == ["of the child"]
    processor.shutdown()
    assert sorted(stored.names(box)) == ["of the child", "of the parent"]


AT_EXIT = """
from opentelemetry.sdk.trace import TracerProvider
from outbox import Outbox, Settings
from outbox.otel import OutboxSpanProcessor

box = Outbox(settings=Settings(database_url={url!r}))
provider = TracerProvider(shutdown_on_exit={by_provider})
provider.add_span_processor(OutboxSpanProcessor(box, max_delay_millis=3_600_000))
provider.get_tracer("shop").start_span("last words").end()
"""


@pytest.mark.parametrize("by_provider", [True, False])
def test_a_process_that_ends_commits_what_has_ended(box: Outbox, by_provider: bool) -> None:
    program = AT_EXIT.format(url=box.settings.database_url, by_provider=by_provider)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert stored.names(box) == ["last words"]


IMPORT = "from outbox.otel import OutboxSpanProcessor"
IN_A_CHILD = """
import multiprocessing
import sys

from opentelemetry.sdk.trace import TracerProvider
from outbox import Outbox, Settings
{above}

def traced(name):
    {within}
    provider = TracerProvider()
    box = Outbox(settings=Settings(database_url=sys.argv[1]))
    provider.add_span_processor(OutboxSpanProcessor(box, max_delay_millis=3_600_000))
    return lambda: provider.get_tracer("shop").start_span(name).end()

def work():
    (inherited or traced("last words"))()

inherited = None
if __name__ == "__main__":
    if sys.argv[2] == "fork":
        inherited = traced("last words")
    child = multiprocessing.get_context(sys.argv[2]).Process(target=work)
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""


@pytest.mark.parametrize("imported", ["above", "within"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_process_of_multiprocessing_that_ends_commits_what_has_ended(
    box: Outbox, tmp_path: Path, method: str, imported: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(IN_A_CHILD.format(**{"above": "", "within": "", imported: IMPORT}))
    line = [sys.executable, str(program), str(box.settings.database_url), method]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert stored.names(box) == ["last words"]


FINALIZERS_LAST = """
import multiprocessing
from multiprocessing.util import Finalize

from opentelemetry.sdk.trace import TracerProvider
from outbox import Outbox, Settings
from outbox.otel import OutboxSpanProcessor

provider = TracerProvider()
provider.add_span_processor(OutboxSpanProcessor(Outbox(settings=Settings(database_url={url!r}))))
say = lambda name: provider.get_tracer("shop").start_span(name).end()
fork = multiprocessing.get_context("fork")

def work():
    Finalize(None, say, ["of a finalizer"], exitpriority=-50)
    fork.Process(target=say, args=["of a grandchild"]).start()

child = fork.Process(target=work)
child.start()
child.join()
"""


def test_what_ends_in_the_finalizers_and_children_of_a_process_of_multiprocessing_is_committed(box: Outbox) -> None:
    program = FINALIZERS_LAST.format(url=box.settings.database_url)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(stored.names(box)) == ["of a finalizer", "of a grandchild"]


def test_a_host_without_multiprocessing_does_not_load_it_for_spans() -> None:
    program = """
import os, sys
import outbox.otel.processor

child = os.fork()
assert "multiprocessing" not in sys.modules
assert child == 0 or os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


@pytest.mark.parametrize(("spans", "queue"), [(0, 1), (2, 1)])
def test_sizes_that_make_no_sense_are_refused(box: Outbox, spans: int, queue: int) -> None:
    with pytest.raises(ValueError, match="max_spans must be at least 1, and at most max_queue"):
        OutboxSpanProcessor(box, max_spans=spans, max_queue=queue)
