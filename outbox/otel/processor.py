"""A span processor with group commits: a span is committed within ``max_delay_millis`` of its end, or sooner.

    on_end ──▶ queue ──▶ a thread: max_spans, or max_delay_millis after the first of them ──▶ one commit
                 └─ full: on_end waits for room, at most max_block_millis; then the span is lost, counted and logged

A process that is killed, as ``Pool.terminate`` does, loses the spans that ended since the last commit began, and no
others. Beacon never slows the application down: the queue fills only if the database is unavailable or too slow.
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
"""Limit of one commit when the writer is behind, as a multiple of ``max_spans``."""
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0
TRIES = 5
"""Tries of a group that fails with an unknown error, which would probably be repeated for ever."""
LOG_EVERY_SECONDS = 10.0


class OutboxSpanProcessor(SpanProcessor):
    """Writes sampled spans into ``box`` in group commits.

    A commit starts when ``max_spans`` spans have ended, or ``max_delay_millis`` after the first of them. ``max_queue``
    limits the waiting spans. When the queue is full, ``on_end`` waits up to ``max_block_millis`` for room (0: not at
    all) and then drops the span; further spans are dropped without a wait until there is room again. ``dropped``
    counts them, and the log reports them.
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
        """Set the initial state. Also called in a forked child: the queue and the thread belong to its parent."""
        self.dropped = 0
        """Spans dropped so far."""
        self._queue: deque[ReadableSpan | AutoResetEvent] = deque()
        """Spans to be written. An AutoResetEvent in it is set when everything before it is written or dropped."""
        self._idle = True
        """The thread waits for a first span, or has not started yet."""
        self._wake = AutoResetEvent()
        self._hurry = self._stuck = False
        self._writing = 0
        """Number of spans in the group that is being written."""
        self._deadline = math.inf
        """Monotonic time after which spans that cannot be stored are dropped; set by ``shutdown``."""
        self._room_lock = threading.RLock()
        self._room = threading.Condition(self._room_lock)
        """Entered by ``_room_lock``: between the two steps of its own ``__enter__`` a signal handler may raise."""
        self._lock = threading.RLock()  # reentrant: its holder may be interrupted by a signal handler that ends a span
        self._thread: threading.Thread | None = None
        self._starting = False
        """A thread is being started. A span that a signal handler ends meanwhile must not start a second one."""
        self._logged_at = -math.inf

    # --- where spans end ---------------------------------------------------------------------------------

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span; a plain append while there is room. Never raises."""
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
        if self._idle or len(self._queue) >= self._max_spans:  # the thread sets _idle first and then checks the queue
            self._call_writer()
        if self._closing:  # shutdown() ran meanwhile and may have taken the queue already
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
            logged_lately = time.monotonic() < self._logged_at + LOG_EVERY_SECONDS
            if not logged_lately:
                self._logged_at = time.monotonic()
        if not logged_lately:
            logger.error("lane traces: spans are lost, %d so far: %s", self.dropped, why)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Commit the spans that have ended. Returns whether that was done in time."""
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
        """Commit the spans that have ended. Spans that are left after the timeout are lost, counted and logged."""
        with self._lock:
            if self._closing:
                return
            self._deadline = time.monotonic() + timeout_millis / 1000
            self._closing = True
        self._wake.set()
        with self._room_lock:
            self._room.notify_all()
        if self._thread is None:  # no span has ended, or the interpreter does not start threads any more
            self._write_all()
        else:
            self._thread.join(timeout_millis / 1000)
        if self._writing:
            logger.error("lane traces: shutdown() is over while %d spans are being written", self._writing)
        self._write_all()  # does nothing unless spans are left; after the deadline it drops them

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
                except RuntimeError:  # the interpreter is shutting down: shutdown() writes
                    return
                finally:
                    self._starting = False

    def _run(self) -> None:
        while not self._closing:
            self._wait_for_group()
            self._write(self._take())
        self._write_all()

    def _write_all(self) -> None:
        """Write until the queue is empty. After the deadline the rest is dropped."""
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
            self._wake.wait(left)  # a late wake-up by a caller that saw _idle is possible

    def _take(self) -> list[ReadableSpan | AutoResetEvent]:
        self._hurry = False
        taken: list[ReadableSpan | AutoResetEvent] = []
        with suppress(IndexError):  # the queue is empty
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
        """Store the envelopes in one transaction. Retries with the same ids until it succeeds, cannot succeed, or the
        deadline has passed. Returns whether they are stored."""
        pause, tries, strange, logged_at = FIRST_PAUSE_SECONDS, 0, 0, -math.inf
        while True:
            try:
                self._box.put(*envelopes)
            except Exception as error:
                tries += 1
                known = isinstance(error, OutboxError)
                strange += not known
                never = isinstance(error, InvalidMessage | ConfigError | InheritedConnection)
                now = time.monotonic()
                if now > logged_at + LOG_EVERY_SECONDS:
                    logged_at = now
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
    """Register the drain as a finalizer of ``multiprocessing.util``.

    A child that multiprocessing forks runs those finalizers and then ends with ``os._exit``, which skips atexit.

    Such a child first clears the finalizers that it inherited and then calls what was registered with
    ``register_after_fork``. A child of a forkserver imports this module later than that, so the finalizer is registered
    here too. Draining twice is harmless.
    """
    util = sys.modules.get("multiprocessing.util")
    if util is not None:  # do not import multiprocessing for an application that does not use it

        def finalize(_: object) -> None:
            util.Finalize(None, _drain_at_exit, exitpriority=_AFTER_ALL_OTHERS)

        finalize(None)
        util.register_after_fork(_PROCESSORS, finalize)


_AFTER_ALL_OTHERS = -100
"""Low priority: spans may end in other finalizers and in child processes, which are joined before."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
atexit.register(_drain_at_exit)
_drain_where_atexit_is_passed_over()
