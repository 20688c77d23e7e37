"""The data that an exporter receives from the SDK, packed into envelopes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from opentelemetry.sdk.metrics.export import Metric, MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from outbox.messages.otlp import TelemetryEnvelope
from outbox.otel.documents import Packer
from outbox.otel.logs import log_json, resource_of
from outbox.otel.metrics import halves, metric_json, points_of
from outbox.otel.spans import span_json
from outbox.otel.values import Json, to_text

logger = logging.getLogger("outbox.otel")

T = TypeVar("T")
_WHERE_TO_CUT = {
    "traces": "set OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "metrics": "give its points fewer attributes",
    "logs": "set OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
}
_OURS = ("outbox.", "httpx.outbox.")
"""Prefixes of the outbox's own scopes, which log handlers name after the logger. ``httpx.outbox`` logs each request."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Envelopes with ``items`` in them. ``lost``: items that no envelope can hold; each was logged."""

    envelopes: list[TelemetryEnvelope]
    items: int
    lost: int


def of_spans(spans: Sequence[ReadableSpan]) -> Packed:
    packer = Packer("traces")
    written = (
        packer.add(span.resource, span.instrumentation_scope, text) or _too_large("traces", span.name, text)
        for span, text in _written(spans, span_json)
    )
    return _packed(packer, "traces", len(spans), sum(written))


def of_logs(batch: Sequence[Any]) -> Packed:
    """``batch``: ``ReadableLogRecord`` objects, or ``LogData`` before SDK 1.39.

    The outbox's own records, those of its requests included, are left out: sending them would create new ones for
    ever.
    """
    packer = Packer("logs")
    others = [data for data in batch if not _is_ours(data.instrumentation_scope)]
    written = (
        packer.add(resource_of(data), data.instrumentation_scope, text) or _too_large("logs", "a log record", text)
        for data, text in _written(others, log_json)
    )
    return _packed(packer, "logs", len(others), sum(written))


def of_metrics(data: MetricsData) -> Packed:
    packer = Packer("metrics")
    total = stored = 0
    for resource_metrics in data.resource_metrics:
        for scope_metrics in resource_metrics.scope_metrics:
            total += len(scope_metrics.metrics)
            where = resource_metrics.resource, scope_metrics.scope
            stored += sum(_add_metric(packer, *where, *each) for each in _written(scope_metrics.metrics, _metric))
    return _packed(packer, "metrics", total, stored)


def _metric(metric: Metric) -> Json:
    return metric_json(metric)


def _add_metric(packer: Packer, resource: Resource, scope: InstrumentationScope, metric: Metric, text: str) -> bool:
    """Add a metric, split by its data points if it is too large for an envelope. False: it is lost, and was logged."""
    if packer.add(resource, scope, text):
        return True
    room = packer.room(resource, scope)
    parts = [to_text(part) for part in _within(metric_json(metric), room)]
    if any(len(part) > room for part in parts):
        return _too_large("metrics", metric.name, max(parts, key=len))
    return all(packer.add(resource, scope, part) for part in parts)


def _within(metric: Json, room: int) -> Iterator[Json]:
    if len(points_of(metric)) < 2 or len(to_text(metric)) <= room:
        yield metric
        return
    for half in halves(metric):
        yield from _within(half, room)


def _is_ours(scope: InstrumentationScope | None) -> bool:
    # Not by is_suppressed(): BatchLogRecordProcessor clears the context (SDK 1.45).
    return scope is not None and f"{scope.name}.".startswith(_OURS)


def _written(items: Iterable[T], write: Callable[[T], Json]) -> Iterator[tuple[T, str]]:
    """Yields each item with its JSON. One that cannot be written is logged and skipped, so that the others are kept."""
    for item in items:
        try:
            text = to_text(write(item))
        except Exception:
            logger.exception("lost, it cannot be written as OTLP: %s", getattr(item, "name", type(item).__name__))
        else:
            yield item, text


def _too_large(lane: str, name: str, text: str) -> bool:
    logger.error("lane %s: lost, %s has %d bytes: %s", lane, name, len(text), _WHERE_TO_CUT[lane])
    return False


def _packed(packer: Packer, signal: Any, given: int, added: int) -> Packed:
    documents = list(packer.documents())
    envelopes = [TelemetryEnvelope.of_canonical(signal, text) for text, _ in documents]
    return Packed(envelopes, added, given - added)
