"""Spans of the SDK as OTLP/JSON."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, SpanContext
from opentelemetry.trace.status import StatusCode

from outbox.otel.values import Json, attributes, nanoseconds, span_id, text, trace_id

_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200
"""Bits of OTLP's SpanFlags, above the W3C trace flags."""


def span_json(span: ReadableSpan) -> Json:
    """A Span of trace/v1, without fields that have OTLP's default value. Raises as ``nanoseconds`` does."""
    context = span.context
    out: Json = {"traceId": trace_id(context.trace_id), "spanId": span_id(context.span_id)}
    if context.trace_state:
        out["traceState"] = text(context.trace_state.to_header())
    parent = span.parent
    if parent is not None:
        out["parentSpanId"] = span_id(parent.span_id)
    out["flags"] = _flags(context, parent)
    out["name"] = text(span.name)
    out["kind"] = span.kind.value + 1
    out["startTimeUnixNano"] = nanoseconds(span.start_time or 0)
    out["endTimeUnixNano"] = nanoseconds(span.end_time or 0)
    out |= _with_attributes(span.attributes, span.dropped_attributes)
    if events := span.events:
        out["events"] = [_event(event) for event in events]
    if span.dropped_events:
        out["droppedEventsCount"] = span.dropped_events
    if links := span.links:
        out["links"] = [_link(link) for link in links]
    if span.dropped_links:
        out["droppedLinksCount"] = span.dropped_links
    if span.status.status_code is not StatusCode.UNSET:
        out["status"] = _status(span)
    return out


def _flags(context: SpanContext, remote: SpanContext | None) -> int:
    """The flags of ``context``. ``remote``: the context that the is-remote bit describes; for a span, its parent."""
    flags = _HAS_IS_REMOTE | (context.trace_flags & 0xFF)
    return flags | _IS_REMOTE if remote is not None and remote.is_remote else flags


def _with_attributes(given: Any, dropped: int) -> Json:
    out: Json = {}
    if given:
        out["attributes"] = attributes(given)
    if dropped:
        out["droppedAttributesCount"] = dropped
    return out


def _event(event: Event) -> Json:
    out = {"timeUnixNano": nanoseconds(event.timestamp or 0), "name": text(event.name)}
    return out | _with_attributes(event.attributes, event.dropped_attributes)


def _link(link: Link) -> Json:
    context = link.context
    out: Json = {"traceId": trace_id(context.trace_id), "spanId": span_id(context.span_id)}
    if context.trace_state:
        out["traceState"] = text(context.trace_state.to_header())
    return out | _with_attributes(link.attributes, link.dropped_attributes) | {"flags": _flags(context, context)}


def _status(span: ReadableSpan) -> Json:
    out: Json = {"code": span.status.status_code.value}
    if span.status.description:
        out["message"] = text(span.status.description)
    return out
