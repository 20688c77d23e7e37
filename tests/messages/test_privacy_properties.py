"""The filter with documents generated from the OTLP schema, with personal data and secrets planted anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from outbox.core.lane import Lane, Signal
from outbox.core.privacy import Place
from outbox.messages import TelemetryEnvelope, normalise
from outbox.messages.message import to_json
from outbox.messages.otlp_schema import MESSAGES
from outbox.messages.privacy_defaults import ALLOWED, OF_VERSIONS
from outbox.messages.privacy_filter import Filter
from tests.messages.documents import of_record, of_span
from tests.messages.filtering import STANDARD, wider
from tests.messages.strategies import documents, generous, message

RECOGNISED = {
    "zqcan": ("zqcan.doe@mail.example", "zqcan%40mail.example"),
    "203.0.113": ("203.0.113.77",),
    "db8:25a": ("2001:db8:25a::7334",),
    "feedc0de": ("feedc0de-1111-4222-8333-944455556666", "feedc0de1111422283339444"),
    "zqtok": (
        "Bearer zqtok1.abcdef",
        "sk-proj-zqtok",
        "sk-zqtok123",
        "password=zqtok1",
        "https://zqtok:x@h.example/a?k=zqtok",
    ),
    "eyjzq": ("eyJzqhbG.eyJzqhbG.eyJzqhbG",),
    "555-0199": ("+1 202 555-0199",),
}
"""Planted texts that are recognised anywhere, by the part that must not be in the output."""
NAME = "Zqanna Zqvist"
"""The name of a person, which no pattern can distinguish from that of a service."""

BEFORE = ("", "of ", "/users/", "(", "x=", "id:", "'", '"', "https://h.example/p?q=", "y" * 248 + " ", "é ")
AFTER = ("", " and more", "/x", ")", "'", '"', ", ", "\n", " " + "y" * 400)
ALLOWED_KEYS = sorted(frozenset().union(*ALLOWED.values()))
FOREIGN_KEYS = ("user.name", "db.statement", "k", "exception.message", "ENDPOINT", "endpoint ")
GO_WHOLE = ("body", "message", "traceState")
POLICIES = (STANDARD, wider("app.*", "status.message", "traceState", log_bodies=True, max_value_length=16))

canaries = st.sampled_from([text for texts in RECOGNISED.values() for text in texts])


@st.composite
def planted(draw: st.DrawFn) -> tuple[Signal, dict[str, Any]]:
    """A document in which any text is or contains planted data, and all keys are allowed ones."""
    signal, document = draw(documents())
    return signal, _planted(draw, signal, normalise(signal, document))


def _planted(draw: st.DrawFn, kind: str, value: Any, *, goes: bool = False, of_version: bool = False) -> Any:
    """``value``, of a kind of ``otlp_schema``, with planted data. ``goes``: the filter will remove all of it.

    ``of_version``: it is a version, in which 1.2.3.4 is not an address.
    """
    if kind.startswith("["):
        return [_planted(draw, kind[1:-1], each, goes=goes, of_version=of_version) for each in value]
    if kind == "KeyValue":
        key = draw(st.sampled_from(ALLOWED_KEYS) | st.sampled_from(FOREIGN_KEYS) | canaries)
        goes, of_version = goes or key not in ALLOWED_KEYS, key in OF_VERSIONS
        inside = _planted(draw, "AnyValue", value.get("value", {}), goes=goes, of_version=of_version)
        return {"key": key, "value": inside}
    if kind in MESSAGES:
        return {
            field: _planted(
                draw,
                MESSAGES[kind][field],
                inside,
                goes=goes or field in GO_WHOLE,
                of_version=of_version or field == "version",
            )
            for field, inside in value.items()
        }
    if kind != "string":
        return value
    what = draw(st.sampled_from(["as it is", "recognised", "name" if goes else "recognised"]))
    if what == "as it is":
        return value
    if what == "name":
        return NAME
    canary = draw(canaries.filter(lambda text: text not in RECOGNISED["203.0.113"]) if of_version else canaries)
    return draw(st.sampled_from(BEFORE)) + canary + draw(st.sampled_from(AFTER))


def given_away(text: str) -> Iterator[str]:
    return (mark for mark in (*RECOGNISED, "zqanna", "zqvist") if mark in text.lower())


@generous
@given(drawn=planted())
def test_nothing_planted_is_left(drawn: tuple[Signal, dict[str, Any]]) -> None:
    signal, document = drawn
    text, _ = STANDARD.filtered(Lane(signal), TelemetryEnvelope(signal, document).payload)
    assert list(given_away(text)) == []


@generous
@given(drawn=planted(), by=st.sampled_from(POLICIES))
def test_what_is_left_is_canonical_and_stays_as_it_is(drawn: tuple[Signal, dict[str, Any]], by: Filter) -> None:
    signal, document = drawn
    text, taken = by.filtered(Lane(signal), TelemetryEnvelope(signal, document).payload)
    assert TelemetryEnvelope(signal, text).payload == text
    assert by.filtered(Lane(signal), text) == (text, {})
    assert all(times > 0 for times in taken.values())


@given(mark=st.sampled_from(sorted(RECOGNISED)), data=st.data())
def test_the_search_sees_what_is_planted(mark: str, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(BEFORE)) + data.draw(st.sampled_from(RECOGNISED[mark]))
    assert mark in list(given_away(TelemetryEnvelope("traces", of_span(name=text)).payload))


harmless_texts = st.from_regex(r"[a-z][a-z_]{0,10}( [A-Z][a-z]{1,8})?(/[a-z]{1,8}){0,3}", fullmatch=True)


@generous
@given(
    signal=st.sampled_from(["traces", "logs"]),
    pairs=st.lists(st.tuples(st.sampled_from(sorted(ALLOWED[Place.EVENT])), harmless_texts), max_size=5),
    name=harmless_texts,
)
def test_what_is_allowed_and_harmless_is_unchanged(signal: Signal, pairs: list[tuple[str, str]], name: str) -> None:
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in pairs]
    spans = of_span(name=name, attributes=attributes, events=[{"name": name, "attributes": attributes}])
    document = spans if signal == "traces" else of_record(eventName=name, attributes=attributes)
    assert STANDARD.filtered(Lane(signal), to_json(document)) == (to_json(document), {})


@generous
@given(point=message("NumberDataPoint"))
def test_numbers_and_times_are_never_touched(point: dict[str, Any]) -> None:
    document = normalise(
        "metrics", {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"gauge": {"dataPoints": [point]}}]}]}]}
    )
    left, _ = STANDARD.filtered(Lane.METRICS, to_json(document))
    kept = normalise("metrics", left)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["gauge"]["dataPoints"][0]
    before = document["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["gauge"]["dataPoints"][0]
    numbers = {"startTimeUnixNano", "timeUnixNano", "asDouble", "asInt", "flags"}
    assert {name: kept.get(name) for name in numbers} == {name: before.get(name) for name in numbers}
