"""A span processor that writes in groups: what has ended is committed within ``max_delay_millis``, or sooner.

    on_end ──▶ queue ──▶ a thread: max_spans, or max_delay_millis after the first of them ──▶ one commit
                 └─ full: on_end waits for room, at most max_block_millis; then the span is lost, counted and told

A process that is killed, as ``Pool.terminate`` does, loses what ended since the last commit began, and nothing else.
Beacon slows nobody down: only the database can fill the queue, by being away or slower than the spans come.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from weakref import WeakSet

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from outbox.autoreset import AutoResetEvent
from outbox.core.lane import Lane
from outbox.errors import ConfigError, InheritedConnection, InvalidMessage, OutboxError
from outbox.messages.otlp import TelemetryEnvelope
from outbox.otel.envelopes import of_spans
from outbox.producer import Outbox
from outbox.uninstrumented import uninstrumented

logger = logging.getLogger("outbox.otel")

GROUPS_AT_ONCE = 8
"""Times ``max_spans`` that one commit takes at most, when the writer is behind."""
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0
TRIES = 5
"""Of a group, when what fails is not the database's state: it would fail for ever."""
TOLD_EVERY_SECONDS = 10.0


class OutboxSpanProcessor(SpanProcessor):
    """Sampled spans into ``box``, each within one group commit of its end.

    A commit takes what has ended when ``max_spans`` have, or ``max_delay_millis`` after the first of them.
    ``max_queue``: spans that wait at most. When it is full, ``on_end`` waits up to ``max_block_millis`` for room, and
    only then gives the span up; who comes after that does not wait until there was room again. ``dropped`` counts
    what was given up, and the log says so. 0 never waits.
    """

    def __init__(
        self,
        box: Outbox,
        *,
        max_spans: int = 512,
        max_delay_millis: float = 100,
        max_queue: int = 16_384,
        max_block_millis: float = 1000,
    ) -> None:
        if not 0 < max_spans <= max_queue:
            raise ValueError("max_spans must be at least 1, and at most max_queue")
        self._box = box
        self._off = not box.settings.lane_enabled(Lane.TRACES)
        self._max_spans = max_spans
        self._delay = max_delay_millis / 1000
        self._max_queue = max_queue
        self._block = max_block_millis / 1000
        self._closing = False
        self._begin()
        _PROCESSORS.add(self)

    def _begin(self) -> None:
        """As new. In a child process too: what its parent had queued is the parent's, and the thread stayed there."""
        self.dropped = 0
        """Spans given up so far."""
        self._queue: deque[ReadableSpan | AutoResetEvent] = deque()
        """An AutoResetEvent is set when everything before it is settled."""
        self._idle = True
        """The thread waits for a first span, or is not there yet."""
        self._wake = AutoResetEvent()
        self._hurry = self._stuck = False
        self._writing = 0
        """Spans of the group that is being written."""
        self._deadline = math.inf
        """When to give up what the database does not take."""
        self._room_lock = threading.RLock()
        self._room = threading.Condition(self._room_lock)
        """Entered by its lock: between the two steps of its own ``__enter__`` a signal's handler may raise."""
        self._lock = threading.RLock()  # who holds it may be interrupted by a signal's handler that ends a span
        self._thread: threading.Thread | None = None
        self._starting = False
        """A span that a signal's handler ends meanwhile starts no second one."""
        self._told_at = -math.inf

    # --- where spans end ---------------------------------------------------------------------------------

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span. An append, while there is room; never raises."""
        context = span.context
        if self._off or context is None or not context.trace_flags.sampled:
            return
        if self._closing:
            self._drop(1, "they ended after shutdown()")
            return
        if len(self._queue) >= self._max_queue and not self._room_in_time():
            self._drop(1, "the database is away or too slow, and the queue (max_queue) is full")
            return
        self._queue.append(span)
        if self._idle or len(self._queue) >= self._max_spans:  # the thread looks at the queue after it is idle
            self._call_writer()
        if self._closing:  # shutdown() came in between, and its last look may be over
            self._write_all()

    def _room_in_time(self) -> bool:
        self._call_writer()
        if self._stuck or threading.current_thread() is self._thread:
            return False
        with self._room_lock:
            there = self._room.wait_for(lambda: len(self._queue) < self._max_queue or self._closing, self._block)
        self._stuck = not there
        return there

    def _drop(self, spans: int, why: str) -> None:
        with self._lock:
            self.dropped += spans
            told = time.monotonic() < self._told_at + TOLD_EVERY_SECONDS
            if not told:
                self._told_at = time.monotonic()
        if not told:
            logger.error("lane traces: spans are lost, %d so far: %s", self.dropped, why)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Commit what has ended by now; whether that was done in time."""
        if self._off:
            return True
        done = AutoResetEvent()
        self._queue.append(done)
        self._hurry = True
        self._call_writer()
        if self._closing:
            self._write_all()
        return done.wait(timeout_millis / 1000)

    def shutdown(self, timeout_millis: int = 30_000) -> None:
        """Commit what has ended. What is left when the time is over is lost, counted and told."""
        with self._lock:
            if self._closing:
                return
            self._deadline = time.monotonic() + timeout_millis / 1000
            self._closing = True
        self._wake.set()
        with self._room_lock:
            self._room.notify_all()
        if self._thread is None:  # nothing ended, or the interpreter starts no threads any more
            self._write_all()
        else:
            self._thread.join(timeout_millis / 1000)
        if self._writing:
            logger.error("lane traces: shutdown() is over while %d spans are being written", self._writing)
        self._write_all()  # nothing is left, or no time

    # --- the writer --------------------------------------------------------------------------------------

    def _call_writer(self) -> None:
        if self._thread is None:
            self._start()
        self._wake.set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._starting:
                self._starting = True
                try:
                    thread = threading.Thread(target=self._run, name="outbox-spans", daemon=True)
                    thread.start()
                    self._thread = thread
                except RuntimeError:  # the interpreter is on its way out: shutdown() writes
                    return
                finally:
                    self._starting = False

    def _run(self) -> None:
        while not self._closing:
            self._wait_for_group()
            self._write(self._take())
        self._write_all()

    def _write_all(self) -> None:
        """Until the queue is empty or the deadline has passed; what is left then is given up."""
        while taken := self._take():
            if time.monotonic() < self._deadline:
                self._write(taken)
            elif spans := _spans(taken):
                self._drop(len(spans), "shutdown() is over, and the database had not taken them")

    def _wait_for_group(self) -> None:
        self._idle = True
        if not self._queue and not self._closing:
            self._wake.wait()
        self._wake.wait(0)
        self._idle = False
        full_or_old = time.monotonic() + self._delay
        while not (self._closing or self._hurry or len(self._queue) >= self._max_spans):
            left = full_or_old - time.monotonic()
            if left <= 0:
                return
            self._wake.wait(left)  # whoever saw the thread idle may still wake it

    def _take(self) -> list[ReadableSpan | AutoResetEvent]:
        self._hurry = False
        taken: list[ReadableSpan | AutoResetEvent] = []
        with suppress(IndexError):  # empty, for now
            while len(taken) < GROUPS_AT_ONCE * self._max_spans:
                taken.append(self._queue.popleft())
        with self._room_lock:
            self._stuck = False
            self._room.notify_all()
        return taken

    def _write(self, taken: Sequence[ReadableSpan | AutoResetEvent]) -> None:
        if spans := _spans(taken):
            self._writing = len(spans)
            with uninstrumented():
                self._store(spans)
            self._writing = 0
        for each in taken:
            if isinstance(each, AutoResetEvent):
                each.set()

    def _store(self, spans: Sequence[ReadableSpan]) -> None:
        try:
            packed = of_spans(spans)
        except Exception:
            logger.exception("lane traces: spans cannot be written as OTLP")
            self._drop(len(spans), "they cannot be written as OTLP; see above")
            return
        if packed.lost:
            self._drop(packed.lost, "no envelope can hold them; each is named above")
        if packed.items and not self._put(packed.envelopes):
            self._drop(packed.items, "the database did not take them; see above")

    def _put(self, envelopes: Sequence[TelemetryEnvelope]) -> bool:
        """In one transaction, again and again with the same ids, until it holds, never can, or the deadline is over."""
        pause, tries, strange, told_at = FIRST_PAUSE_SECONDS, 0, 0, -math.inf
        while True:
            try:
                self._box.put(*envelopes)
            except Exception as error:
                tries += 1
                known = isinstance(error, OutboxError)
                strange += not known
                never = isinstance(error, InvalidMessage | ConfigError | InheritedConnection)
                now = time.monotonic()
                if now > told_at + TOLD_EVERY_SECONDS:
                    told_at = now
                    state = "cannot" if never else "wait to"
                    logger.error("lane traces: spans %s be stored: %s", state, error, exc_info=None if known else error)
                if never or strange == TRIES or now + pause > self._deadline:
                    return False
            else:
                if tries:
                    logger.info("lane traces: spans are stored again")
                return True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _spans(taken: Sequence[ReadableSpan | AutoResetEvent]) -> list[ReadableSpan]:
    return [each for each in taken if not isinstance(each, AutoResetEvent)]


_PROCESSORS: WeakSet[OutboxSpanProcessor] = WeakSet()


def _begin_in_child() -> None:
    for processor in list(_PROCESSORS):
        processor._begin()
    _drain_where_atexit_is_passed_over()


def _drain_at_exit() -> None:
    for processor in list(_PROCESSORS):
        processor.shutdown()


def _drain_where_atexit_is_passed_over() -> None:
    """A child that multiprocessing forks ends by ``os._exit``, after the finalizers of ``multiprocessing.util``.

    It begins by forgetting those it was forked with, and then does what was registered for after a fork. A child of a
    forkserver is past that when it imports this. To drain twice is nothing.
    """
    util = sys.modules.get("multiprocessing.util")
    if util is not None:  # a host that has no use for multiprocessing does not load it for this

        def finalize(_: object) -> None:
            util.Finalize(None, _drain_at_exit, exitpriority=_AFTER_ALL_OTHERS)

        finalize(None)
        util.register_after_fork(_PROCESSORS, finalize)


_AFTER_ALL_OTHERS = -100
"""Spans may end in the host's finalizers, and in its child processes, which are waited for before."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
atexit.register(_drain_at_exit)
_drain_where_atexit_is_passed_over()
