"""The span of the current request, kept in the context so that spans of the same request find their parent."""

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
    """The spans of ``tracer``, and which of them is current in this thread or task.

    ``shared``: the current one is also OpenTelemetry's current span. Else it has a context key of its own, and an
    application that traces for itself neither sees our spans nor gets them as parents.
    """

    def __init__(self, tracer: Tracer, *, shared: bool) -> None:
        self._tracer = tracer
        self._key = None if shared else create_key("outbox-request")

    def parent(self) -> Context | None:
        """The context for a new span of the current request; None outside any request."""
        if self._key is None:
            return get_current() if get_current_span().get_span_context().is_valid else None
        span = get_value(self._key)
        return set_span_in_context(span, Context()) if isinstance(span, Span) else None

    def remote(self, traceparent: str | None) -> Context:
        """The context for a request with this traceparent header.

        Its tracestate and baggage are not read: the client can put any text there.
        """
        if self._key is None and (here := self.parent()) is not None:
            return here
        return _W3C.extract({} if traceparent is None else {"traceparent": traceparent}, Context())

    @property
    def tracer(self) -> Tracer:
        return self._tracer

    @contextmanager
    def on(self, span: Span) -> Iterator[None]:
        """Make ``span`` the current one for the block."""
        token = attach(set_span_in_context(span) if self._key is None else set_value(self._key, span))
        try:
            yield
        finally:
            detach(token)

    @contextmanager
    def step(self, name: str) -> Iterator[Span]:
        """A span below the current one, for the block. An exception marks it as failed, by its type only."""
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
    """Whether instrumentation is suppressed, as it is while the outbox itself works (``outbox.uninstrumented``)."""
    return bool(get_value(_SUPPRESS_INSTRUMENTATION_KEY))


def fail(span: Span, kind: str) -> None:
    """Set the status ERROR without a description: the message of an exception may contain personal data."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


def error_type(error: BaseException) -> str:
    """The qualified class name, as in ``sqlite3.IntegrityError``; only the name for a builtin."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
