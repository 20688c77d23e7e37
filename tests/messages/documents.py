"""OTLP documents for tests: the two examples of the beacon document, and small ones around a given part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from outbox.core.lane import Signal
from outbox.errors import InvalidMessage
from outbox.messages import TelemetryEnvelope

EXAMPLES = Path(__file__).parents[1] / "examples"
SPAN = {"traceId": "71699b6fe85982c7c8995ea3d9c95df2", "spanId": "3c191d03fa8be065"}
SPAN_PATH = "resourceSpans[0].scopeSpans[0].spans[0]"
METRIC_PATH = "resourceMetrics[0].scopeMetrics[0].metrics[0]"


MENDED = {"3c191d03fa8be0": SPAN["spanId"], "0932ksdka12345": "0932ad5da1234567"}
"""The two invalid span ids of the traces example, and their replacements in ``example``."""


def example(signal: Signal) -> str:
    """The example of the beacon document, with its two malformed span ids replaced."""
    text = as_it_stands(signal)
    for malformed, mended in MENDED.items():
        text = text.replace(f'"{malformed}"', f'"{mended}"')
    return text


def as_it_stands(signal: Signal) -> str:
    return (EXAMPLES / f"{signal}.json").read_text()


def compact(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"))


def of_span(**fields: Any) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": [{**SPAN, **fields}]}]}]}


def of_metric(**fields: Any) -> dict[str, Any]:
    return {"resourceMetrics": [{"scopeMetrics": [{"metrics": [fields]}]}]}


def of_record(**fields: Any) -> dict[str, Any]:
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": [fields]}]}]}


def span(**fields: Any) -> dict[str, Any]:
    """A span with these fields, as it is stored, without its two ids."""
    stored = json.loads(TelemetryEnvelope("traces", of_span(**fields)).payload)
    stored = stored["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    return {name: value for name, value in stored.items() if name not in SPAN}


def metric(**fields: Any) -> dict[str, Any]:
    stored = json.loads(TelemetryEnvelope("metrics", of_metric(**fields)).payload)
    return stored["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]  # type: ignore[no-any-return]


def any_value(value: Any) -> Any:
    """The AnyValue, as it is stored."""
    return span(attributes=[{"key": "k", "value": value}])["attributes"][0]["value"]


def refusal(signal: Signal, document: Any, **options: Any) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        TelemetryEnvelope(signal, document, **options)
    return caught.value


def span_refusal(**fields: Any) -> tuple[str, str]:
    """The path inside the span, and the reason, of the refusal."""
    error = refusal("traces", of_span(**fields))
    assert error.field.startswith(f"{SPAN_PATH}.")
    return error.field.removeprefix(f"{SPAN_PATH}."), error.reason


def metric_refusal(**fields: Any) -> tuple[str, str]:
    error = refusal("metrics", of_metric(**fields))
    assert error.field.startswith(f"{METRIC_PATH}.")
    return error.field.removeprefix(f"{METRIC_PATH}."), error.reason


def nested(levels: int, innermost: Any) -> dict[str, Any]:
    """``innermost`` inside ``levels`` arrays of AnyValue; each is three levels of JSON."""
    value = innermost
    for _ in range(levels):
        value = {"arrayValue": {"values": [value]}}
    return value  # type: ignore[no-any-return]
