"""Every request body, merged from several envelopes, parses strictly as the official messages.

``OUTBOX_TEST_BODIES`` is the number of bodies of each test (60); ``-s`` prints the number of documents in them.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox.core.batch import Batch
from outbox.core.lane import LANES, SIGNALS, Lane, Signal
from outbox.messages import TelemetryEnvelope
from outbox.otel.envelopes import Packed, of_logs, of_metrics, of_spans
from outbox.transport.request import build_request
from outbox.transport.secret import Secret
from tests.messages.strategies import documents
from tests.otel import made
from tests.otel.protobuf import flat, parse
from tests.otel.versions import needs_the_messages_of_otlp_1_7

BODIES = int(os.environ.get("OUTBOX_TEST_BODIES", "60"))

many = settings(
    max_examples=BODIES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_PACK = {
    "traces": st.lists(made.spans, min_size=1, max_size=3).map(of_spans),
    "logs": st.lists(made.logs, min_size=1, max_size=3).map(of_logs),
    "metrics": made.collections.map(of_metrics),
}


def body_of(signal: Signal, payloads: Sequence[str]) -> bytes:
    """The body as it is sent."""
    lane = Lane(signal)
    batch = Batch(
        id=uuid4(),
        lane=lane,
        members=((1, len(payloads)),),
        rows=len(payloads),
        payload_bytes=sum(map(len, payloads)),
        attempts=0,
        lease_token=uuid4(),
        lease_deadline=math.inf,
        ambiguous=False,
        lines="\n".join(payloads),
    )
    return build_request(batch, LANES[lane], Secret("a"), Secret("b"), "http://127.0.0.1").body


@pytest.fixture
def checked() -> Iterator[Counter[str]]:
    """Counts the parsed documents and bodies, and requires at least ``BODIES`` bodies at the end."""
    counts: Counter[str] = Counter()
    yield counts
    assert counts["bodies"] >= BODIES
    print(f"{counts['documents']} documents, parsed one by one and as {counts['bodies']} bodies")


def _check(signal: Signal, payloads: Sequence[str], checked: Counter[str]) -> None:
    checked["documents"] += len(payloads)
    checked["bodies"] += 1
    apart = [parse(signal, payload) for payload in payloads]
    assert flat(signal, parse(signal, body_of(signal, payloads))) == flat(signal, *apart)


@pytest.mark.timeout(max(180, BODIES))
@pytest.mark.parametrize("signal", SIGNALS)
def test_a_body_of_what_the_sdk_makes_is_parsed_and_holds_every_item(signal: Signal, checked: Counter[str]) -> None:
    @many
    @given(st.lists(_PACK[signal], min_size=1, max_size=3))
    def merged(packs: list[Packed]) -> None:
        _check(signal, [envelope.payload for packed in packs for envelope in packed.envelopes], checked)

    merged()


@needs_the_messages_of_otlp_1_7
@pytest.mark.timeout(max(180, BODIES))
def test_a_body_of_any_documents_is_parsed_and_holds_every_item(checked: Counter[str]) -> None:
    @many
    @given(st.lists(documents(), min_size=1, max_size=3))
    def merged(drawn: list[tuple[Signal, dict[str, Any]]]) -> None:
        for signal in {signal for signal, _ in drawn}:
            some = [_with_hex_ids(document) for each, document in drawn if each == signal]
            _check(signal, [TelemetryEnvelope(signal, document).payload for document in some], checked)

    merged()


def _with_hex_ids(value: Any) -> Any:
    """Replace ids by valid ones: refusals of invalid ids are tested elsewhere."""
    if isinstance(value, dict):
        lengths = {"traceId": 32, "spanId": 16, "parentSpanId": 16}
        return {
            key: sha256(repr(each).encode()).hexdigest()[: lengths[key]] if key in lengths else _with_hex_ids(each)
            for key, each in value.items()
        }
    return [_with_hex_ids(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "broken",
    [
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"unknown": 1}]}]}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"kind": "SERVER"}]}]}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "soon"}]}]}]},
    ],
)
def test_the_parser_refuses_what_is_not_otlp(broken: dict[str, Any]) -> None:
    with pytest.raises(json_format.ParseError):
        parse("traces", json.dumps(broken))


def test_the_parser_reads_ids_as_hex() -> None:
    span = {"traceId": "71699b6fe85982c7c8995ea3d9c95df2", "spanId": "3c191d03fa8be065"}
    envelope = TelemetryEnvelope("traces", {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})
    [read] = parse("traces", envelope.payload).resource_spans[0].scope_spans[0].spans
    assert (read.trace_id.hex(), read.span_id.hex()) == (span["traceId"], span["spanId"])
