"""Fuzzing: the only exception is InvalidMessage, and what is accepted parses as the official OTLP messages."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from outbox.core.lane import LANES, Lane, Signal
from outbox.errors import InvalidMessage
from outbox.messages import TelemetryEnvelope
from outbox.messages.otlp_schema import MESSAGES
from tests.messages.documents import compact, example, of_metric, of_record, of_span
from tests.messages.strategies import documents, generous, signals
from tests.otel.versions import needs_the_messages_of_otlp_1_7

OFFICIAL: dict[Signal, type[Message]] = {"metrics": MetricsData, "traces": TracesData, "logs": LogsData}
IDS = {"traceId", "spanId", "parentSpanId"}
FIELDS = sorted({field for kinds in MESSAGES.values() for field in kinds})


def parsed(signal: Signal, document: Any) -> Message:
    """``document`` as the official message. Raises ParseError for an unknown field or a value of a wrong kind."""
    return ParseDict(_with_base64_ids(document), OFFICIAL[signal](), max_recursion_depth=100)


def _with_base64_ids(value: Any, key: str = "") -> Any:
    """Protobuf's JSON has bytes in base64. OTLP/JSON has ids in hex, which would silently be read as base64."""
    if isinstance(value, dict):
        return {name: _with_base64_ids(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_base64_ids(item) for item in value]
    return base64.b64encode(bytes.fromhex(value)).decode() if key in IDS else value


def accepted(signal: Signal, document: Any) -> bool:
    """Whether the document was accepted; if so its payload must be OTLP. Other exceptions than InvalidMessage fail."""
    try:
        envelope = TelemetryEnvelope(signal, document)
    except InvalidMessage:
        return False
    message = parsed(signal, json.loads(envelope.payload))
    assert message.ByteSize() > 0
    return True


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(["0" * 32, "ab" * 16, "ab" * 8, "NaN", "SPAN_KIND_SERVER", "1e3", "-0", "\ud800", "\x00"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), inner, max_size=4)
        | st.builds(lambda value: {"arrayValue": {"values": [value]}}, inner)
    ),
    max_leaves=20,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in ``value`` with each of its keys or indexes."""
    here = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [(value, key) for key, _ in here] + [place for _, item in here for place in places(item)]


@st.composite
def mutants(draw: st.DrawFn) -> tuple[Signal, Any]:
    """A valid document after one to three mutations."""
    signal, document = draw(documents())
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        found = places(document)
        if not found:
            break
        holder, key = found[draw(st.integers(0, len(found) - 1))]
        match draw(st.sampled_from(["replace", "replace", "delete", "add", "twice", "nest"])):
            case "replace":
                holder[key] = draw(JSON)
            case "delete":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from(FIELDS))] = draw(JSON)
            case "twice" if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case "nest":
                for _ in range(draw(st.sampled_from([1, 3, 40]))):
                    holder[key] = [holder[key]] if draw(st.booleans()) else {"kvlistValue": holder[key]}
    return signal, document


@needs_the_messages_of_otlp_1_7
@generous
@given(drawn=documents())
def test_every_document_of_the_schema_is_accepted_and_official(drawn: tuple[Signal, dict[str, Any]]) -> None:
    assert accepted(*drawn)


@needs_the_messages_of_otlp_1_7
@generous
@given(drawn=mutants())
def test_a_mutated_document_is_official_or_refused(drawn: tuple[Signal, Any]) -> None:
    accepted(*drawn)


@needs_the_messages_of_otlp_1_7
@generous
@given(signal=signals, value=JSON)
def test_any_json_is_official_or_refused(signal: Signal, value: Any) -> None:
    accepted(signal, value)
    accepted(signal, {LANES[Lane(signal)].root_key: value})


@needs_the_messages_of_otlp_1_7
@generous
@given(drawn=documents(), cut=st.integers(0, 10**6), data=st.binary(max_size=6))
def test_damaged_text_is_official_or_refused(drawn: tuple[Signal, dict[str, Any]], cut: int, data: bytes) -> None:
    signal, document = drawn
    text = compact(document).encode()
    at = cut % (len(text) + 1)
    accepted(signal, text[:at] + data + text[at + len(data) :])
    accepted(signal, text[:at])


@pytest.mark.parametrize(
    ("signal", "document"),
    [
        ("traces", of_span(unheardOf=1)),
        ("traces", of_span(kind="CLIENT")),
        ("traces", of_span(startTimeUnixNano="-1")),
        ("metrics", of_metric(gauge={"dataPoints": [{"asInt": "9223372036854775808"}]})),
        ("logs", of_record(severityNumber="high")),
    ],
)
def test_the_official_messages_do_refuse(signal: Signal, document: Any) -> None:
    with pytest.raises(ParseError):
        parsed(signal, document)
    assert not accepted(signal, document)


def test_the_examples_of_the_document_are_official_with_all_they_say() -> None:
    traces = TracesData()
    traces.CopyFrom(parsed("traces", json.loads(TelemetryEnvelope("traces", example("traces")).payload)))
    first, second = traces.resource_spans[0].scope_spans[0].spans
    assert first.span_id.hex() == "3c191d03fa8be065"
    assert second.parent_span_id == first.span_id
    assert (first.trace_id.hex(), first.status.code) == ("71699b6fe85982c7c8995ea3d9c95df2", 2)
    metrics = MetricsData()
    metrics.CopyFrom(parsed("metrics", json.loads(TelemetryEnvelope("metrics", example("metrics")).payload)))
    gauge, total = metrics.resource_metrics[0].scope_metrics[0].metrics
    assert gauge.gauge.data_points[0].as_double == 12.34
    assert (total.sum.aggregation_temporality, total.sum.is_monotonic) == (2, True)
    assert total.sum.data_points[0].as_int == 456
