"""The encoding of SDK objects equals that of the official encoders, in canonical form, for any contents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from outbox.messages import TelemetryEnvelope
from outbox.otel.envelopes import Packed, of_logs, of_metrics, of_spans
from tests.otel import made, written
from tests.otel.protobuf import flat, parse
from tests.otel.spanning import ended
from tests.otel.versions import needs_a_full_encoder

lists_of_spans = st.lists(made.spans, min_size=1, max_size=4)
lists_of_logs = st.lists(made.logs, min_size=1, max_size=4)
generous = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@needs_a_full_encoder
@generous
@given(lists_of_spans)
def test_spans_are_what_the_official_encoder_makes_of_them(spans: Sequence[ReadableSpan]) -> None:
    assert flat("traces", _only(of_spans(spans))) == flat("traces", encode_spans(spans))


@needs_a_full_encoder
@generous
@given(lists_of_logs)
def test_log_records_are_what_the_official_encoder_makes_of_them(batch: Sequence[Any]) -> None:
    assert flat("logs", _only(of_logs(batch))) == flat("logs", encode_logs(batch))


@needs_a_full_encoder
@generous
@given(made.collections)
def test_metrics_are_what_the_official_encoder_makes_of_them(data: sdk.MetricsData) -> None:
    assert flat("metrics", _only(of_metrics(data))) == flat("metrics", encode_metrics(data))


def _only(packed: Packed) -> Any:
    [envelope] = packed.envelopes
    return parse(envelope.signal, envelope.payload)


@generous
@given(lists_of_spans, lists_of_logs, made.collections)
def test_what_is_written_is_canonical_already(
    spans: Sequence[ReadableSpan], batch: Sequence[Any], data: sdk.MetricsData
) -> None:
    """So an envelope of it need not be checked: normalising it changes nothing."""
    for packed in (of_spans(spans), of_logs(batch), of_metrics(data)):
        for envelope in packed.envelopes:
            assert TelemetryEnvelope(envelope.signal, envelope.payload, envelope.id) == envelope


STRANGE = {
    "half a surrogate pair": ("a\ud800b", {"stringValue": "a\ufffdb"}),
    "a null character": ("a\x00b", {"stringValue": "a\ufffdb"}),
    "a pair written as halves": ("\ud83d\ude00", {"stringValue": "😀"}),
    "delete": ("\x7f", {"stringValue": "\x7f"}),
    "an integer beyond 64 bits": (2**63, {"stringValue": str(2**63)}),
    "the least integer": (-(2**63), {"intValue": str(-(2**63))}),
    "not a number": (float("nan"), {"doubleValue": "NaN"}),
    "infinity": (float("-inf"), {"doubleValue": "-Infinity"}),
    "a large number": (1e300, {"doubleValue": 1e300}),
    "nothing": (None, {}),
    "bytes": (b"\x00\xff", {"bytesValue": "AP8="}),
    "a mapping": ({"k": [1]}, {"kvlistValue": {"values": [
        {"key": "k", "value": {"arrayValue": {"values": [{"intValue": "1"}]}}}
    ]}}),
    "a type that OTLP does not have": (frozenset(), {"stringValue": "frozenset()"}),
}  # fmt: skip


@pytest.mark.parametrize("what", STRANGE)
def test_a_strange_value_is_told_as_well_as_it_can_be(what: str) -> None:
    given_value, written = STRANGE[what]
    [envelope] = of_logs([_log(given_value)]).envelopes
    [record] = json.loads(envelope.payload)["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert record.get("body", {}) == written
    assert TelemetryEnvelope("logs", envelope.payload, envelope.id) == envelope


def test_a_body_without_end_becomes_text_where_it_is_too_deep() -> None:
    endless: list[Any] = []
    endless.append(endless)
    [envelope] = of_logs([_log(endless)]).envelopes
    assert TelemetryEnvelope("logs", envelope.payload, envelope.id) == envelope


def test_a_record_that_cannot_be_written_does_not_take_the_others_along(caplog: pytest.LogCaptureFixture) -> None:
    class Untold:
        def __str__(self) -> str:
            raise RuntimeError("no")

    packed = of_logs([_log("before"), _log(Untold()), _log("after")])
    assert (packed.items, packed.lost) == (2, 1)
    assert "lost, it cannot be written as OTLP" in caplog.text


NO_TIMES = [-5, 2**64, 1.5, float("inf"), 2.0**64, "yesterday"]


@pytest.mark.parametrize("time", NO_TIMES)
@pytest.mark.parametrize("of", ["start", "end", "event"])
def test_a_span_with_a_time_that_is_none_is_named_and_does_not_take_the_others_along(
    of: str, time: Any, caplog: pytest.LogCaptureFixture
) -> None:
    packed = of_spans([*ended("before"), _timed(**{of: time}), *ended("after")])
    assert (packed.items, packed.lost) == (2, 1)
    assert "lost, it cannot be written as OTLP: order" in caplog.text
    [envelope] = packed.envelopes
    assert TelemetryEnvelope("traces", envelope.payload, envelope.id) == envelope


@pytest.mark.parametrize("time", NO_TIMES)
def test_a_log_record_with_a_time_that_is_none_does_not_take_the_others_along(time: Any) -> None:
    packed = of_logs([_log("before"), _log("odd", timestamp=time), _log("odd", observed_timestamp=time), _log("after")])
    assert (packed.items, packed.lost) == (2, 2)
    [envelope] = packed.envelopes
    assert TelemetryEnvelope("logs", envelope.payload, envelope.id) == envelope


@pytest.mark.parametrize("time", NO_TIMES)
def test_a_metric_with_a_time_that_is_none_does_not_take_the_others_along(time: Any) -> None:
    metrics = [_gauge("before", 1), _gauge("odd", time), _gauge("after", 1)]
    packed = of_metrics(made.metrics_data(made.RESOURCES[0], made.SCOPES[0], metrics))
    assert (packed.items, packed.lost) == (2, 1)
    [envelope] = packed.envelopes
    assert TelemetryEnvelope("metrics", envelope.payload, envelope.id) == envelope


def test_a_time_in_whole_floating_nanoseconds_is_its_integer() -> None:
    [envelope] = of_spans([_timed(start=1.75e18, end=1.75e18, event=1.75e18)]).envelopes
    [span] = written.spans_of(json.loads(envelope.payload))
    assert (span["startTimeUnixNano"], span["endTimeUnixNano"]) == ("1750000000000000000",) * 2
    assert span["events"][0]["timeUnixNano"] == "1750000000000000000"


def _timed(start: Any = 1, end: Any = 1, event: Any = 1) -> ReadableSpan:
    """A span ``order`` of the real SDK, which accepts any object as a time."""
    span = TracerProvider(shutdown_on_exit=False).get_tracer("shop").start_span("order", start_time=start)
    span.add_event("paid", timestamp=event)
    span.end(end)
    assert isinstance(span, ReadableSpan)
    return span


def _log(body: Any, **times: Any) -> Any:
    fields = {"timestamp": 1, "observed_timestamp": 1} | times
    return made.log_data(made.SCOPES[0], made.RESOURCES[0], body=body, **fields)


def _gauge(name: str, time: Any) -> sdk.Metric:
    return sdk.Metric(name, "", "", sdk.Gauge([sdk.NumberDataPoint({}, 1, time, 1)]))
