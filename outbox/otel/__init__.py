"""OpenTelemetry into the outbox: what the SDK hands over is on disk before it is called exported.

    TracerProvider ── OutboxSpanProcessor ─────────────────────────┐
    TracerProvider ── BatchSpanProcessor ── OutboxSpanExporter ────┤
    MeterProvider ─── PeriodicExportingMetricReader ── OutboxMetricExporter ──▶ Outbox.put ──▶ a worker sends it
    LoggerProvider ── BatchLogRecordProcessor ── OutboxLogExporter ┘

``OutboxSpanProcessor`` is the durable way for spans: ``BatchSpanProcessor`` drops what its queue cannot hold, and what
it holds is gone with the process. Needs ``beacon-outbox[otel]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outbox.otel.exporters import OutboxLogExporter, OutboxMetricExporter, OutboxSpanExporter
    from outbox.otel.processor import OutboxSpanProcessor

_HOMES = {
    "outbox.otel.exporters": ("OutboxLogExporter", "OutboxMetricExporter", "OutboxSpanExporter"),
    "outbox.otel.processor": ("OutboxSpanProcessor",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "OutboxLogExporter",
    "OutboxMetricExporter",
    "OutboxSpanExporter",
    "OutboxSpanProcessor",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'outbox.otel' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
