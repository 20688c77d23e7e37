"""Log records of the SDK as OTLP/JSON.

The SDK renamed what an exporter is handed in 1.39: ``LogData`` became ``ReadableLogRecord``, and the resource and the
count of dropped attributes moved up from the record. Both are read here.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.resources import Resource

from outbox.otel.values import Json, any_value, attributes, nanoseconds, span_id, text, trace_id


def resource_of(data: Any) -> Resource:
    resource: Resource = data.resource if hasattr(data, "resource") else data.log_record.resource
    return resource


def log_json(data: Any) -> Json:
    """A LogRecord of logs/v1. What OTLP reads as its default when absent is left out. Raises as ``nanoseconds``."""
    record = data.log_record
    out: Json = {}
    for name, time in (("timeUnixNano", record.timestamp), ("observedTimeUnixNano", record.observed_timestamp)):
        if time:
            out[name] = nanoseconds(time)
    if record.severity_number is not None and record.severity_number.value:
        out["severityNumber"] = record.severity_number.value
    if record.severity_text:
        out["severityText"] = text(record.severity_text)
    if record.body is not None:
        out["body"] = any_value(record.body)
    if record.attributes:
        out["attributes"] = attributes(record.attributes)
    if dropped := getattr(data, "dropped_attributes", None) or getattr(record, "dropped_attributes", 0):
        out["droppedAttributesCount"] = dropped
    return out | _place(record)


def _place(record: Any) -> Json:
    """Of which span a record speaks, and of which event."""
    out: Json = {}
    if record.trace_flags:
        out["flags"] = int(record.trace_flags)
    if record.trace_id:
        out["traceId"] = trace_id(record.trace_id)
    if record.span_id:
        out["spanId"] = span_id(record.span_id)
    if name := getattr(record, "event_name", None):
        out["eventName"] = text(name)
    return out
