"""OTLP/JSON read by the official messages, strictly: a field that they do not have is an error."""

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


def parse(signal: Signal, body: str | bytes) -> Any:
    """The request message. Raises ``json_format.ParseError`` for what is not OTLP, ValueError for ids not in hex."""
    return json_format.ParseDict(_with_base64_ids(json.loads(body)), REQUESTS[signal](), ignore_unknown_fields=False)


def _with_base64_ids(value: Any) -> Any:
    """OTLP/JSON writes ids in hex, where protobuf's JSON reads bytes as base64: it would take them for other ids."""
    if isinstance(value, dict):
        return {
            key: base64.b64encode(bytes.fromhex(each)).decode() if key in _HEX else _with_base64_ids(each)
            for key, each in value.items()
        }
    return [_with_base64_ids(each) for each in value] if isinstance(value, list) else value
