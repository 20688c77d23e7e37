"""The common parts of both messages: deterministic JSON, and strict parsing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.errors import InvalidMessage
from outbox.messages import TelemetryEnvelope, UsageInterval
from outbox.messages.message import parse_json, to_json
from tests.messages.documents import of_span
from tests.messages.rows import ROW, interval

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


@given(value=VALUES)
def test_encoding_is_ascii_and_loses_nothing(value: object) -> None:
    text = to_json(value)
    assert text.isascii()
    assert json.loads(text) == value
    assert parse_json(text, "here") == value


@given(value=VALUES)
def test_a_payload_parsed_and_encoded_again_is_the_same_text(value: object) -> None:
    text = to_json(value)
    assert to_json(parse_json(text, "here")) == text


@given(text=st.text(st.characters(), max_size=50) | st.binary(max_size=50))
def test_reading_json_gives_a_value_or_names_the_place(text: str | bytes) -> None:
    try:
        parse_json(text, "here")
    except InvalidMessage as error:
        assert (error.field, error.reason.isascii()) == ("here", True)  # noqa: PT017  (one of two right outcomes)


@pytest.mark.parametrize("before", ["", "NaN,"])
def test_text_nested_beyond_python_s_own_limit_is_refused(before: str) -> None:
    with pytest.raises(InvalidMessage, match="here: is nested too deep"):
        parse_json(f"[{before}" + "[" * 100_000, "here")


def test_text_beyond_its_bound_is_refused_unread() -> None:
    assert parse_json("[1]", "here", 3) == [1]
    with pytest.raises(InvalidMessage, match="here: is 4 bytes, more than 3: split it"):
        parse_json("[[[[", "here", 3)


def test_messages_of_two_kinds_are_never_equal() -> None:
    envelope = TelemetryEnvelope("traces", of_span(), id=ROW["id"])
    usage: object = interval()
    assert isinstance(usage, UsageInterval)
    assert envelope.id == usage.id
    assert envelope != usage
