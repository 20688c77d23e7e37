"""A hostile or broken beacon, end to end: whatever it answers, no row is taken for sent that beacon did not take, and
``outbox status`` says why nothing moves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox import TelemetryEnvelope
from outbox.demo.producers import traces
from tests.faults import hostile
from tests.faults.hostile import ATTEMPTS_TO_PAUSE, FLOODS, PATHS, Victim, inserted, noted, ok, twice, victim_of, well
from tests.support.intervals import intervals
from tests.transport.support.raw_server import (
    JSON,
    RawServer,
    Reply,
    answer,
    drip,
    hang_up,
    head_of,
)

USAGE = "/ingest-traces"
GOOD = b'{"inserted_count":2}'
HASTY = pytest.mark.parametrize("victim", [{"request_timeout": 0.5}], indirect=True)
"""For what only the deadline ends."""


@pytest.fixture
def victim(request: pytest.FixtureRequest, beacon_host: RawServer, tmp_path: Path) -> Iterator[Victim]:
    """``@pytest.mark.parametrize("victim", [{setting: value}], indirect=True)`` changes settings."""
    with victim_of(beacon_host, tmp_path, **getattr(request, "param", {})) as victim:
        yield victim


def interim(status: int, count: int = 1) -> bytes:
    return f"HTTP/1.1 {status} Interim\r\n\r\n".encode() * count


# --- a 2xx that is no answer ------------------------------------------------------------------------------

LIES: dict[str, object] = {
    "negative": -1,
    "one too many": 3,
    "far too many": 10**400,
    "a float": 2.0,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "a string": "2",
    "true": True,
    "null": None,
    "a list": [2],
    "an object": {"count": 2},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_an_answer_that_lies_about_its_count_sends_nothing(victim: Victim, beacon_host: RawServer, lie: object) -> None:
    ids = victim.box.put(*intervals(2))
    beacon_host.on(USAGE, inserted(lie))
    assert "inserted_count that contradicts the 2 rows sent" in victim.until_paused()
    victim.must_recover(ids)


NOT_AN_ANSWER: dict[str, tuple[bytes, str]] = {
    "captive portal": (b"<!doctype html><title>Sign in</title>", "is not JSON"),
    "garbage": (bytes(range(256)) * 16, "is not JSON"),
    "nothing": (b"", "is not JSON"),
    "half a document": (b'{"inserted_count":2', "is not JSON"),
    "two documents": (GOOD + GOOD, "is not JSON"),
    "deep brackets": (b"[" * 200_000, "is not JSON"),
    "deep objects": (b'{"inserted_count":' * 50_000, "is not JSON"),
    "an integer of 5000 digits": (b'{"inserted_count":' + b"9" * 5000 + b"}", "is not JSON"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "is not JSON"),
    "an array": (b'[{"inserted_count":2}]', "is not a JSON object"),
    "a bare number": (b"2", "is not a JSON object"),
    "another object": (b'{"status":"ok"}', "has no inserted_count"),
}


@pytest.mark.parametrize(("body", "why"), NOT_AN_ANSWER.values(), ids=NOT_AN_ANSWER)
def test_a_200_that_is_no_answer_sends_nothing(victim: Victim, beacon_host: RawServer, body: bytes, why: str) -> None:
    ids = victim.box.put(*intervals(2))
    beacon_host.on(USAGE, answer(200, body))
    assert why in victim.until_paused()
    victim.must_recover(ids)


def test_a_captive_portal_in_front_of_everything_sends_nothing(victim: Victim, beacon_host: RawServer) -> None:
    """Every path, verify too, answers 200 with the same page."""
    ids = victim.box.put(*intervals(2))
    page = answer(200, b"<!doctype html><title>Sign in</title>", {"Content-Type": "text/html"})
    for path in ("/verify", *PATHS.values()):
        beacon_host.on(path, page)
    reason = victim.until_paused()
    assert reason == "verify: beacon answered 200, but its content type is not application/json"
    assert beacon_host.posts(USAGE) == []
    assert victim.find(ids[0]).num_failed_send_attempts == 0
    well(beacon_host)
    victim.until(lambda: victim.lane().sent == 2)


def test_a_broken_lane_does_not_hold_up_the_others(victim: Victim, beacon_host: RawServer) -> None:
    victim.box.put(*intervals(2), TelemetryEnvelope("traces", traces()))
    beacon_host.on(USAGE, answer(200, b"garbage"))
    victim.until_paused()
    assert (victim.lane("usage").sent, victim.lane("traces").sent, victim.lane("traces").state) == (0, 1, "open")


# --- an answer that breaks HTTP ---------------------------------------------------------------------------

BROKEN_HTTP: dict[str, bytes] = {
    "lengths that contradict": ok(GOOD, Content_Length="5"),
    "lengths in one line": head_of(200, JSON | {"Content-Length": "20, 5"}) + GOOD,
    "a negative length": head_of(200, JSON | {"Content-Length": "-1"}) + GOOD,
    "a signed length": head_of(200, JSON | {"Content-Length": "+20"}) + GOOD,
    "a length beyond all bounds": head_of(200, JSON | {"Content-Length": "9" * 40}) + GOOD,
    "a length that is too short": ok(GOOD, length=5),
    "a length that is too long": ok(GOOD, length=500),
    "chunked that is not": ok(GOOD, Transfer_Encoding="chunked"),
    "an unknown transfer coding": head_of(200, JSON | {"Transfer-Encoding": "gzip, chunked"}) + GOOD,
    "a chunk size without end": head_of(200, JSON | {"Transfer-Encoding": "chunked"}) + b"f" * 40 + b"\r\n",
    "gzip that is not": ok(GOOD, Content_Encoding="gzip"),
    "another coding that is not": ok(b"\x1b\x13\x00\xf8", Content_Encoding="br"),
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n" + GOOD,
    "another protocol": b"ICY 200 OK\r\n\r\n" + GOOD,
    "no head at all": GOOD,
    "a zero byte in a header": b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n" + GOOD,
    "a switch of protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
    + ok(GOOD),
    "a bare 100": interim(100),
    "a 100 with a body": b"HTTP/1.1 100 Continue\r\nContent-Length: 20\r\n\r\n" + GOOD,
}


@pytest.mark.parametrize("raw", BROKEN_HTTP.values(), ids=BROKEN_HTTP)
def test_an_answer_that_breaks_http_sends_nothing(victim: Victim, beacon_host: RawServer, raw: bytes) -> None:
    ids = victim.box.put(*intervals(2))
    beacon_host.on(USAGE, noted("broken", raw))
    assert "ambiguous" in victim.until_paused()
    assert beacon_host.fired.count("broken") >= ATTEMPTS_TO_PAUSE
    victim.must_recover(ids)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(interim(100) + ok(GOOD), id="100, then 200"),
        pytest.param(interim(103, 50) + ok(GOOD), id="fifty early hints, then 200"),
        pytest.param(ok(GOOD, Content_Length="20"), id="the same length twice"),
    ],
)
def test_an_odd_answer_that_http_allows_is_taken(victim: Victim, beacon_host: RawServer, raw: bytes) -> None:
    victim.box.put(*intervals(2))
    beacon_host.on(USAGE, noted("odd", raw))
    victim.until(lambda: victim.lane().sent == 2)
    beacon_host.wait_for("odd")
    assert beacon_host.fired == ["odd"]


@HASTY
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", byte=b"a"), id="a header"),
        pytest.param(drip(head_of(200, JSON, 9999) + GOOD), id="a body that reads well so far"),
        pytest.param(drip(b"", byte=interim(100)), id="interim answers"),
    ],
)
def test_a_dripping_beacon_sends_nothing(victim: Victim, beacon_host: RawServer, reply: Reply) -> None:
    ids = victim.box.put(*intervals(2))
    beacon_host.on(USAGE, reply)
    assert "ambiguous" in victim.until_refused(ids)
    beacon_host.wait_for("client hung up while it dripped many")
    victim.must_recover(ids)


@HASTY
@pytest.mark.parametrize("lane", ["usage", "traces"])
@pytest.mark.parametrize("name", FLOODS)
def test_an_answer_without_end_sends_nothing(victim: Victim, beacon_host: RawServer, name: str, lane: str) -> None:
    messages = intervals(2) if lane == "usage" else [TelemetryEnvelope("traces", traces())]
    ids = victim.box.put(*messages)
    beacon_host.on(PATHS[lane], FLOODS[name]())
    assert "ambiguous" in victim.until_refused(ids, lane)
    beacon_host.wait_for("client hung up in the flood")
    victim.must_recover(ids, lane)


# --- an answer to another request -------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [{"batch_max_rows": 1, "max_senders": 1}], indirect=True)
def test_a_second_answer_to_one_batch_is_not_taken_for_the_next_one(victim: Victim, beacon_host: RawServer) -> None:
    first, second = victim.box.put(*intervals(2))
    beacon_host.on(USAGE, twice(b'{"inserted_count":1}'), hang_up, inserted(1))
    victim.until(lambda: victim.lane().sent == 2)
    beacon_host.wait_for("answered twice")
    beacon_host.wait_for("hung up")
    assert sorted(beacon_host.fired) == ["answered twice", "hung up"]
    assert len(beacon_host.posts(USAGE)) == 3
    assert victim.find(first).num_failed_send_attempts == 0
    assert victim.find(second).num_failed_send_attempts == 1


def test_a_second_answer_of_verify_is_not_taken_for_that_of_a_batch(victim: Victim, beacon_host: RawServer) -> None:
    (id, _) = victim.box.put(*intervals(2))

    def verify(connection: Any) -> None:
        connection.sock.sendall(ok(json.dumps({"token": hostile.TOKEN}).encode()) + ok(GOOD))
        connection.fire("answered twice")

    beacon_host.on("/verify", verify)
    beacon_host.on(USAGE, hang_up, inserted(2))
    victim.until(lambda: victim.lane().sent == 2)
    beacon_host.wait_for("answered twice")
    beacon_host.wait_for("hung up")
    assert sorted(beacon_host.fired) == ["answered twice", "hung up"]
    assert victim.find(id).num_failed_send_attempts == 1


# --- telemetry --------------------------------------------------------------------------------------------

PARTIAL_SUCCESSES: dict[str, object] = {
    "negative": {"rejectedSpans": -1},
    "beyond 64 bits": {"rejectedSpans": 10**400},
    "at the bounds, twice": {"rejectedSpans": 2**63 - 1, "rejectedDataPoints": str(2**63 - 1)},
    "a word": {"rejectedSpans": "many"},
    "true": {"rejectedSpans": True},
    "a message of megabytes": {"errorMessage": "x" * 3_000_000},
    "a message that clears the screen": {"errorMessage": "\x1b[2J\x00\r\n\u202e" * 100},
    "half a surrogate": {"errorMessage": "\ud800"},
    "a list": [1, 2, 3],
    "a word alone": "partial",
}


@pytest.mark.parametrize("partial", PARTIAL_SUCCESSES.values(), ids=PARTIAL_SUCCESSES)
def test_an_absurd_partial_success_is_recorded_and_never_resent(
    victim: Victim, beacon_host: RawServer, partial: object
) -> None:
    (id,) = victim.box.put(TelemetryEnvelope("traces", traces()))
    beacon_host.on("/v1/traces", answer(200, json.dumps({"partialSuccess": partial}).encode()))
    victim.until(lambda: victim.lane("traces").sent == 1)
    assert len(beacon_host.posts("/v1/traces")) == 1
    shown = victim.outbox("show", str(id), "--output", "json")
    assert shown.code == 0, shown.err
    assert len(shown.out) < 10_000
    assert all(char.isprintable() or char == "\n" for char in victim.outbox("show", str(id)).out)
