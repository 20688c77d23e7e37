"""Spans for tests: ended spans by name, and a provider that does not shut itself down at exit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import Tracer

SHOP = Resource({"service.name": "shop"})


def ended(*names: str, **attributes: Any) -> list[ReadableSpan]:
    tracer = TracerProvider(resource=SHOP, shutdown_on_exit=False).get_tracer("shop")
    spans = [tracer.start_span(name, attributes=attributes) for name in names]
    for span in spans:
        span.end()
    return [span for span in spans if isinstance(span, ReadableSpan)]


@contextmanager
def tracing(processor: SpanProcessor) -> Iterator[Tracer]:
    """A tracer that passes its spans to ``processor``; shut down at the end of the block."""
    provider = TracerProvider(resource=SHOP, shutdown_on_exit=False)
    provider.add_span_processor(processor)
    try:
        yield provider.get_tracer("shop")
    finally:
        provider.shutdown()
