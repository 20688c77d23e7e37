"""TelemetryEnvelope with documents generated from its own schema, in every non-canonical form that it accepts."""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox.core.lane import LANES, SIGNALS, Lane, Signal
from outbox.errors import InvalidMessage
from outbox.messages import TelemetryEnvelope, normalise
from outbox.messages.otlp_schema import ENUMS, MESSAGES, ONEOFS
from tests.messages.documents import any_value, compact, of_span

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
signals = st.sampled_from(SIGNALS)


def as_number_or_text(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[int | str]:
    return numbers | numbers.map(str)


def hex_digits(count: int) -> st.SearchStrategy[str]:
    digits = st.text("0123456789abcdefABCDEF", min_size=count, max_size=count)
    return digits.map(lambda text: text if text.strip("0") else "1" * count)


SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "string": texts,
    "bool": st.booleans(),
    "double": st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["NaN", "Infinity", "-Infinity", 3]),
    "bytes": st.binary(max_size=12).map(lambda data: base64.b64encode(data).decode()),
    "uint32": as_number_or_text(st.integers(0, 2**32 - 1)),
    "int32": as_number_or_text(st.integers(-(2**31), 2**31 - 1)),
    "uint64": as_number_or_text(st.integers(0, 2**64 - 1)),
    "int64": as_number_or_text(st.integers(-(2**63), 2**63 - 1)),
    "trace id": hex_digits(32),
    "span id": hex_digits(16),
    "trace id or empty": hex_digits(32) | st.just(""),
    "span id or empty": hex_digits(16) | st.just(""),
}


ITEMS: dict[Signal, tuple[str, str]] = {
    "metrics": ("scopeMetrics", "metrics"),
    "traces": ("scopeSpans", "spans"),
    "logs": ("scopeLogs", "logRecords"),
}


@cache
def kind_of(kind: str) -> st.SearchStrategy[Any]:
    """Any value that a field of this kind accepts."""
    if kind.startswith("["):
        return st.lists(kind_of(kind[1:-1]), max_size=2)
    if kind in ENUMS:
        return st.sampled_from([*ENUMS[kind], *ENUMS[kind].values()])
    return SCALARS[kind] if kind in SCALARS else st.deferred(lambda: message(kind))


@cache
def message(name: str) -> st.SearchStrategy[dict[str, Any]]:
    kinds = MESSAGES[name]
    required = {field: kind_of(kind) for field, kind in kinds.items() if kind in ("trace id", "span id")}
    fields = {field: kind_of(kind) | st.none() for field, kind in kinds.items()}
    oneof = ONEOFS.get(name, frozenset())
    common = {field: value for field, value in fields.items() if field not in oneof and field not in required}
    variants = [st.fixed_dictionaries(required, optional=common)] + [
        st.fixed_dictionaries({**required, field: fields[field]}, optional=common) for field in sorted(oneof)
    ]
    return st.one_of(variants)


@st.composite
def documents(draw: st.DrawFn) -> tuple[Signal, dict[str, Any]]:
    signal = draw(signals)
    root = LANES[Lane(signal)].root_key
    element = MESSAGES[signal][root][1:-1]
    document = {root: draw(st.lists(message(element), min_size=1, max_size=2))}
    scopes, items = ITEMS[signal]
    if not any(scope.get(items) for each in document[root] for scope in each.get(scopes) or ()):
        kind = MESSAGES[MESSAGES[element][scopes][1:-1]][items][1:-1]
        document[root].append({scopes: [{items: [draw(message(kind))]}]})
    return signal, document


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def shape(value: Any) -> Any:
    """The keys and lengths of a value, without its scalars, whose form may change."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else None


generous = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


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
