"""Filters documents by the standard policy or by a wider one."""

from __future__ import annotations

import json
from typing import Any

from outbox.core.lane import Lane, Signal
from outbox.messages import TelemetryEnvelope
from outbox.messages.privacy import PrivacyPolicy
from outbox.messages.privacy_filter import Filter, Taken
from tests.messages.documents import SPAN, of_metric, of_record, of_span

STANDARD = Filter(PrivacyPolicy())


def filtered(signal: Signal, document: Any, by: Filter = STANDARD) -> tuple[str, Taken]:
    """The filtered text, checked to be canonical and idempotent, and what was removed."""
    text, taken = by.filtered(Lane(signal), TelemetryEnvelope(signal, document).payload)
    assert TelemetryEnvelope(signal, text).payload == text
    assert by.filtered(Lane(signal), text) == (text, {})
    return text, taken


def span_left(by: Filter = STANDARD, **fields: Any) -> tuple[dict[str, Any], Taken]:
    text, taken = filtered("traces", of_span(**fields), by)
    left = json.loads(text)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    return {name: value for name, value in left.items() if name not in SPAN}, taken


def metric_left(by: Filter = STANDARD, **fields: Any) -> tuple[dict[str, Any], Taken]:
    text, taken = filtered("metrics", of_metric(**fields), by)
    return json.loads(text)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0], taken


def record_left(by: Filter = STANDARD, **fields: Any) -> tuple[dict[str, Any], Taken]:
    text, taken = filtered("logs", of_record(**fields), by)
    return json.loads(text)["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0], taken


def attribute(key: str, value: str = "x") -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def value_left(value: dict[str, Any], key: str = "endpoint", by: Filter = STANDARD) -> dict[str, Any] | None:
    """The filtered AnyValue of an attribute of a span; None: the attribute was removed."""
    left, _ = span_left(by, attributes=[{"key": key, "value": value}])
    found = left["attributes"]
    return found[0]["value"] if found else None


def text_left(text: str, key: str = "endpoint") -> str | None:
    value = value_left({"stringValue": text}, key)
    return None if value is None else value["stringValue"]


def name_left(name: str) -> Any:
    return span_left(name=name)[0]["name"]


def wider(*entries: str, **fields: Any) -> Filter:
    return Filter(PrivacyPolicy(**fields).widened(entries))
