"""TelemetryEnvelope: what is accepted, and the canonical form it is stored in."""

from __future__ import annotations

import copy
import json
import pickle
import uuid
from typing import Any

import pytest

from outbox.core.lane import SIGNALS, Lane, Signal
from outbox.errors import InvalidMessage
from outbox.messages import Message, TelemetryEnvelope, normalise
from tests.messages.documents import (
    MENDED,
    SPAN,
    any_value,
    as_it_stands,
    compact,
    example,
    metric,
    of_metric,
    of_record,
    of_span,
    refusal,
    span,
)

SMALL: dict[Signal, dict[str, Any]] = {"metrics": of_metric(name="m"), "traces": of_span(), "logs": of_record()}

# -- the examples of the beacon document ---------------------------------------------------------------


def test_the_traces_example_travels_with_nothing_lost() -> None:
    assert TelemetryEnvelope("traces", example("traces")).payload == compact(json.loads(example("traces")))


def test_the_metrics_example_arrives_canonical() -> None:
    wanted = json.loads(example("metrics"))
    for each in wanted["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]:
        (point,) = each.get("gauge", each.get("sum"))["dataPoints"]
        point["startTimeUnixNano"] = point["timeUnixNano"] = "1678886400000000000"
        if "sum" in each:
            point["asInt"] = "456"
            each["sum"]["aggregationTemporality"] = point.pop("aggregationTemporality")
            each["sum"]["isMonotonic"] = point.pop("isMonotonic")
    assert TelemetryEnvelope("metrics", example("metrics")).payload == compact(wanted)


@pytest.mark.parametrize(
    ("mended", "span", "reason"),
    [
        ([], 0, "has 14 hex digits, not 16"),
        (["3c191d03fa8be0"], 1, "is not hex at character 5; it takes 16 hex digits"),
    ],
)
def test_as_it_stands_the_traces_example_is_refused_for_its_two_malformed_span_ids(
    mended: list[str], span: int, reason: str
) -> None:
    text = as_it_stands("traces")
    for id in mended:
        text = text.replace(id, MENDED[id])
    error = refusal("traces", text)
    assert error.field == f"resourceSpans[0].scopeSpans[0].spans[{span}].spanId"
    assert error.reason == reason


@pytest.mark.parametrize("form", [str, str.encode, json.loads, lambda text: bytearray(text.encode())])
def test_text_bytes_and_objects_give_the_same_payload(form: Any) -> None:
    made = TelemetryEnvelope("traces", form(example("traces")))
    assert made.payload == TelemetryEnvelope("traces", example("traces")).payload


def test_the_caller_s_document_is_left_alone() -> None:
    document = json.loads(example("metrics"))
    TelemetryEnvelope("metrics", document)
    assert document == json.loads(example("metrics"))


# -- canonical form ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (0, "0"),
        (1678886400000000000, "1678886400000000000"),
        (2**64 - 1, "18446744073709551615"),
        ("18446744073709551615", "18446744073709551615"),
        ("007", "7"),
        (5.0, "5"),
        (float(2**53), "9007199254740992"),
    ],
)
def test_unsigned_64_bit_integers_become_decimal_text(given: object, stored: str) -> None:
    assert span(startTimeUnixNano=given) == {"startTimeUnixNano": stored}
    point = {"count": given, "bucketCounts": [given]}
    stored_point = metric(histogram={"dataPoints": [point]})["histogram"]["dataPoints"][0]
    assert stored_point == {"count": stored, "bucketCounts": [stored]}


@pytest.mark.parametrize("given", [-(2**63), 2**63 - 1, -1, 0])
def test_signed_64_bit_integers_become_decimal_text(given: int) -> None:
    for form in (given, str(given)):
        assert any_value({"intValue": form}) == {"intValue": str(given)}
        assert metric(gauge={"dataPoints": [{"asInt": form}]})["gauge"]["dataPoints"] == [{"asInt": str(given)}]


@pytest.mark.parametrize("given", [7, "7", 7.0])
def test_32_bit_integers_become_numbers(given: object) -> None:
    assert compact(span(droppedEventsCount=given)) == '{"droppedEventsCount":7}'


@pytest.mark.parametrize("given", [3, 3.0, "SPAN_KIND_CLIENT"])
def test_enums_become_numbers(given: object) -> None:
    assert compact(span(kind=given)) == '{"kind":3}'


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SEVERITY_NUMBER_UNSPECIFIED", 0),
        ("SEVERITY_NUMBER_TRACE", 1),
        ("SEVERITY_NUMBER_INFO2", 10),
        ("SEVERITY_NUMBER_FATAL4", 24),
    ],
)
def test_the_severities_of_logs_count_in_fours(name: str, number: int) -> None:
    made = TelemetryEnvelope("logs", of_record(severityNumber=name))
    assert made.payload == compact(of_record(severityNumber=number))


