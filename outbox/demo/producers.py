"""Threads that commit usage rows and telemetry envelopes, and record them after the commit."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from outbox import Outbox, TelemetryEnvelope, UsageInterval
from outbox.messages import Message

ROWS = 10
"""Usage rows per transaction."""
PAUSE_SECONDS = 0.05


class Producers:
    """Two threads that call ``Outbox.put`` until ``stop()``.

    ``usage`` has the ids of committed rows only, ``metrics`` and ``traces`` the numbers of committed envelopes.
    """

    def __init__(self, box: Outbox) -> None:
        self.box = box
        self.usage: list[UUID] = []
        self.metrics = 0
        self.traces = 0
        self.failure: Exception | None = None
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,)) for work in (self._usage, self._telemetry)
        ]

    @property
    def total(self) -> int:
        return len(self.usage) + self.metrics + self.traces

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads. Raises the exception that ended one of them before."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.failure is not None:
            raise self.failure

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            while not self._stop.wait(PAUSE_SECONDS):
                work()
        except Exception as error:  # noqa: BLE001 - stop() raises it in the main thread
            self.failure = error

    def _usage(self) -> None:
        self.usage += self.box.put(*usage_rows(ROWS))

    def _telemetry(self) -> None:
        messages: Sequence[Message] = (TelemetryEnvelope("metrics", metrics()), TelemetryEnvelope("traces", traces()))
        self.box.put(*messages)
        self.metrics += 1
        self.traces += 1


def usage_rows(count: int) -> list[UsageInterval]:
    now = datetime.now(UTC)
    earlier = now - timedelta(minutes=5)
    return [
        UsageInterval(
            tenant_id=uuid.uuid4(),
            session_id=uuid.uuid4(),
            trace_count=7,
            start_insertion_time=earlier,
            end_insertion_time=now,
            start_interval_time=earlier,
            end_interval_time=now,
            transaction_type="longlived_traces",
            organization_id=uuid.uuid4(),
        )
        for _ in range(count)
    ]


def metrics() -> dict[str, object]:
    point = {"asDouble": 12.34, "timeUnixNano": "1736157600000000000"}
    metric = {"name": "http_requests_latency", "unit": "s", "gauge": {"dataPoints": [point]}}
    return {"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]}


def traces() -> dict[str, object]:
    span = {"traceId": uuid.uuid4().hex, "spanId": uuid.uuid4().hex[:16], "name": "run"}
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
