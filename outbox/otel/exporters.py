"""Exporters for the SDK's own processors and readers. What they call exported is committed.

Each export is one transaction of one envelope, or of several where one would be too large. A worker sends them; that
a lane is paused, or that no worker runs, is nothing to an exporter.

On SQLite a Simple processor must not export from within an open transaction of the host's on the same file: the export
waits for the write lock that its own thread holds, half a minute in vain, and is lost. ``OutboxSpanProcessor`` waits
elsewhere.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.metrics.view import Aggregation
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from outbox.core.lane import Lane
from outbox.errors import DatabaseUnavailable, InheritedConnection, OutboxError, OutcomeUnknown
from outbox.messages.otlp import TelemetryEnvelope
from outbox.otel.envelopes import Packed, of_logs, of_metrics, of_spans
from outbox.producer import Outbox
from outbox.uninstrumented import uninstrumented

if TYPE_CHECKING:
    # Renamed in SDK 1.39, with its result.
    from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
else:
    from opentelemetry.sdk._logs import export as _export

    LogRecordExporter = getattr(_export, "LogRecordExporter", None) or _export.LogExporter
    LogRecordExportResult = getattr(_export, "LogRecordExportResult", None) or _export.LogExportResult

logger = logging.getLogger("outbox.otel")

TIMEOUT_SECONDS = 10.0
"""How long an export tries while the database is away; what OTLP's own exporters take."""
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0


class Exporting:
    """What the three have in common. ``timeout``: seconds that an export tries again while the database is away."""

    def __init__(self, box: Outbox, lane: Lane, timeout: float) -> None:
        self._box = box
        self._lane = lane
        self.timeout = timeout
        self._closed = threading.Event()

    def store(self, given: int, pack: Callable[[], Packed], timeout: float | None = None) -> bool:
        """Whether all of it is committed, or the lane is off. Never raises; what went wrong is logged."""
        if not self._box.settings.lane_enabled(self._lane):
            return True
        if self._closed.is_set():
            logger.error("lane %s: %d items came after shutdown() and are lost", self._lane, given)
            return False
        try:
            with uninstrumented():
                packed = pack()
                put(self._box, packed.envelopes, self.timeout if timeout is None else timeout, self._closed)
        except OutboxError as error:
            logger.error("lane %s: %d items were not stored and are lost: %s", self._lane, given, error)
            return False
        except Exception:
            logger.exception("lane %s: %d items were not stored and are lost", self._lane, given)
            return False
        return not packed.lost

    def close(self) -> None:
        """An export that waits for the database gives up."""
        self._closed.set()


def put(box: Outbox, envelopes: Sequence[TelemetryEnvelope], seconds: float, stop: threading.Event) -> None:
    """In one transaction; again, with the same ids, while the database is away. Raises what the last try raised."""
    deadline = time.monotonic() + seconds
    pause = FIRST_PAUSE_SECONDS
    while envelopes:
        try:
            box.put(*envelopes)
        except InheritedConnection:
            raise
        except (DatabaseUnavailable, OutcomeUnknown):
            if stop.is_set() or time.monotonic() + pause > deadline:
                raise
            stop.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            return


class OutboxSpanExporter(SpanExporter):
    """Spans into ``box``. ``OutboxSpanProcessor`` is the durable way: a BatchSpanProcessor drops before it exports."""

    def __init__(self, box: Outbox, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._exporting = Exporting(box, Lane.TRACES, timeout)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """SUCCESS after the commit."""
        stored = self._exporting.store(len(spans), lambda: of_spans(spans))
        return SpanExportResult.SUCCESS if stored else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back: what was exported is committed."""
        return True

    def shutdown(self) -> None:
        self._exporting.close()


class OutboxMetricExporter(MetricExporter):
    """Metrics into ``box``; temporality and aggregation are the reader's, as for any exporter."""

    def __init__(
        self,
        box: Outbox,
        *,
        timeout: float = TIMEOUT_SECONDS,
        preferred_temporality: dict[type, AggregationTemporality] | None = None,
        preferred_aggregation: dict[type, Aggregation] | None = None,
    ) -> None:
        super().__init__(preferred_temporality, preferred_aggregation)
        self._exporting = Exporting(box, Lane.METRICS, timeout)

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 1000 * TIMEOUT_SECONDS, **_: Any
    ) -> MetricExportResult:
        """SUCCESS after the commit."""
        given = sum(len(scope.metrics) for each in metrics_data.resource_metrics for scope in each.scope_metrics)
        stored = self._exporting.store(
            given, lambda: of_metrics(metrics_data), min(self._exporting.timeout, timeout_millis / 1000)
        )
        return MetricExportResult.SUCCESS if stored else MetricExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing is held back: what was exported is committed."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        self._exporting.close()


class OutboxLogExporter(LogRecordExporter):
    """Log records into ``box``, but for outbox's own, which would feed themselves: each request would be the next one.

    Those are known by their loggers, ``outbox`` and ``httpx.outbox``. What libraries say of the outbox's work is not:
    keep httpcore above DEBUG, SQLAlchemy above INFO, and what a client of your own logs away from here.
    """

    def __init__(self, box: Outbox, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._exporting = Exporting(box, Lane.LOGS, timeout)

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        """SUCCESS after the commit."""
        stored = self._exporting.store(len(batch), lambda: of_logs(batch))
        return LogRecordExportResult.SUCCESS if stored else LogRecordExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back: what was exported is committed."""
        return True

    def shutdown(self) -> None:
        self._exporting.close()
