"""What TelemetryEnvelope refuses: each rule, with the path to the field that violates it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from outbox.core.lane import LANES, SIGNALS, Lane, Signal
from outbox.messages import TelemetryEnvelope
from outbox.messages.otlp_check import MAX_DEPTH
from tests.messages.documents import (
    SPAN,
    SPAN_PATH,
    compact,
    metric_refusal,
    nested,
    of_metric,
    of_record,
    of_span,
    refusal,
    span_refusal,
)

SEVERAL = "make several envelopes of it by TelemetryEnvelope.split"
ROOTS = {signal: LANES[Lane(signal)].root_key for signal in SIGNALS}

# -- the document --------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", SIGNALS)
def test_an_empty_document_is_refused(signal: Signal) -> None:
    root = ROOTS[signal]
    empties: list[dict[str, Any]] = [{}, {root: []}, {root: None}]
    for empty in empties:
        error = refusal(signal, empty)
        assert error.field == root
        assert "empty" in error.reason


@pytest.mark.parametrize(
    ("signal", "resource", "item"),
    [
        ("traces", {}, "span"),
        ("traces", {"scopeSpans": [{}, {"spans": []}]}, "span"),
        ("metrics", {"resource": {}, "scopeMetrics": []}, "metric"),
        ("logs", {"scopeLogs": [{"scope": {"name": "s"}}]}, "log record"),
    ],
)
def test_a_document_that_holds_no_item_is_as_empty(signal: Signal, resource: dict[str, Any], item: str) -> None:
    error = refusal(signal, {ROOTS[signal]: [resource, {}]})
    assert (error.field, error.reason) == (ROOTS[signal], f"holds no {item}: OTLP sends no empty documents")


def test_an_empty_scope_beside_one_that_holds_a_span_travels() -> None:
    document = of_span()
    document["resourceSpans"] = [{}, {"scopeSpans": [{}]}, *document["resourceSpans"]]
    assert TelemetryEnvelope("traces", document).payload == compact(document)


@pytest.mark.parametrize(
    ("signal", "document", "reason"),
    [
        ("metrics", of_span(), "belongs in a document of traces; expected resourceMetrics"),
        ("traces", of_metric(), "belongs in a document of metrics; expected resourceSpans"),
        ("traces", of_record(), "belongs in a document of logs; expected resourceSpans"),
        ("traces", of_span() | of_metric(), "belongs in a document of metrics; expected resourceSpans"),
    ],
)
def test_a_document_of_another_signal_is_refused(signal: Signal, document: dict[str, Any], reason: str) -> None:
    error = refusal(signal, document)
    assert error.reason == reason
    assert error.field in document


def test_a_second_key_is_refused() -> None:
    error = refusal("traces", {**of_span(), "license": "lsv2_secret"})
    assert (error.field, error.reason) == ("license", "unknown field")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON: Expecting value at line 1 column 1"),
        ('{"resourceSpans": [}', "is not JSON: Expecting value at line 1 column 20"),
        ("{}{}", "is not JSON: Extra data at line 1 column 3"),
        (b'{"resourceSpans": "\xff"}', "is not UTF-8 at byte 19"),
        ("[]", "expected an object, got an array"),
        ('"text"', "expected an object, got str"),
        ("[" * 100_000, "is nested too deep"),
        ('{"a":' * 100_000, "is nested too deep"),
    ],
)
def test_text_that_is_no_json_object_is_refused_with_the_position(text: str | bytes, reason: str) -> None:
    error = refusal("traces", text)
    assert (error.field, error.reason) == ("(document)", reason)


@pytest.mark.parametrize("document", [None, 5, [], ()])
def test_what_is_no_document_at_all_is_refused(document: object) -> None:
    assert refusal("traces", document).field == "(document)"


def test_a_byte_order_mark_is_ignored_and_of_two_equal_keys_the_last_wins() -> None:
    text = compact(of_span(name="b"))
    for other in ("\ufeff" + text, b"\xef\xbb\xbf" + text.encode(), text.replace('"name"', '"name":"a","name"')):
        assert TelemetryEnvelope("traces", other).payload == text


def test_a_payload_may_be_as_long_as_its_lane_takes_and_no_longer() -> None:
    limit = LANES[Lane.TRACES].max_payload_bytes
    room = limit - len(compact(of_span(name="")))
    assert len(TelemetryEnvelope("traces", of_span(name="x" * room)).payload) == limit
    error = refusal("traces", of_span(name="x" * (room + 1)))
    assert error.field == "(document)"
    assert error.reason == f"is {limit + 1} bytes in compact form, more than {limit}: {SEVERAL}"


def test_a_payload_is_measured_as_it_is_written() -> None:
    limit = LANES[Lane.TRACES].max_payload_bytes
    assert refusal("traces", of_span(name="é" * (limit // 6))).field == "(document)"


def test_indentation_is_not_counted_but_a_hundred_megabytes_are_not_even_read() -> None:
    limit = LANES[Lane.TRACES].max_payload_bytes
    text = compact(of_span())
    assert TelemetryEnvelope("traces", text + " " * limit).payload == text
    assert "split it" in refusal("traces", " " * 100_000_000).reason


# -- depth ---------------------------------------------------------------------------------------------

AROUND = 10  # document, array, ResourceSpans, array, ScopeSpans, array, Span, array, KeyValue, AnyValue
DEEPEST = (MAX_DEPTH - AROUND) // 3


def attribute(value: Any) -> dict[str, Any]:
    return of_span(attributes=[{"key": "k", "value": value}])


def test_values_nest_to_sixty_four_levels_and_no_further() -> None:
    assert AROUND + 3 * DEEPEST == MAX_DEPTH
    document = attribute(nested(DEEPEST, {"stringValue": "x"}))
    assert TelemetryEnvelope("traces", document).payload == compact(document)
    error = refusal("traces", attribute(nested(DEEPEST + 1, {})))
    assert error.reason == "is nested deeper than 64 levels"
    assert error.field.startswith(f"{SPAN_PATH}.attributes[0].value.arrayValue.values[0].")


def test_lists_of_keys_and_the_arrays_themselves_count_as_levels() -> None:
    value: dict[str, Any] = {"arrayValue": {"values": []}}  # its array stands two levels inside
    for _ in range(2):
        value = {"kvlistValue": {"values": [{"key": "k", "value": value}]}}
    around = AROUND + 2 * 4 + 2
    fits, over = (MAX_DEPTH - around) // 3, (MAX_DEPTH - around) // 3 + 1
    assert around + 3 * over == MAX_DEPTH + 1
    TelemetryEnvelope("traces", attribute(nested(fits, value)))
    error = refusal("traces", attribute(nested(over, value)))
    assert error.field.endswith("values[0].value.arrayValue.values")
    assert error.reason == "is nested deeper than 64 levels"


@pytest.mark.parametrize("levels", [65, 100, 5_000])
def test_depth_beyond_python_s_own_limit_is_refused_in_the_same_words(levels: int) -> None:
    document = attribute(nested(levels, {}))
    assert refusal("traces", document).reason == "is nested deeper than 64 levels"
    opening, closing = '{"arrayValue":{"values":[', "]}}"
    text = compact(attribute("@")).replace('"@"', opening * levels + "{}" + closing * levels)
    assert "nested" in refusal("traces", text).reason


def test_a_document_that_contains_itself_is_refused() -> None:
    values: list[Any] = []
    values.append({"arrayValue": {"values": values}})
    assert "nested deeper" in refusal("traces", attribute({"arrayValue": {"values": values}})).reason


# -- names ---------------------------------------------------------------------------------------------


def test_an_unknown_field_is_refused_with_its_path() -> None:
    assert span_refusal(colour="red") == ("colour", "unknown field")
    assert span_refusal(events=[{}, {"colour": None}]) == ("events[1].colour", "unknown field")


def test_a_name_in_snake_case_is_refused_with_the_one_to_write() -> None:
    reason = "unknown field; OTLP/JSON writes startTimeUnixNano"
    assert span_refusal(start_time_unix_nano=1) == ("start_time_unix_nano", reason)


@pytest.mark.parametrize(
    ("key", "shown"), [(7, "7"), ("a\nb", "'a\\nb'"), ("é", "'\\xe9'"), ("k" * 999, "k" * 60 + "...")]
)
def test_a_strange_key_is_shown_harmlessly(key: Any, shown: str) -> None:
    assert span_refusal(status={key: 1}) == (f"status.{shown}", "unknown field")


# -- values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [5, True, {}, [], 1.5, b"x"])
def test_what_is_not_text_is_refused(bad: object) -> None:
    path, reason = span_refusal(name=bad)
    assert path == "name"
    assert reason.startswith("expected a string, got")


@pytest.mark.parametrize("where", ["name", "spanId", "traceState"])
@pytest.mark.parametrize("text", ["nul \x00", "\ud800", "\udfff x"])
def test_text_that_not_every_database_can_carry_is_refused(where: str, text: str) -> None:
    assert span_refusal(**{where: text})[0] == where
    error = refusal("traces", json.dumps(of_span(**{where: text})))
    assert error.field == f"{SPAN_PATH}.{where}"


UNSIGNED = "expected an integer from 0 to 18446744073709551615"


@pytest.mark.parametrize("bad", [-1, 2**64, "-1", str(2**64), 10**30])
def test_a_time_beyond_64_bits_is_refused(bad: object) -> None:
    assert span_refusal(startTimeUnixNano=bad) == ("startTimeUnixNano", UNSIGNED)


@pytest.mark.parametrize(
    "bad", ["", "x", "1.0", "+1", " 1", "1_0", "٣", "0x1", "9" * 21, 1.5, 1e30, True, [], {}, float("nan")]
)
def test_a_time_that_is_no_integer_is_refused(bad: object) -> None:
    path, reason = span_refusal(startTimeUnixNano=bad)
    assert path == "startTimeUnixNano"
    assert reason.startswith("expected an integer or its decimal text")


@pytest.mark.parametrize("bad", [2**63, -(2**63) - 1, str(2**63)])
def test_a_signed_integer_beyond_64_bits_is_refused(bad: object) -> None:
    path, reason = metric_refusal(gauge={"dataPoints": [{}, {"asInt": bad}]})
    assert path == "gauge.dataPoints[1].asInt"
    assert reason == "expected an integer from -9223372036854775808 to 9223372036854775807"


@pytest.mark.parametrize("bad", [-1, 2**32, "x", True])
def test_a_32_bit_integer_out_of_range_is_refused(bad: object) -> None:
    assert span_refusal(droppedLinksCount=bad)[0] == "droppedLinksCount"


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), float("-inf"), "nan", "12.5", "", True, [], 2**64, 10**400]
)
def test_a_double_that_json_cannot_write_is_refused(bad: object) -> None:
    assert metric_refusal(gauge={"dataPoints": [{"asDouble": bad}]})[0] == "gauge.dataPoints[0].asDouble"


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_of_python_s_dialect_are_refused_with_the_path(literal: str) -> None:
    text = compact(of_metric(gauge={"dataPoints": [{"asDouble": "@"}]})).replace('"@"', literal)
    error = refusal("metrics", text)
    assert error.field.endswith(".gauge.dataPoints[0].asDouble")
    assert error.reason == 'JSON has no NaN and no infinity: write "NaN", "Infinity" or "-Infinity"'


@pytest.mark.parametrize("bad", [1, 0, "true", [], {}])
def test_what_is_neither_true_nor_false_is_refused(bad: object) -> None:
    assert metric_refusal(sum={"isMonotonic": bad})[0] == "sum.isMonotonic"


@pytest.mark.parametrize("bad", [6, -1, 1.5, "3", "CLIENT", "span_kind_client", "", True, []])
def test_an_enum_outside_its_list_is_refused(bad: object) -> None:
    assert span_refusal(kind=bad)[0] == "kind"


@pytest.mark.parametrize("bad", ["A", "!!!!", "QQ==QQ==", "é", 5, b"x"])
def test_bytes_that_are_not_base64_are_refused(bad: object) -> None:
    path, _ = span_refusal(attributes=[{"key": "k", "value": {"bytesValue": bad}}])
    assert path == "attributes[0].value.bytesValue"


@pytest.mark.parametrize("bad", ["text", 5, [], True])
def test_what_is_not_an_object_is_refused(bad: object) -> None:
    assert span_refusal(status=bad)[0] == "status"
    assert span_refusal(links=[SPAN, bad])[0] == "links[1]"


@pytest.mark.parametrize("bad", [{}, "text", 5])
def test_what_is_not_an_array_is_refused(bad: object) -> None:
    assert span_refusal(links=bad)[0] == "links"


def test_a_null_in_an_array_is_refused() -> None:
    assert span_refusal(links=[None]) == ("links[0]", "expected an object, got null")
    path, _ = metric_refusal(histogram={"dataPoints": [{"bucketCounts": [1, None]}]})
    assert path == "histogram.dataPoints[0].bucketCounts[1]"


def test_two_values_where_one_can_be_are_refused() -> None:
    both = [{"key": "k", "value": {"stringValue": "a", "intValue": 1}}]
    reason = "is set beside stringValue: only one of them can be"
    assert span_refusal(attributes=both) == ("attributes[0].value.intValue", reason)
    assert metric_refusal(gauge={}, sum={})[0] == "sum"
    assert metric_refusal(gauge={"dataPoints": [{"asInt": 1, "asDouble": 1}]})[0] == "gauge.dataPoints[0].asDouble"


# -- ids ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["traceId", "spanId"])
@pytest.mark.parametrize("bad", ["", "3c191d03fa8be0", "0932ksdka12345xx", "0" * 16, "0" * 32, "３" * 16, None])
def test_a_malformed_or_missing_id_is_refused(field: str, bad: object) -> None:
    assert refusal("traces", of_span(**{field: bad})).field == f"{SPAN_PATH}.{field}"
    assert refusal("traces", of_span(links=[{**SPAN, field: bad}])).field == f"{SPAN_PATH}.links[0].{field}"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", "is empty; it takes 16 hex digits"),
        ("3c191d03fa8be0", "has 14 hex digits, not 16"),
        ("3c191d03fa8be06500", "has 18 hex digits, not 16"),
        ("3c191d03fa8be06g", "is not hex at character 16; it takes 16 hex digits"),
        ("x", "is not hex at character 1; it takes 16 hex digits"),
        ("0" * 16, "is all zeros, which OTLP calls invalid"),
        (None, "is missing"),
        (5, "expected a string, got int"),
    ],
)
def test_a_refused_id_says_what_is_wrong_with_it(bad: object, reason: str) -> None:
    assert span_refusal(spanId=bad) == ("spanId", reason)


@pytest.mark.parametrize("bad", ["3c191d03fa8be0", "0" * 16, "x"])
def test_an_id_that_may_be_empty_must_still_be_one(bad: str) -> None:
    assert span_refusal(parentSpanId=bad)[0] == "parentSpanId"
    assert refusal("logs", of_record(spanId=bad)).field.endswith("logRecords[0].spanId")
    point = {"exemplars": [{"spanId": bad}]}
    assert metric_refusal(gauge={"dataPoints": [point]})[0] == "gauge.dataPoints[0].exemplars[0].spanId"


def test_well_formed_ids_and_an_empty_parent_are_accepted() -> None:
    document = of_span(parentSpanId="", links=[SPAN])
    assert TelemetryEnvelope("traces", document).payload == compact(document)
    record = of_record(traceId="", spanId="")
    assert TelemetryEnvelope("logs", record).payload == compact(record)


@pytest.mark.parametrize("bad", [5, {}, [], True])
def test_an_id_that_is_not_text_is_refused_in_any_case(bad: object) -> None:
    assert span_refusal(spanId=bad)[0] == "spanId"


# -- misplaced fields that do not agree ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "path", "reason"),
    [
        ({"dataPoints": [{"isMonotonic": True}, {"isMonotonic": False}]}, "dataPoints[1].isMonotonic", "contradicts"),
        ({"dataPoints": [{"isMonotonic": True}, {}]}, "dataPoints[1].isMonotonic", "is missing here"),
        ({"dataPoints": [{}, {"isMonotonic": True}]}, "dataPoints[0].isMonotonic", "is missing here"),
        ({"dataPoints": [{"isMonotonic": True}], "isMonotonic": False}, "dataPoints[0].isMonotonic", "contradicts"),
        ({"dataPoints": [{"isMonotonic": 1}]}, "dataPoints[0].isMonotonic", "expected true or false"),
        ({"dataPoints": [{"isMonotonic": True}], "isMonotonic": 1}, "isMonotonic", "expected true or false"),
        ({"dataPoints": [{"aggregationTemporality": 9}]}, "dataPoints[0].aggregationTemporality", "from 0 to 2"),
        ({"dataPoints": [{"isMonotonic": True}, 5]}, "dataPoints[0].isMonotonic", "unknown field"),
        ({"dataPoints": 5}, "dataPoints", "expected an array"),
    ],
)
def test_misplaced_fields_are_refused_where_the_meaning_is_not_certain(
    data: dict[str, Any], path: str, reason: str
) -> None:
    found, why = metric_refusal(sum=data)
    assert found == f"sum.{path}"
    assert reason in why


def test_a_gauge_has_no_temporality_to_move_to() -> None:
    assert metric_refusal(gauge={"dataPoints": [{"isMonotonic": True}]})[1] == "unknown field"
    assert metric_refusal(histogram={"dataPoints": [{"isMonotonic": True}]})[1] == "unknown field"


def test_a_refusal_shows_no_value() -> None:
    secret = "lsv2_secret"
    for field in ("name", "kind", "startTimeUnixNano", "status", "links"):
        for bad in (secret + "\x00", {"code": secret}, [secret]):
            assert secret not in str(refusal("traces", of_span(**{field: bad})))
    assert secret not in str(refusal("traces", f'{{"resourceSpans": {secret}}}'))
