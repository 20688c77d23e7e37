"""Where the span of the current request is kept, so that what it does finds its parent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,
    Context,
    attach,
    create_key,
    detach,
    get_current,
    get_value,
    set_value,
)
from opentelemetry.trace import Span, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import StatusCode

_W3C = TraceContextTextMapPropagator()


class Trail:
    """Spans of ``tracer``, and which one is current in this thread or task.

    ``shared``: it is the current span of OpenTelemetry, for everybody. Else it is kept beside that one, which stays the
    host's: a host that traces for itself sees neither our spans nor our parents.
    """

    def __init__(self, tracer: Tracer, *, shared: bool) -> None:
        self._tracer = tracer
        self._key = None if shared else create_key("outbox-request")

    def parent(self) -> Context | None:
        """What a span of the current request begins in; None outside of any request."""
        if self._key is None:
            return get_current() if get_current_span().get_span_context().is_valid else None
        span = get_value(self._key)
        return set_span_in_context(span, Context()) if isinstance(span, Span) else None

    def remote(self, traceparent: str | None) -> Context:
        """What a request begins in that came with this header. Its tracestate and baggage are anybody's text."""
        if self._key is None and (here := self.parent()) is not None:
            return here
        return _W3C.extract({} if traceparent is None else {"traceparent": traceparent}, Context())

    @property
    def tracer(self) -> Tracer:
        return self._tracer

    @contextmanager
    def on(self, span: Span) -> Iterator[None]:
        """``span`` is the current one within the block."""
        token = attach(set_span_in_context(span) if self._key is None else set_value(self._key, span))
        try:
            yield
        finally:
            detach(token)

    @contextmanager
    def step(self, name: str) -> Iterator[Span]:
        """A span below the current one for the length of the block; an exception marks it failed by its type alone."""
        span = self._tracer.start_span(name, self.parent() or Context())
        try:
            with self.on(span):
                yield span
        except BaseException as error:
            fail(span, error_type(error))
            raise
        finally:
            span.end()


def is_suppressed() -> bool:
    """Whether nothing is to be measured now: the outbox itself is at work (``observe.uninstrumented``)."""
    return bool(get_value(_SUPPRESS_INSTRUMENTATION_KEY))


def fail(span: Span, kind: str) -> None:
    """ERROR without a description: what an exception says may name a customer."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


def error_type(error: BaseException) -> str:
    """``sqlite3.IntegrityError``; of a builtin the name alone."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
