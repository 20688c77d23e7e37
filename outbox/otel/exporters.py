"""Exporters for the SDK's own processors and readers. An export succeeds once its data is committed.

Each export is one transaction of one envelope, or of several if one would be too large. A worker sends them later, so a
paused lane or a missing worker does not affect an exporter.

On SQLite a Simple processor must not export while its thread has a transaction open on the same file: the export waits
half a minute for the write lock that its own thread holds, fails, and its data is lost. ``OutboxSpanProcessor`` writes
in a thread of its own.
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
    # Both were renamed in SDK 1.39.
    from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
else:
    from opentelemetry.sdk._logs import export as _export

    LogRecordExporter = getattr(_export, "LogRecordExporter", None) or _export.LogExporter
    LogRecordExportResult = getattr(_export, "LogRecordExportResult", None) or _export.LogExportResult

logger = logging.getLogger("outbox.otel")

TIMEOUT_SECONDS = 10.0
"""How long an export is retried while the database is unavailable; the default of OTLP's own exporters."""
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0


class Exporting:
    """The common part of the three exporters. ``timeout``: seconds for retries while the database is unavailable."""

    def __init__(self, box: Outbox, lane: Lane, timeout: float) -> None:
        self._box = box
        self._lane = lane
        self.timeout = timeout
        self._closed = threading.Event()

    def store(self, given: int, pack: Callable[[], Packed], timeout: float | None = None) -> bool:
        """Store the ``given`` items that ``pack`` returns. True: all are committed, or the lane is off.

        Never raises; errors are logged.
        """
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
        """Make an export that waits for the database give up, and refuse further ones."""
        self._closed.set()


def put(box: Outbox, envelopes: Sequence[TelemetryEnvelope], seconds: float, stop: threading.Event) -> None:
    """Store the envelopes in one transaction. Retries with the same ids while the database is unavailable.

    Raises the error of the last try.
    """
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
    """Exports spans into ``box``. ``OutboxSpanProcessor`` is safer: a BatchSpanProcessor may drop spans before that."""

    def __init__(self, box: Outbox, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._exporting = Exporting(box, Lane.TRACES, timeout)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """SUCCESS after the commit."""
        stored = self._exporting.store(len(spans), lambda: of_spans(spans))
        return SpanExportResult.SUCCESS if stored else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """There is nothing to flush: what was exported is committed."""
        return True

    def shutdown(self) -> None:
        self._exporting.close()


class OutboxMetricExporter(MetricExporter):
    """Exports metrics into ``box``. The reader decides temporality and aggregation, as for any exporter."""

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
        """There is nothing to flush: what was exported is committed."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        self._exporting.close()


class OutboxLogExporter(LogRecordExporter):
    """Exports log records into ``box``, except the outbox's own: sending those would create new ones for ever.

    They are recognised by their loggers, ``outbox`` and ``httpx.outbox``. Records that libraries write while the outbox
    works are not recognised: keep httpcore above DEBUG, SQLAlchemy above INFO, and do not export the log of an HTTP
    client that you inject.
    """

    def __init__(self, box: Outbox, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._exporting = Exporting(box, Lane.LOGS, timeout)

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        """SUCCESS after the commit."""
        stored = self._exporting.store(len(batch), lambda: of_logs(batch))
        return LogRecordExportResult.SUCCESS if stored else LogRecordExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """There is nothing to flush: what was exported is committed."""
        return True

    def shutdown(self) -> None:
        self._exporting.close()
