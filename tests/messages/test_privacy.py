"""What the standard policy keeps, what it removes, and what each setting adds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from outbox.core.lane import LANES, Lane, Signal
from outbox.core.privacy import Place
from outbox.messages import TelemetryEnvelope
from outbox.messages.otlp_schema import MESSAGES
from outbox.messages.privacy_defaults import ALLOWED, OF_MACHINES
from tests.messages.documents import SPAN, compact, example, of_metric, of_record, of_span
from tests.messages.filtering import (
    STANDARD,
    attribute,
    filtered,
    metric_left,
    record_left,
    span_left,
    text_left,
    value_left,
    wider,
)

PERSONAL = (
    *("user.id", "user.name", "user.email", "user.full_name", "enduser.id", "enduser.role", "session.id"),
    *("client.address", "client.port", "source.address", "network.peer.address", "net.peer.ip", "server.address"),
    *("host.name", "host.id", "host.ip", "url.full", "url.path", "url.query", "http.url", "http.target"),
    *("http.request.header.cookie", "http.client_ip", "user_agent.original", "tls.client.subject"),
    *("db.statement", "db.query.text", "db.query.parameter.name", "db.namespace", "db.user", "db.connection_string"),
    *("exception.message", "exception.stacktrace", "code.filepath", "process.command_args", "process.owner"),
    *("k8s.namespace.name", "k8s.node.name", "cloud.account.id", "container.image.name", "os.description"),
    *("gen_ai.prompt", "gen_ai.completion", "gen_ai.input.messages", "messaging.destination.name", "feature", ""),
)


def with_a_span(of_scope: dict[str, Any] | None = None, **of_resource: Any) -> dict[str, Any]:
    """A document with one span, and additional fields of its scope and resource."""
    return {"resourceSpans": [{**of_resource, "scopeSpans": [{**(of_scope or {}), "spans": [SPAN]}]}]}


CLOSED: tuple[tuple[Signal, Any], ...] = (
    ("traces", with_a_span(resource={"attributes": [attribute("K", "V")]})),
    ("traces", with_a_span(of_scope={"scope": {"attributes": [attribute("K", "V")]}})),
    ("traces", of_span(attributes=[attribute("K", "V")])),
    ("traces", of_span(events=[{"attributes": [attribute("K", "V")]}])),
    ("traces", of_span(links=[{**SPAN, "attributes": [attribute("K", "V")]}])),
    ("logs", of_record(attributes=[attribute("K", "V")])),
    ("metrics", of_metric(gauge={"dataPoints": [{"attributes": [attribute("K", "V")]}]})),
    ("metrics", of_metric(histogram={"dataPoints": [{"attributes": [attribute("K", "V")]}]})),
    ("metrics", of_metric(exponentialHistogram={"dataPoints": [{"attributes": [attribute("K", "V")]}]})),
    ("metrics", of_metric(summary={"dataPoints": [{"attributes": [attribute("K", "V")]}]})),
    ("metrics", of_metric(gauge={"dataPoints": [{"exemplars": [{"filteredAttributes": [attribute("K", "V")]}]}]})),
    ("metrics", of_metric(metadata=[attribute("K", "V")])),
)
"""A document for each place that may have attributes."""


@pytest.mark.parametrize("signal", ["metrics", "traces"])
def test_the_examples_of_beacons_document_pass_but_for_a_status_message(signal: Signal) -> None:
    text, taken = filtered(signal, example(signal))
    document = json.loads(TelemetryEnvelope(signal, example(signal)).payload)
    if signal == "traces":
        assert document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["status"].pop("message") == "status-cancelled"
        assert taken == {("span", "status.message", "key"): 1}
    assert text == compact(document)


@pytest.mark.parametrize("key", sorted(ALLOWED[Place.SPAN]))
def test_a_key_of_the_list_passes(key: str) -> None:
    assert text_left("harmless", key) == "harmless"


@pytest.mark.parametrize("key", PERSONAL)
def test_a_key_that_could_tell_of_people_does_not_pass_anywhere(key: str) -> None:
    for signal, document in CLOSED:
        text, taken = filtered(signal, json.loads(compact(document).replace('"K"', json.dumps(key))))
        assert '"V"' not in text
        assert [(name, why) for _, name, why in taken] == [(key, "key")]


def test_every_place_where_attributes_may_stand_is_closed() -> None:
    places = [(name, field) for name, kinds in MESSAGES.items() for field in kinds if kinds[field] == "[KeyValue]"]
    assert len(places) - 1 == len(CLOSED), "KeyValueList is inside of a value; every other place has its document"


def test_machines_are_on_the_list_of_keys() -> None:
    assert ALLOWED[Place.RESOURCE] >= OF_MACHINES


def test_what_is_dropped_is_added_to_otlps_own_count() -> None:
    gone = [attribute("user.id"), attribute("user.name")]
    left, _ = span_left(attributes=[*gone, attribute("endpoint")], droppedAttributesCount=3)
    assert (left["attributes"], left["droppedAttributesCount"]) == ([attribute("endpoint")], 5)
    left, _ = span_left(events=[{"attributes": gone}], links=[{**SPAN, "attributes": gone}])
    assert [each["droppedAttributesCount"] for each in (*left["events"], *left["links"])] == [2, 2]
    left, _ = record_left(attributes=gone, droppedAttributesCount=2**32 - 2)
    assert left["droppedAttributesCount"] == 2**32 - 1
    assert "droppedAttributesCount" not in span_left(attributes=[attribute("endpoint")])[0]
    left, _ = metric_left(gauge={"dataPoints": [{"attributes": gone}]})
    assert left["gauge"]["dataPoints"] == [{"attributes": []}], "a data point has no such count"


def test_free_text_goes_unless_it_is_allowed() -> None:
    fields: dict[str, Any] = {"status": {"code": 2, "message": "no Jane here"}, "traceState": "dd=t.usr.id:jane"}
    left, taken = span_left(**fields, links=[{**SPAN, "traceState": "a=jane"}])
    assert left == {"status": {"code": 2}, "links": [SPAN]}
    assert taken == {("span", "status.message", "key"): 1, ("span", "traceState", "key"): 2}
    left, taken = span_left(wider("span:status.message"), **fields)
    assert left == {"status": {"code": 2, "message": "no Jane here"}}
    left, taken = span_left(wider("status.message"), status={"message": "jane@example.com is unknown"})
    assert left == {"status": {"message": "{email} is unknown"}}
    assert taken == {("span", "status.message", "value"): 1}


def test_an_exception_keeps_its_type_alone() -> None:
    of_exception = [attribute("exception.type", "app.Refused"), attribute("exception.message", "Jane is unknown")]
    left, _ = span_left(events=[{"name": "exception", "attributes": of_exception}])
    assert left["events"] == [{"name": "exception", "attributes": of_exception[:1], "droppedAttributesCount": 1}]


def test_bodies_of_logs_go_unless_they_are_allowed() -> None:
    body = {"stringValue": "Jane called from 203.0.113.77"}
    left, taken = record_left(body=body, severityText="INFO")
    assert (left, taken) == ({"severityText": "INFO"}, {("log", "body", "key"): 1})
    bodies = wider(log_bodies=True)
    assert record_left(bodies, body=body)[0]["body"] == {"stringValue": "Jane called from {address}"}
    pairs = [attribute("endpoint", "/info"), attribute("user.name", "Jane")]
    assert record_left(bodies, body={"kvlistValue": {"values": pairs}})[0]["body"] == {
        "kvlistValue": {"values": pairs[:1]}
    }
    assert record_left(bodies, body={"bytesValue": "SmFuZQ=="})[0] == {}


def test_names_of_everything_are_masked() -> None:
    mail = "of jane@example.com"
    left, taken = span_left(name=mail, events=[{"name": mail}])
    assert left == {"name": "of {email}", "events": [{"name": "of {email}"}]}
    assert taken == {("span", "name", "value"): 1, ("event", "name", "value"): 1}
    assert set(metric_left(name=mail, description=mail, unit=mail)[0].values()) == {"of {email}"}
    assert set(record_left(eventName=mail, severityText=mail)[0].values()) == {"of {email}"}
    scope = {"scope": {"name": mail, "version": mail}, "schemaUrl": "https://opentelemetry.io/schemas/1.40.0?q=x"}
    text, _ = filtered("traces", with_a_span(scope))
    assert json.loads(text)["resourceSpans"][0]["scopeSpans"] == [
        {"scope": {"name": "of {email}", "version": "of {email}"}, "spans": [SPAN], "schemaUrl": "/schemas/1.40.0"}
    ]


def test_an_id_that_is_none_goes() -> None:
    text, taken = STANDARD.filtered(Lane.TRACES, compact(of_span(parentSpanId="jane@example.com")))
    assert (text, taken) == (compact(of_span()), {("span", "parentSpanId", "value"): 1})


def test_what_is_inside_of_a_value_is_looked_at_like_the_value() -> None:
    mixed = [{"stringValue": "jane@example.com"}, {"stringValue": "ok"}, {"bytesValue": "SmFuZQ=="}, {"intValue": "1"}]
    assert value_left({"arrayValue": {"values": mixed}}) == {"arrayValue": {"values": [mixed[1], mixed[3]]}}
    pairs = [attribute("user.name", "Jane"), attribute("method", "GET"), attribute("method", "203.0.113.77")]
    assert value_left({"kvlistValue": {"values": pairs}}) == {"kvlistValue": {"values": [pairs[1]]}}
    assert value_left({"bytesValue": "SmFuZQ=="}) is None


@pytest.mark.parametrize(
    "value", [{"intValue": "7"}, {"doubleValue": 0.5}, {"boolValue": True}, {}, {"arrayValue": {}}, {"kvlistValue": {}}]
)
def test_numbers_and_what_is_empty_stay_as_they_are(value: dict[str, Any]) -> None:
    assert value_left(value) == value


LARGE = ({"intValue": "4111111111"}, {"intValue": "-4111111111"}, {"doubleValue": 4111111111111111.0})


@pytest.mark.parametrize("value", LARGE)
def test_a_number_of_ten_digits_stays_only_where_a_quantity_may_be_as_large(value: dict[str, Any]) -> None:
    assert value_left(value) is None
    assert value_left(value, "app.user_number", wider("app.*")) is None
    assert value_left({"arrayValue": {"values": [value]}}) == {"arrayValue": {"values": []}}
    for key in (
        "http.response.body.size",
        "request_size",
        "db.response.returned_rows",
        "thread.id",
        "code.lineno",
        "le",
    ):
        assert value_left(value, key) == value


@pytest.mark.parametrize("value", [{"intValue": "411111111"}, {"doubleValue": 0.12345678901}, {"doubleValue": "NaN"}])
def test_a_smaller_number_or_one_with_many_decimals_stays(value: dict[str, Any]) -> None:
    assert value_left(value) == value


@pytest.mark.parametrize(
    ("url", "left"),
    {
        "https://opentelemetry.io/schemas/1.21.0": "https://opentelemetry.io/schemas/1.21.0",
        "https://opentelemetry.io/schemas/1.21.0?q=jane": "/schemas/1.21.0",
        "https://opentelemetry.io/schemas/jane": "/schemas/jane",
        "https://customer.example/schemas/1.21.0": "/schemas/1.21.0",
    }.items(),
)
def test_a_schema_of_opentelemetry_is_nobodys(url: str, left: str) -> None:
    document = with_a_span({"schemaUrl": url}, schemaUrl=url)
    text, taken = filtered("traces", document)
    resource = json.loads(text)["resourceSpans"][0]
    assert (resource["schemaUrl"], resource["scopeSpans"][0]["schemaUrl"]) == (left, left)
    assert sum(taken.values()) == (0 if left == url else 2)


def test_a_long_value_and_a_long_name_are_cut() -> None:
    left, taken = span_left(wider(max_value_length=20), name="n" * 30, attributes=[attribute("endpoint", "v" * 30)])
    assert left == {"name": "n" * 20, "attributes": [attribute("endpoint", "v" * 20)]}
    assert taken == {("span", "name", "length"): 1, ("span", "endpoint", "length"): 1}


def test_what_a_cut_would_hide_is_seen_before_the_cut() -> None:
    short = wider(max_value_length=20)
    for text in ("x " * 8 + "jane.doe@example.com", "x" * 14 + " 203.0.113.77"):
        assert value_left({"stringValue": text}, by=short) is None
        assert value_left({"stringValue": f"/{text}"}, by=short) != {"stringValue": f"/{text}"[:20]}


def test_a_key_may_be_allowed_everywhere_in_one_place_or_with_all_that_begin_like_it() -> None:
    pairs = [attribute("app.queue"), attribute("app.queue.size"), attribute("application")]
    event = [{"attributes": pairs[:1]}]
    for entry, of_span_, of_event in (
        ("app.queue", pairs[:1], pairs[:1]),
        ("span:app.queue", pairs[:1], []),
        ("event:app.queue", [], pairs[:1]),
        ("app.*", pairs[:2], pairs[:1]),
        ("span:app.*", pairs[:2], []),
    ):
        left, _ = span_left(wider(entry), attributes=pairs, events=event)
        assert (left["attributes"], left["events"][0]["attributes"]) == (of_span_, of_event), entry


def test_a_key_that_is_allowed_by_its_beginning_must_not_be_an_address_itself() -> None:
    left, taken = span_left(wider("app.*"), attributes=[attribute("app.jane@example.com")])
    assert left["attributes"] == []
    assert taken == {("span", "app.jane@example.com", "key"): 1}


def test_values_of_keys_that_a_setting_allows_are_looked_at_too() -> None:
    assert value_left({"stringValue": "jane@example.com"}, "user.id", wider("user.id")) is None
    assert value_left({"stringValue": "jane"}, "user.id", wider("user.id")) == {"stringValue": "jane"}


def test_references_to_attributes_that_are_gone_go_too() -> None:
    of_service, of_host = {"idKeys": ["service.name"], "descriptionKeys": ["host.name"]}, {"idKeys": ["host.name"]}
    resource = {
        "attributes": [attribute("service.name"), attribute("host.name")],
        "entityRefs": [{"type": "service", **of_service}, {"type": "host", **of_host}],
    }
    text, taken = filtered("traces", with_a_span(resource=resource))
    assert json.loads(text)["resourceSpans"][0]["resource"]["entityRefs"] == [
        {"type": "service", "idKeys": ["service.name"], "descriptionKeys": []}
    ]
    assert taken["resource", "entityRefs", "key"] == 2


def test_what_is_harmless_is_the_same_text() -> None:
    envelope = TelemetryEnvelope("traces", of_span(name="receive_request", attributes=[attribute("endpoint")]))
    text, taken = STANDARD.filtered(Lane.TRACES, envelope.payload)
    assert (text is envelope.payload, taken) == (True, {})


def test_an_envelope_that_is_put_again_is_not_looked_at_again() -> None:
    envelope = TelemetryEnvelope("traces", of_span(attributes=[attribute("user.id")]))
    text, taken = envelope.left_by(STANDARD)
    again, nothing = envelope.left_by(STANDARD)
    assert (taken, nothing, again is text) == ({("span", "user.id", "key"): 1}, {}, True)
    assert envelope.left_by(wider("user.id")) == (envelope.payload, {}), "another filter looks for itself"


def test_every_telemetry_lane_has_its_walk() -> None:
    assert set(STANDARD._walks) == {lane for lane in Lane if not LANES[lane].billing}