@pytest.mark.parametrize("number", [0, 1, -1.5, 12.34, 5e-324, 1.7976931348623157e308, 2**64 - 1, -(2**63)])
def test_doubles_are_carried_exactly(number: float) -> None:
    assert any_value({"doubleValue": number}) == {"doubleValue": number}


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_the_three_words_for_doubles_that_are_no_numbers_are_kept(word: str) -> None:
    assert any_value({"doubleValue": word}) == {"doubleValue": word}


@pytest.mark.parametrize(
    ("given", "stored"), [("", ""), ("AQID", "AQID"), ("_-8=", "/+8="), ("_-8", "/+8="), ("QR==", "QQ==")]
)
def test_bytes_become_padded_base64_in_the_standard_alphabet(given: str, stored: str) -> None:
    assert any_value({"bytesValue": given}) == {"bytesValue": stored}


def test_hex_ids_become_lower_case() -> None:
    upper = {name: value.upper() for name, value in SPAN.items()}
    assert TelemetryEnvelope("traces", of_span(**upper)) != TelemetryEnvelope("traces", of_span())
    assert TelemetryEnvelope("traces", of_span(**upper)).payload == compact(of_span())


@pytest.mark.parametrize("value", [{}, [], ""])
def test_empty_values_stay_and_nulls_go(value: Any) -> None:
    field = {"": "traceState", "{}": "status", "[]": "links"}[str(value)]
    assert span(**{field: value}) == {field: value}
    assert span(**{field: None}) == {}
    assert any_value({"stringValue": None}) == {}


def test_fields_keep_their_order() -> None:
    document = of_span(name="n", endTimeUnixNano="2", startTimeUnixNano="1", kind=1)
    assert TelemetryEnvelope("traces", document).payload == compact(document)


@pytest.mark.parametrize("text", ["a", "\\u0000", '"\\/\b\n\x1f\x7f', "größe", "日本\u2028", "😀", "<script>"])
def test_text_is_carried_exactly_and_in_ascii(text: str) -> None:
    assert any_value({"stringValue": text}) == {"stringValue": text}
    assert TelemetryEnvelope("traces", of_span(name=text)).payload.isascii()


# -- misplaced fields of a sum -------------------------------------------------------------------------

CUMULATIVE = 2


@pytest.mark.parametrize(
    "points",
    [
        [{"aggregationTemporality": CUMULATIVE}],
        [{"aggregationTemporality": CUMULATIVE}, {"aggregationTemporality": "AGGREGATION_TEMPORALITY_CUMULATIVE"}],
        [{"aggregationTemporality": "AGGREGATION_TEMPORALITY_CUMULATIVE"}],
    ],
)
@pytest.mark.parametrize("data", ["sum", "histogram", "exponentialHistogram"])
def test_a_temporality_that_all_points_agree_on_moves_up(data: str, points: list[dict[str, Any]]) -> None:
    stored = metric(**{data: {"dataPoints": points}})[data]
    assert stored == {"dataPoints": [{}] * len(points), "aggregationTemporality": CUMULATIVE}


def test_what_is_said_above_need_not_be_repeated_in_every_point() -> None:
    points = [{"isMonotonic": False}, {"asInt": "1"}, {"isMonotonic": None}]
    assert metric(sum={"isMonotonic": False, "dataPoints": points})["sum"] == {
        "isMonotonic": False,
        "dataPoints": [{}, {"asInt": "1"}, {}],
    }


def test_misplaced_nulls_say_nothing() -> None:
    assert metric(sum={"dataPoints": [{"isMonotonic": None}, {}]})["sum"] == {"dataPoints": [{}, {}]}


# -- as a value ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", SIGNALS)
def test_an_envelope_is_a_message_of_its_signal_s_lane(signal: Signal) -> None:
    message: Message = TelemetryEnvelope(signal=signal, document=SMALL[signal])
    assert message.lane is Lane(signal)
    assert message.payload == compact(SMALL[signal])
    assert message.id.version == 7
    assert TelemetryEnvelope(signal, SMALL[signal]).signal == signal


def test_an_id_may_be_given_and_is_checked() -> None:
    given = uuid.uuid4()
    assert TelemetryEnvelope("traces", of_span(), id=given) == TelemetryEnvelope("traces", of_span(), str(given))
    assert refusal("traces", of_span(), id="x").field == "id"


def test_an_envelope_cannot_be_changed_and_survives_copying() -> None:
    made = TelemetryEnvelope("traces", example("traces"))
    with pytest.raises(AttributeError, match="immutable"):
        made.payload = ""
    with pytest.raises(AttributeError, match="immutable"):
        del made.id
    assert {made, copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))} == {made}


def test_the_repr_is_short_and_shows_no_content() -> None:
    made = TelemetryEnvelope("traces", of_span(name="private"))
    assert repr(made) == f"<TelemetryEnvelope traces {made.id} {len(made.payload)} bytes>"


@pytest.mark.parametrize("signal", ["usage", "", "Metrics", None, 5, []])
def test_an_unknown_signal_is_refused(signal: Any) -> None:
    error = refusal(signal, of_span())
    assert (error.field, error.reason) == ("signal", "expected one of metrics, traces, logs")
    with pytest.raises(InvalidMessage):
        normalise(signal, of_span())
