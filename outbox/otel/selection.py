"""Tail sampling: the traces of slow and of failed requests are kept, whole.

    root starts ──▶ open ──root ends──▶ decided ──▶ kept: spans are passed on  forgotten after ``remember`` others
                     │ ▲                   │  ▲     dropped: counted
                     │ └ spans end: held   │  └ late spans follow the decision
                     └── evicted (too many open), expired (too old), shut down: decided by what is known

A local root is a span whose parent is remote, unknown or absent. Two requests of one remote trace are two local roots,
each with a decision of its own.

A trace is kept when its root took longer than the threshold, or when it failed: any of its spans has status ERROR, or
its root answered 500 or above. A trace that is decided early is kept if it has failed by then or has been open for
longer than the threshold: the spans that have ended are passed on, and the others follow as they end.

The SDK accepts any object as a time. A root with a time that is not a number does not count as slow.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from math import nan
from weakref import WeakSet

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode

from outbox.errors import ConfigError
from outbox.otel.slowness import Percentile, slowness
from outbox.uninstrumented import uninstrumented

logger = logging.getLogger("outbox.otel")

Spans = Sequence[ReadableSpan]

_STATUS_CODES = ("http.response.status_code", "http.status_code")
"""The attribute's name in the stable HTTP conventions, and its name before them."""


class _Trace:
    """The state of one local root."""

    __slots__ = ("ended", "failed", "id", "kept", "live", "opened", "root", "root_id")

    def __init__(self, root: Span, opened: float) -> None:
        self.root: Span | None = root
        self.id, self.root_id = root.context.trace_id, root.context.span_id
        self.opened = opened
        self.ended: list[ReadableSpan] = []
        self.live: set[int] = set()
        """Span ids that have started and not ended."""
        self.failed = False
        self.kept: bool | None = None
        """The decision; None: not yet."""


