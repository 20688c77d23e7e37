"""A document above the size limit becomes several within it, and nothing is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox.core.lane import LANES, Lane, Signal
from outbox.errors import InvalidMessage
from outbox.messages import TelemetryEnvelope, normalise, split_document
from outbox.messages.message import to_json
from tests.messages.documents import SPAN, compact, example, of_metric, of_record, of_span
from tests.messages.strategies import documents

LIMIT = LANES[Lane.TRACES].max_payload_bytes


def spans(count: int, name: str) -> dict[str, Any]:
    document = of_span()
    document["resourceSpans"][0]["resource"] = {"attributes": [{"key": "env", "value": {"stringValue": "e"}}]}
    scope = document["resourceSpans"][0]["scopeSpans"][0]
    scope["scope"] = {"name": "s", "version": "1"}
    scope["spans"] = [{**SPAN, "name": f"{index} {name}"} for index in range(count)]
    return document


def names_of(documents: list[dict[str, Any]]) -> list[str]:
    return [
        span["name"]
        for document in documents
        for resource in document["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def test_a_document_within_the_limit_is_the_only_part() -> None:
    document = json.loads(example("metrics"))
    assert split_document("metrics", document) == [normalise("metrics", document)]
    assert split_document("metrics", example("metrics")) == [normalise("metrics", document)]


def test_a_document_beyond_the_limit_is_cut_between_spans_and_each_part_says_where_they_belong() -> None:
    document = spans(90, "x" * 100)
    parts = split_document("traces", document, 4000)
    assert len(parts) > 1
    assert max(len(to_json(part)) for part in parts) <= 4000
    assert names_of(parts) == names_of([document])
    for part in parts:
        [resource] = part["resourceSpans"]
        [scope] = resource["scopeSpans"]
        assert resource["resource"] == document["resourceSpans"][0]["resource"]
        assert scope["scope"] == {"name": "s", "version": "1"}


def test_parts_are_even() -> None:
    document = spans(90, "x" * 100)
    sizes = [len(to_json(part)) for part in split_document("traces", document, len(compact(document)) - 1)]
    assert len(sizes) == 2
    assert max(sizes) - min(sizes) < 20


def test_a_metric_is_cut_between_its_data_points() -> None:
    points = [{"asInt": str(index)} for index in range(50)]
    total = {"dataPoints": points, "aggregationTemporality": 2, "isMonotonic": True}
    parts = split_document("metrics", of_metric(name="m", sum=total), 500)
    metrics = [part["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0] for part in parts]
    assert [point for metric in metrics for point in metric["sum"]["dataPoints"]] == points
    for metric in metrics:
        assert (metric["name"], metric["sum"]["aggregationTemporality"], metric["sum"]["isMonotonic"]) == ("m", 2, True)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(documents(), st.integers(1, 3000))
def test_parts_fit_and_are_envelopes_or_the_refusal_names_a_single_item(
    drawn: tuple[Signal, dict[str, Any]], limit: int
) -> None:
    signal, document = drawn
    try:
        parts = split_document(signal, document, limit)
    except InvalidMessage as refused:
        error = refused
    else:
        for part in parts:
            assert len(to_json(part)) <= limit
            assert normalise(signal, part) == part
        return
    assert "with all that it belongs to" in error.reason
    assert error.field.endswith("]")


def test_a_single_span_beyond_the_limit_is_refused_with_its_place() -> None:
    document = spans(5, "x")
    document["resourceSpans"][0]["scopeSpans"][0]["spans"][3]["name"] = "x" * 1000
    with pytest.raises(InvalidMessage) as caught:
        split_document("traces", document, 600)
    assert caught.value.field == "resourceSpans[0].scopeSpans[0].spans[3]"
    assert caught.value.reason.endswith("bytes with all that it belongs to, over 600")


def test_what_no_envelope_takes_no_split_takes() -> None:
    with pytest.raises(InvalidMessage, match="spanId: is missing"):
        split_document("traces", {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": SPAN["traceId"]}]}]}]})
    with pytest.raises(InvalidMessage, match="signal"):
        split_document("usage", of_record())  # type: ignore[arg-type]


def test_envelopes_of_a_document_of_any_size() -> None:
    document = spans(6, "x" * (LIMIT // 3))
    with pytest.raises(InvalidMessage, match=r"TelemetryEnvelope\.split"):
        TelemetryEnvelope("traces", document)
    for form in (document, compact(document)):
        envelopes = TelemetryEnvelope.split("traces", form)
        assert len({envelope.id for envelope in envelopes}) == len(envelopes) > 1
        assert names_of([json.loads(envelope.payload) for envelope in envelopes]) == names_of([document])
        assert {envelope.lane for envelope in envelopes} == {Lane.TRACES}
        assert max(len(envelope.payload) for envelope in envelopes) <= LIMIT


def test_one_envelope_of_a_small_document() -> None:
    [envelope] = TelemetryEnvelope.split("traces", example("traces"))
    assert envelope.payload == TelemetryEnvelope("traces", example("traces")).payload
