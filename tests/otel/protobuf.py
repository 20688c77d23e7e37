"""Parses OTLP/JSON strictly as the official messages: an unknown field is an error."""

from __future__ import annotations

import base64
import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from outbox.core.lane import Signal

REQUESTS: dict[Signal, type[Message]] = {
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
    "logs": ExportLogsServiceRequest,
}
_HEX = {"traceId", "spanId", "parentSpanId"}
_LEVELS: dict[Signal, tuple[str, str, str]] = {
    "traces": ("resource_spans", "scope_spans", "spans"),
    "logs": ("resource_logs", "scope_logs", "log_records"),
    "metrics": ("resource_metrics", "scope_metrics", "metrics"),
}
_W3C_FLAGS = 0xFF


def parse(signal: Signal, body: str | bytes) -> Any:
    """The request message. Raises ``json_format.ParseError`` if it is not OTLP, ValueError for ids that are not hex."""
    return json_format.ParseDict(_with_base64_ids(json.loads(body)), REQUESTS[signal](), ignore_unknown_fields=False)


def _with_base64_ids(value: Any) -> Any:
    """OTLP/JSON writes ids in hex, but protobuf's JSON would read them as base64, giving other ids."""
    if isinstance(value, dict):
        return {
            key: base64.b64encode(bytes.fromhex(each)).decode() if key in _HEX else _with_base64_ids(each)
            for key, each in value.items()
        }
    return [_with_base64_ids(each) for each in value] if isinstance(value, list) else value


def flat(signal: Signal, *requests: Any) -> list[tuple[str, ...]]:
    """Every item with its resource and scope, sorted, so that the result does not depend on how requests are split.

    Fields that the official encoder omits are left out: the W3C flags, the state of a link, the start of a gauge.
    """
    outer, inner, leaf = _LEVELS[signal]
    return sorted(
        tuple(map(str, (resource.resource, resource.schema_url, scope.scope, scope.schema_url, _comparable(item))))
        for request in requests
        for resource in getattr(request, outer)
        for scope in getattr(resource, inner)
        for item in getattr(scope, leaf)
    )


def _comparable(item: Any) -> Any:
    same = type(item)()
    same.CopyFrom(item)
    kind = item.DESCRIPTOR.name
    if kind == "Span":
        same.flags &= ~_W3C_FLAGS
        same.status.SetInParent()
        for link in same.links:
            link.flags &= ~_W3C_FLAGS
            link.trace_state = ""
    elif kind == "Metric":
        for point in same.gauge.data_points:
            point.ClearField("start_time_unix_nano")
    return same
