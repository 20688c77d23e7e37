"""Log records of the SDK as OTLP/JSON.

SDK 1.39 renamed the objects that an exporter receives from ``LogData`` to ``ReadableLogRecord``, and moved the resource
and the number of dropped attributes from the record into them. Both forms are read here.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.resources import Resource

from outbox.otel.values import Json, any_value, attributes, nanoseconds, span_id, text, trace_id


def resource_of(data: Any) -> Resource:
    resource: Resource = data.resource if hasattr(data, "resource") else data.log_record.resource
    return resource


def log_json(data: Any) -> Json:
    """A LogRecord of logs/v1, without fields that have OTLP's default value. Raises as ``nanoseconds`` does."""
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
    """The span and the event that a record belongs to."""
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
