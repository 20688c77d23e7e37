"""A request and its response as a span and three metrics, by OpenTelemetry's HTTP semantic conventions.

    http.server.request.duration          s    its count is the number of requests
    http.server.request.body.size         By
    http.server.response.body.size        By
    by http.request.method, http.route (a template), http.response.status_code, url.scheme, error.type

Attributes of the conventions that may contain personal data are left out: path, query, addresses, user agent, header
fields, and the messages of exceptions.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from time import perf_counter

from opentelemetry.metrics import Meter
from opentelemetry.trace import SpanKind

from outbox.otel.trail import Trail, error_type, fail, is_suppressed

METHODS = {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
OTHER = "_OTHER"
"""The conventions' value for an unknown method, of which a client can invent any number."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Bounds of the histogram, from the semantic conventions."""
BYTES = (0, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)

Attributes = dict[str, str | int]


class Requests:
    """Measures the requests of one service. After ``stop()`` they are not measured any more."""

    def __init__(self, trail: Trail, meter: Meter) -> None:
        self.trail = trail
        self._stopped = False
        self._duration = meter.create_histogram(
            "http.server.request.duration",
            unit="s",
            description="Duration of HTTP server requests.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._request_size = meter.create_histogram(
            "http.server.request.body.size",
            unit="By",
            description="Size of HTTP server request bodies.",
            explicit_bucket_boundaries_advisory=BYTES,
        )
        self._response_size = meter.create_histogram(
            "http.server.response.body.size",
            unit="By",
            description="Size of HTTP server response bodies.",
            explicit_bucket_boundaries_advisory=BYTES,
        )

    def stop(self) -> None:
        self._stopped = True

    def begin(self, method: str, scheme: str, traceparent: str | None) -> Exchange | None:
        """Begin a request. None: it is not to be measured."""
        return None if self._stopped or is_suppressed() else Exchange(self, method, scheme, traceparent)

    def record(self, exchange: Exchange, attributes: Attributes) -> None:
        self._duration.record(exchange.seconds, attributes)
        if exchange.request_bytes is not None:
            self._request_size.record(exchange.request_bytes, attributes)
        self._response_size.record(exchange.response_bytes, attributes)


class Exchange:
    """One request in progress. The middleware counts its bytes and finishes it when the response is complete."""

    def __init__(self, requests: Requests, method: str, scheme: str, traceparent: str | None) -> None:
        self._requests = requests
        self._given: Attributes = {
            "http.request.method": method if method in METHODS else OTHER,
            "url.scheme": "https" if scheme == "https" else "http",
        }
        self._began = perf_counter()
        self._finished = False
        self.seconds = 0.0
        self.route: str | None = None
        """The template, once the framework has matched it."""
        self.status: int | None = None
        self.request_bytes: int | None = 0
        """None: unknown."""
        self.response_bytes = 0
        self._error: str | None = None
        trail = requests.trail
        self.span = trail.tracer.start_span(
            method if method in METHODS else "HTTP", trail.remote(traceparent), SpanKind.SERVER, dict(self._given)
        )

    def current(self) -> AbstractContextManager[None]:
        """A context in which new spans belong to this request."""
        return self._requests.trail.on(self.span)

    def failed(self, error: BaseException) -> None:
        """The application raised ``error``: the server answers 500, unless the response has begun."""
        self._error = error_type(error)
        self.status = self.status or 500

    def finish(self) -> None:
        """End the request: record the metrics and end the span. Further calls do nothing."""
        if self._finished:
            return
        self._finished = True
        self.seconds = perf_counter() - self._began
        attributes = self._given | self._found()
        self.span.set_attributes(attributes)
        if "http.route" in attributes:
            self.span.update_name(f"{attributes['http.request.method']} {attributes['http.route']}")
        if "error.type" in attributes:
            fail(self.span, str(attributes["error.type"]))
        self._requests.record(self, attributes)
        self.span.end()

    def _found(self) -> Attributes:
        found: Attributes = {}
        if self.route:
            found["http.route"] = self.route
        if self.status is not None:
            found["http.response.status_code"] = self.status
        error = self._error or (str(self.status) if self.status is not None and self.status >= 500 else None)
        if error:
            found["error.type"] = error
        return found
