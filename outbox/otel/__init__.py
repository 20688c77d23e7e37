"""OpenTelemetry into the outbox: what the SDK exports is committed before the export reports success.

    TracerProvider ── OutboxSpanProcessor ─────────────────────────┐
    TracerProvider ── BatchSpanProcessor ── OutboxSpanExporter ────┤
    MeterProvider ─── PeriodicExportingMetricReader ── OutboxMetricExporter ──▶ Outbox.put ──▶ a worker sends it
    LoggerProvider ── BatchLogRecordProcessor ── OutboxLogExporter ┘

``OutboxSpanProcessor`` is the durable way for spans: ``BatchSpanProcessor`` drops spans when its queue is full, and
loses the queue with the process. ``SlowOrFailedSpanProcessor`` in front of it keeps only the traces of slow and failed
requests, and ``instrument`` sets all of this up for a service. Needs ``beacon-outbox[otel]``.

values       attributes, times and numbers of the SDK as OTLP/JSON
spans        spans of the SDK as OTLP/JSON
logs         log records, the same
metrics      metrics, the same
documents    items of one signal packed into documents, none larger than an envelope
envelopes    what an exporter receives, as envelopes
exporters    exporters for the SDK's own processors and readers
processor    OutboxSpanProcessor: spans in group commits
slowness     when a request is slow
selection    SlowOrFailedSpanProcessor: the traces of slow and failed requests
trail        the span of the current request
requests     a request and its response as a span and three metrics
asgi         requests of an ASGI application
wsgi         requests of a WSGI application
database     statements of a SQLAlchemy engine as a metric and spans
instruments  instrument(): all of this set up for a service, in one call
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from outbox.errors import ConfigError

if TYPE_CHECKING:
    from outbox.otel.exporters import OutboxLogExporter, OutboxMetricExporter, OutboxSpanExporter
    from outbox.otel.instruments import Instruments, instrument
    from outbox.otel.processor import OutboxSpanProcessor
    from outbox.otel.selection import SlowOrFailedSpanProcessor
    from outbox.otel.slowness import Percentile

_HOMES = {
    "outbox.otel.exporters": ("OutboxLogExporter", "OutboxMetricExporter", "OutboxSpanExporter"),
    "outbox.otel.instruments": ("Instruments", "instrument"),
    "outbox.otel.processor": ("OutboxSpanProcessor",),
    "outbox.otel.selection": ("SlowOrFailedSpanProcessor",),
    "outbox.otel.slowness": ("Percentile",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Instruments",
    "OutboxLogExporter",
    "OutboxMetricExporter",
    "OutboxSpanExporter",
    "OutboxSpanProcessor",
    "Percentile",
    "SlowOrFailedSpanProcessor",
    "instrument",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'outbox.otel' has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOME_OF[name]), name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise ConfigError("outbox.otel needs OpenTelemetry. Run: pip install 'beacon-outbox[otel]'") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