class SlowOrFailedSpanProcessor(SpanProcessor):
    """Passes the spans of slow and failed traces on to ``next``, a span processor or exporter, and drops the others.

    threshold: seconds, or a ``Percentile`` of each route (``http.route`` of the root, else its name).
    max_traces: limit of open traces; beyond it the oldest is evicted. max_spans: limit of the spans held of a trace,
    besides its root; more are dropped. max_age: seconds after which a trace whose root has not ended expires; it is
    checked when another trace begins. remember: number of decisions that are remembered for late spans.
    clock: monotonic seconds.

    An exporter gets a trace in one call, in the thread that ended its root. ``next`` receives ``on_end`` only: a
    processor that adds attributes when a span starts must be added to the provider itself. After a fork the child
    starts empty. Raises ``ConfigError`` for a limit that is not above 0.
    """

    def __init__(
        self,
        next: SpanProcessor | SpanExporter,
        threshold: float | Percentile = 1.0,
        *,
        max_traces: int = 1000,
        max_spans: int = 200,
        max_age: float = 600.0,
        remember: int = 5000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        bounds = {"max_traces": max_traces, "max_spans": max_spans, "max_age": max_age, "remember": remember}
        for name, bound in bounds.items():
            if bound <= 0:
                raise ConfigError(f"SlowOrFailedSpanProcessor: {name} is {bound}; it is above 0")
        self._next = next
        self._threshold = threshold
        self._max_traces, self._max_spans, self._max_age, self._remember = max_traces, max_spans, max_age, remember
        self._clock = clock
        self._closed = False
        self._begin()
        _PROCESSORS.add(self)

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._changing = False
        self._late: deque[Callable[[], Sequence[Spans]]] = deque()
        """Changes by which the thread that is changing was interrupted."""
        self._slowness = slowness(self._threshold)
        self._open: OrderedDict[int, _Trace] = OrderedDict()
        """Open traces by the span id of the root, the oldest first."""
        self._trace_of: dict[int, _Trace] = {}
        """The trace of each span that has started and not ended, by span id."""
        self._latest: dict[int, _Trace] = {}
        """The latest trace of each trace id, for a span that starts after its parent has ended."""
        self._decided: deque[_Trace] = deque()
        self.kept = 0
        """Traces passed on."""
        self.dropped = 0
        """Traces not passed on."""
        self.evicted = 0
        """Traces, of ``kept`` and ``dropped``, that were decided early because too many were open."""
        self.expired = 0
        """Traces, of ``kept`` and ``dropped``, that were decided early because the root did not end in time."""
        self.spans_cut = 0
        """Spans dropped because of ``max_spans``."""
        self.strays = 0
        """Spans dropped because their trace is not remembered any more."""
        self.undelivered = 0
        """Traces that ``next`` did not accept completely; the log says why."""
        self.unjudged = 0
        """Traces whose root could not be read; kept if they had failed before. The log says why, for the first."""
        self._to_log: Exception | None = None
        """The error of the first of these, until it is logged outside the lock."""

    # --- what the SDK calls ------------------------------------------------------------------------------

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self._closed:
            return
        self._change(lambda: self._started(span))

    def on_end(self, span: ReadableSpan) -> None:
        """Never raises: an exception would reach the application."""
        if not self._closed and span.context is not None:
            self._change(lambda: (self._ended(span),))

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush what was passed on. Open traces stay open."""
        return self._next.force_flush(timeout_millis) is not False

    def shutdown(self) -> None:
        """Decide the open traces by what is known, and shut ``next`` down. Spans that end later are ignored."""
        self._closed = True
        self._change(lambda: [self._decide_early(trace) for trace in list(self._open.values())])
        self._next.shutdown()

    def _change(self, change: Callable[[], Sequence[Spans]]) -> None:
        """Make one change under the lock, and pass on the spans that it returns.

        A signal handler, or a generator that the garbage collector closes, may end a span on the thread that is
        changing. It must not wait for that thread: its change comes after the one that it interrupted.
        """
        with self._lock:
            if self._changing:
                self._late.append(change)
                return
            self._changing = True
            try:
                ready = [*change()]
                while self._late:
                    ready += self._late.popleft()()
            finally:
                self._changing = False
        self._pass_on(*ready)

    # --- under the lock ----------------------------------------------------------------------------------

    def _started(self, span: Span) -> list[Spans]:
        id, parent = span.context.span_id, span.parent
        trace, early = None, list[Spans]()
        if parent is not None and not parent.is_remote:
            trace = self._trace_of.get(parent.span_id) or self._latest.get(span.context.trace_id)
        if trace is None:
            trace, early = self._open_trace(span)
        if len(trace.live) <= self._max_spans:
            trace.live.add(id)
            self._trace_of[id] = trace
        return early

    def _ended(self, span: ReadableSpan) -> Spans:
        assert span.context is not None
        id = span.context.span_id
        trace = self._trace_of.pop(id, None)
        if trace is not None:
            trace.live.discard(id)
        else:
            trace = self._latest.get(span.context.trace_id)
        if trace is None:
            self.strays += 1
            return ()
        return self._take(trace, span, is_root=id == trace.root_id)

    def _open_trace(self, root: Span) -> tuple[_Trace, list[Spans]]:
        now = self._clock()
        early = self._make_room(now)
        trace = _Trace(root, now)
        self._open[trace.root_id] = trace
        self._latest[trace.id] = trace
        return trace, early

    def _make_room(self, now: float) -> list[Spans]:
        early: list[Spans] = []
        while self._open:
            oldest = next(iter(self._open.values()))
            if now - oldest.opened >= self._max_age:
                self.expired += 1
            elif len(self._open) >= self._max_traces:
                self.evicted += 1
            else:
                break
            early.append(self._decide_early(oldest))
        return early

    def _take(self, trace: _Trace, span: ReadableSpan, *, is_root: bool) -> Spans:
        """The spans that can be passed on now that ``span`` has ended."""
        if trace.kept is not None:
            return (span,) if trace.kept else ()
        trace.failed = trace.failed or _failed(span)
        if is_root:
            keep = self._judge(trace, span, lambda route: self._slowness.observe(route, _seconds(span)))
            return self._decide(trace, keep, span)
        if len(trace.ended) < self._max_spans:
            trace.ended.append(span)
        else:
            self.spans_cut += 1
        return ()

    def _decide_early(self, trace: _Trace) -> Spans:
        assert trace.root is not None
        open_for = self._clock() - trace.opened
        return self._decide(trace, self._judge(trace, trace.root, lambda route: open_for > self._slowness.limit(route)))

    def _judge(self, trace: _Trace, root: ReadableSpan, is_slow: Callable[[str], bool]) -> bool:
        """Whether ``trace`` is kept. If its root cannot be read, the failures known before decide."""
        try:
            return is_slow(_route(root)) or trace.failed or _failed(root) or _answered_500(root)
        except Exception as error:  # noqa: BLE001 - logged after the lock is released: a log handler may make spans
            self.unjudged += 1
            if self.unjudged == 1:
                self._to_log = error
            return trace.failed

    def _decide(self, trace: _Trace, keep: bool, *last: ReadableSpan) -> Spans:
        del self._open[trace.root_id]
        spans = (*trace.ended, *last)
        trace.kept, trace.ended, trace.root = keep, [], None
        self.kept += keep
        self.dropped += not keep
        self._decided.append(trace)
        if len(self._decided) > self._remember:
            self._forget(self._decided.popleft())
        return spans if keep else ()

    def _forget(self, trace: _Trace) -> None:
        for id in trace.live:
            self._trace_of.pop(id, None)
        if self._latest.get(trace.id) is trace:
            del self._latest[trace.id]

    # --- outside the lock: a commit may take a while -----------------------------------------------------

    def _pass_on(self, *traces: Spans) -> None:
        if self._to_log is not None:
            error, self._to_log = self._to_log, None
            logger.error("a trace could not be judged by its root; `unjudged` counts such traces", exc_info=error)
        for spans in traces:
            if spans:
                self._pass_on_one(spans)

    def _pass_on_one(self, spans: Spans) -> None:
        try:
            taken = self._deliver(spans)
        except Exception:
            logger.exception("the spans of a selected trace were not taken")
            taken = False
        if not taken:
            with self._lock:
                self.undelivered += 1

    def _deliver(self, spans: Spans) -> bool:
        if isinstance(self._next, SpanProcessor):
            for span in spans:
                self._next.on_end(span)
            return True
        with uninstrumented():
            return self._next.export(spans) is SpanExportResult.SUCCESS


_PROCESSORS: WeakSet[SlowOrFailedSpanProcessor] = WeakSet()


def _begin_in_child() -> None:
    """The child has no thread that could release the lock, and the open traces are the parent's to end."""
    for processor in list(_PROCESSORS):
        processor._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


def _seconds(span: ReadableSpan) -> float:
    """The duration; NaN if a time is not a number. Like 0 it is not slow, but percentiles ignore it."""
    try:
        return float(((span.end_time or 0) - (span.start_time or 0)) / 1e9)
    except (TypeError, ValueError, ArithmeticError):
        return nan


def _route(root: ReadableSpan) -> str:
    return str((root.attributes or {}).get("http.route", root.name))


def _failed(span: ReadableSpan) -> bool:
    return span.status.status_code is StatusCode.ERROR


def _answered_500(root: ReadableSpan) -> bool:
    attributes = root.attributes or {}
    return any(isinstance(code := attributes.get(name), int) and code >= 500 for name in _STATUS_CODES)
