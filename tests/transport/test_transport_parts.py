"""An envelope that is too large for beacon: sent in parts, each span once, under keys that stay the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.batch import Batch
from outbox.core.lane import Lane
from outbox.core.receipt import Receipt, Verdict
from outbox.simulator import Simulator
from outbox.transport.parts import REMEMBERED, Parts
from tests.transport.support.batches import BATCH_ID, MakeTransport, batch_of, envelope, item

RESOURCE = {"resource": {"attributes": [{"key": "env", "value": {"stringValue": "e"}}]}}
TAKEN = Receipt(Verdict.DELIVERED, counted=False, reason="beacon answered 200 (delivered)", status=200)
TOO_LARGE = Receipt(Verdict.TOO_LARGE, counted=False, reason="beacon answered 413 (too large)", status=413)
REFUSED = Receipt(Verdict.REFUSED, counted=True, reason="beacon answered 400 (refused)", status=400)
UNAVAILABLE = Receipt(Verdict.UNAVAILABLE, counted=True, reason="beacon answered 503 (unavailable)", status=503)


def spans_of(count: int, *, huge: int | None = None) -> Batch:
    """A batch of one envelope: spans "0", "1", ... in scopes of three; the one numbered ``huge`` is long."""
    spans = [{"name": str(n), "traceState": "x" * (2000 if n == huge else 0)} for n in range(count)]
    scopes = [{"scope": {"name": f"scope-{n}"}, "spans": spans[n : n + 3]} for n in range(0, count, 3)]
    return batch_of([envelope(Lane.TRACES, {**RESOURCE, "scopeSpans": scopes})], lane=Lane.TRACES)


def names(text: str) -> list[str]:
    """The names of the spans in a body, in order."""
    return re.findall(r'"name":"(\d+)"', text)


class Beacon:
    """Accepts bodies up to a size limit; ``answers``, by key, take precedence."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.answers: dict[str, list[Receipt]] = {}
        self.taken: dict[str, str] = {}
        self.posts: list[str] = []

    def __call__(self, batch: Batch) -> Receipt:
        end = batch.key.removeprefix(str(BATCH_ID))
        self.posts.append(end)
        if self.answers.get(end):
            return self.answers[end].pop(0)
        if len(batch.lines) > self.limit:
            return TOO_LARGE
        assert self.taken.setdefault(end, batch.lines) == batch.lines
        return TAKEN

    @property
    def names(self) -> list[str]:
        return [name for key in sorted(self.taken) for name in names(self.taken[key])]


def test_an_envelope_that_fits_is_sent_as_it_is() -> None:
    beacon, batch = Beacon(10_000), spans_of(4)
    assert Parts().send(batch, beacon) is TAKEN
    assert beacon.taken == {"": batch.lines}


@given(st.integers(1, 40), st.integers(150, 3000))
def test_every_span_arrives_once_in_order_and_where_it_belongs_or_is_named(count: int, limit: int) -> None:
    beacon, batch = Beacon(limit), spans_of(count)
    receipt = Parts().send(batch, beacon)
    whole = json.loads(batch.lines)["resourceSpans"][0]
    scope_of = {span["name"]: scope["scope"] for scope in whole["scopeSpans"] for span in scope["spans"]}
    for text in beacon.taken.values():
        for resource in json.loads(text)["resourceSpans"]:
            assert resource["resource"] == RESOURCE["resource"]
            for scope in resource["scopeSpans"]:
                assert {str(scope_of[span["name"]]) for span in scope["spans"]} == {str(scope["scope"])}
    if receipt.verdict is Verdict.DELIVERED:
        assert beacon.names == [str(number) for number in range(count)]
    else:
        assert receipt.verdict is Verdict.TOO_LARGE
        assert f"{len(beacon.names)} of its {count} items are taken" in receipt.reason
        assert receipt.taken_in_part == bool(beacon.names)
    assert len(beacon.posts) == len(set(beacon.posts))


def test_the_receipt_of_an_envelope_in_parts_adds_them_up() -> None:
    beacon, batch = Beacon(10_000), spans_of(9)
    partly = replace(TAKEN, rejected=2, warning="too old")
    beacon.answers = {"": [TOO_LARGE], "/1": [partly], "/2": [replace(partly, body_sha256="of a part")]}
    receipt = Parts().send(batch, beacon)
    assert beacon.posts == ["", "/1", "/2"]
    assert (receipt.verdict, receipt.rejected, receipt.warning) == (Verdict.DELIVERED, 4, "too old")
    assert receipt.reason == "beacon took it in 2 parts (delivered, 4 rejected)"
    assert receipt.body_sha256 is None, "of the whole, which the answer to it carried"
    assert not receipt.taken_in_part


def test_one_span_that_is_too_large_alone_does_not_hold_up_the_others() -> None:
    beacon, batch = Beacon(700), spans_of(12, huge=7)
    receipt = Parts().send(batch, beacon)
    assert beacon.names == [str(number) for number in range(12) if number != 7]
    assert (receipt.verdict, receipt.taken_in_part) == (Verdict.TOO_LARGE, True)
    assert receipt.reason == (
        "resourceSpans[0].scopeSpans[2].spans[1] alone is refused: beacon answered 413 (too large);"
        " 11 of its 12 items are taken"
    )


def test_a_part_that_is_refused_does_not_hold_up_the_others() -> None:
    beacon, batch = Beacon(10_000), spans_of(9)
    beacon.answers = {"": [TOO_LARGE], "/1": [REFUSED]}
    receipt = Parts().send(batch, beacon)
    assert beacon.names == ["4", "5", "6", "7", "8"]
    assert (receipt.verdict, receipt.counted, receipt.taken_in_part) == (Verdict.REFUSED, True, True)
    assert receipt.reason.startswith("resourceSpans[0].scopeSpans[0].spans[0] and what follows is refused: ")


