"""An application that makes spans, as a child process of the benchmark, with one of two span processors.

    --how outbox --to sqlite:///...       OutboxSpanProcessor
    --how standard --to http://...        BatchSpanProcessor with its defaults, OTLPSpanExporter

``--load steady`` flushes every FLUSHED spans, so that no span is dropped; ``--load burst`` does not. Prints the
microseconds of this process's processor time per span, from the first span to the end of ``shutdown()``.
"""

from __future__ import annotations

import argparse
import time

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from benchmarks.known import DEFAULTS
from outbox import Outbox, Settings

FLUSHED = 1000
WARM = 2000
"""Warm-up spans before the measurement, which should not include imports, connections and cold caches."""


def processor(how: str, to: str) -> SpanProcessor:
    if how == "outbox":
        from outbox.otel import OutboxSpanProcessor

        return OutboxSpanProcessor(Outbox(to, settings=Settings(DEFAULTS)))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter(endpoint=to))


def run(provider: TracerProvider, spans: int, flushed: int) -> None:
    tracer = provider.get_tracer("bench", "1.0")
    for number in range(spans):
        with tracer.start_as_current_span(f"GET /orders/{number % 20}") as span:
            span.set_attribute("http.request.method", "GET")
            span.set_attribute("url.full", "https://shop.example.com/orders?page=2&sort=date")
            span.set_attribute("http.response.status_code", 200)
            span.set_attribute("server.address", "shop.example.com")
            span.set_attribute("enduser.id", f"user-{number}")
            span.set_attribute("cache.hit", number % 3 == 0)
            if number % 10 == 0:
                span.add_event("retry", {"attempt": 1})
        if flushed and number % flushed == flushed - 1:
            provider.force_flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--how", choices=("outbox", "standard"), required=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--load", choices=("steady", "burst"), required=True)
    parser.add_argument("--spans", type=int, required=True)
    given = parser.parse_args()
    provider = TracerProvider(resource=Resource({"service.name": "bench"}))
    provider.add_span_processor(processor(given.how, given.to))
    if given.load == "steady":
        run(provider, WARM, FLUSHED)
    started = time.process_time()
    run(provider, given.spans, FLUSHED if given.load == "steady" else 0)
    provider.shutdown()
    print(f"us {1e6 * (time.process_time() - started) / given.spans}", flush=True)


if __name__ == "__main__":
    main()
