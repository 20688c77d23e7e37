"""TelemetryEnvelope with documents generated from its own schema, in every non-canonical form that it accepts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.lane import LANES, Lane, Signal
from outbox.errors import InvalidMessage
from outbox.messages import TelemetryEnvelope, normalise
from outbox.messages.otlp_schema import MESSAGES
from tests.messages.documents import any_value, compact, of_span
from tests.messages.strategies import documents, generous, signals, texts


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def shape(value: Any) -> Any:
    """The keys and lengths of a value, without its scalars, whose form may change."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else None


@generous
@given(drawn=documents())
def test_a_canonical_document_is_a_fixed_point(drawn: tuple[Signal, dict[str, Any]]) -> None:
    signal, document = drawn
    canonical = normalise(signal, document)
    assert normalise(signal, canonical) == canonical
    made = TelemetryEnvelope(signal, document)
    assert TelemetryEnvelope(signal, made.payload).payload == made.payload


@generous
@given(drawn=documents())
def test_a_payload_is_ascii_and_reads_back_as_the_canonical_document(drawn: tuple[Signal, dict[str, Any]]) -> None:
    signal, document = drawn
    payload = TelemetryEnvelope(signal, document).payload
    assert payload.isascii()
    assert json.loads(payload) == normalise(signal, document)


@generous
@given(drawn=documents())
def test_only_nulls_go(drawn: tuple[Signal, dict[str, Any]]) -> None:
    signal, document = drawn
    assert shape(normalise(signal, document)) == shape(without_nulls(document))


@generous
@given(drawn=documents())
def test_objects_text_and_bytes_are_read_alike(drawn: tuple[Signal, dict[str, Any]]) -> None:
    signal, document = drawn
    text = compact(document)
    assert normalise(signal, text) == normalise(signal, text.encode()) == normalise(signal, document)


@given(text=texts)
def test_any_text_survives_exactly(text: str) -> None:
    assert any_value({"stringValue": text}) == {"stringValue": text}
    assert any_value({"kvlistValue": {"values": [{"key": text}]}}) == {"kvlistValue": {"values": [{"key": text}]}}


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_any_double_survives_exactly(number: float) -> None:
    assert any_value({"doubleValue": number})["doubleValue"].hex() == number.hex()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(signal=signals, document=JSON, field=st.sampled_from(sorted(MESSAGES["Span"])))
def test_foreign_json_is_carried_or_refused_never_anything_else(signal: Signal, document: Any, field: str) -> None:
    for attempt in (document, {LANES[Lane(signal)].root_key: document}, of_span(**{field: document})):
        for form in (attempt, json.dumps(attempt)):
            if isinstance(form, str) and form is attempt:
                continue
            try:
                made = TelemetryEnvelope(signal, form)
            except InvalidMessage as error:
                assert str(error).isascii()  # noqa: PT017  (a refusal is one of two right outcomes)
            else:
                assert TelemetryEnvelope(signal, made.payload).payload == made.payload


@given(text=st.text(st.characters(), max_size=40) | st.binary(max_size=40))
def test_any_text_is_carried_or_refused_never_anything_else(text: str | bytes) -> None:
    with pytest.raises(InvalidMessage):
        TelemetryEnvelope("traces", text)