def test_after_a_503_only_the_rest_is_sent_under_the_same_keys() -> None:
    beacon, batch, parts = Beacon(400), spans_of(9), Parts()
    beacon.answers = {"/2": [UNAVAILABLE]}
    first = parts.send(batch, beacon)
    assert (first.verdict, first.taken_in_part) == (Verdict.UNAVAILABLE, True)
    assert first.reason == f"{UNAVAILABLE.reason}; 4 of its 9 items are taken, the rest is sent with the next attempt"
    before, beacon.posts = beacon.posts, []
    assert parts.send(replace(batch, attempts=1), beacon).verdict is Verdict.DELIVERED
    assert beacon.names == [str(number) for number in range(9)]
    assert beacon.posts[0] == "/2"
    assert set(beacon.posts).isdisjoint(before[:-1])
    assert parts.send(batch, beacon).verdict is Verdict.DELIVERED
    assert beacon.posts[-7:].count("") == 1, "what is settled is forgotten, and begins with the whole"


def test_another_process_sends_the_same_parts_under_the_same_keys() -> None:
    beacon, batch = Beacon(400), spans_of(9)
    beacon.answers = {"/2": [UNAVAILABLE]}
    Parts().send(batch, beacon)
    taken = dict(beacon.taken)
    assert Parts().send(batch, beacon).verdict is Verdict.DELIVERED
    assert beacon.taken.items() >= taken.items(), "Beacon compares the text of a key that comes again"


def test_a_stop_before_any_part_was_taken_leaves_nothing_in_doubt() -> None:
    beacon, batch = Beacon(400), spans_of(9)
    beacon.answers = {"/1": [UNAVAILABLE]}
    receipt = Parts().send(batch, beacon)
    assert (receipt.verdict, receipt.taken_in_part, beacon.posts) == (Verdict.UNAVAILABLE, False, ["", "/1"])


def test_text_that_is_no_document_is_too_large_as_a_whole() -> None:
    by_hand = replace(spans_of(1), lines="{" + " " * 500)
    assert Parts().send(by_hand, Beacon(100)) is TOO_LARGE


@pytest.mark.parametrize("lines", ["[1]", '{"resourceSpans":[{"resource":{}}]}', '{"resourceSpans":7}', "null"])
def test_what_is_json_and_no_document_is_too_large_as_a_whole(lines: str) -> None:
    assert Parts().send(replace(spans_of(1), lines=lines), Beacon(0)) is TOO_LARGE


def test_of_many_envelopes_under_way_the_oldest_is_forgotten() -> None:
    parts = Parts()
    oldest, *others = (replace(spans_of(2), id=UUID(int=number)) for number in range(REMEMBERED + 1))
    answered: list[str] = []

    def post(batch: Batch) -> Receipt:
        answered.append(batch.part)
        return UNAVAILABLE if batch.part else TOO_LARGE

    for batch in (oldest, *others):
        parts.send(batch, post)
    answered.clear()
    parts.send(others[-1], post)
    assert answered == ["/1"]
    parts.send(oldest, post)
    assert answered == ["/1", "", "/1"]


# -- against the simulator -----------------------------------------------------------------------------


@pytest.fixture
def beacon() -> Iterator[Simulator]:
    with Simulator(record_bodies=200) as simulator:
        yield simulator


@pytest.mark.parametrize("codec", ["none", "gzip"])
def test_beacon_gets_every_span_once_when_it_takes_small_bodies_only(
    transport_to: MakeTransport, beacon: Simulator, codec: str
) -> None:
    beacon.faults.max_body_bytes = 1500
    transport = transport_to(beacon.url, key=beacon.license, telemetry_compression=codec)
    count = 60 if codec == "none" else 2000
    batch = spans_of(count)
    receipt = transport.send(batch)
    assert receipt.verdict is Verdict.DELIVERED, receipt
    assert beacon.faults.fired["max_body_bytes"] >= 1
    counts = beacon.received.counts()["traces"]
    assert (counts["rows"], counts["unique"], counts["duplicates"], counts["conflicting_keys"]) == (count, count, 0, 0)
    accepted = [each for each in beacon.received.bodies("traces") if each.status == 200]
    assert all(each.headers["idempotency-key"].startswith(f"{BATCH_ID}/") for each in accepted)
    found = [name for each in accepted for name in names(each.content.decode())]
    assert found == [str(number) for number in range(count)]


def test_no_part_leaves_when_the_lease_is_over(transport_to: MakeTransport, beacon: Simulator) -> None:
    beacon.faults.max_body_bytes = 700
    transport = transport_to(beacon.url, key=beacon.license)
    batch = spans_of(12)
    late = replace(batch, lease_deadline=0.0)
    transport._parts._begin(batch, TOO_LARGE)
    receipt = transport.send(late)
    assert (receipt.verdict, receipt.counted) == (Verdict.INTERRUPTED, False)
    assert beacon.received.counts()["traces"]["requests"] == 0
    assert transport.send(batch).verdict is Verdict.DELIVERED
    assert beacon.received.unique("traces") == 12


def test_a_batch_of_several_and_a_usage_row_are_never_sent_in_parts(
    transport_to: MakeTransport, beacon: Simulator
) -> None:
    beacon.faults.max_body_bytes = 10
    transport = transport_to(beacon.url, key=beacon.license)
    several = batch_of([item(Lane.TRACES, 1), item(Lane.TRACES, 2)], lane=Lane.TRACES)
    for lane, batch in (("traces", several), ("usage", batch_of(["{}"]))):
        assert transport.send(batch).verdict is Verdict.TOO_LARGE
        assert beacon.received.counts()[lane]["requests"] == 1
