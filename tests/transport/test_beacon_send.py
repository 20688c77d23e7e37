"""One batch, one POST, one receipt: against a server of raw bytes on a real port."""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from outbox.core.lane import LANES, Lane
from outbox.core.receipt import Receipt, Verdict
from outbox.errors import LicenseRefused
from outbox.transport.beacon import BeaconTransport, LicenseState
from tests.transport.support.batches import BATCH_ID, LICENSE, TOKEN, FakeSettings, MakeTransport, batch_of
from tests.transport.support.raw_server import RawServer, answer, head_of, reset, send_bytes


def test_a_batch_is_verified_for_posted_and_receipted(server: RawServer, transport: BeaconTransport) -> None:
    receipt = transport.send(batch_of())
    (verify,), (post,) = server.posts("/verify"), server.posts("/ingest-traces")
    assert json.loads(verify.body) == {"license": LICENSE}
    assert json.loads(post.body)["license"] == LICENSE
    assert len(json.loads(post.body)["trace_transactions"]) == 2
    assert post.method == "POST"
    assert post.headers["authorization"] == f"Bearer {TOKEN}"
    assert post.headers["idempotency-key"] == str(BATCH_ID)
    assert post.headers["content-type"] == "application/json"
    assert post.headers["accept-encoding"] == "identity"
    assert "transfer-encoding" not in post.headers
    assert receipt == Receipt(
        verdict=Verdict.DELIVERED,
        counted=False,
        reason="beacon answered 200 (delivered)",
        status=200,
        inserted_count=2,
        excerpt='{"inserted_count":2}',
        body_sha256=hashlib.sha256(post.body).hexdigest(),
    )


@pytest.mark.parametrize("lane", Lane)
def test_every_lane_posts_to_its_own_path(server: RawServer, transport: BeaconTransport, lane: Lane) -> None:
    assert transport.send(batch_of(lane=lane)).verdict is Verdict.DELIVERED
    assert len(server.posts(LANES[lane].path)) == 1


def test_connections_and_the_token_are_reused(server: RawServer, transport: BeaconTransport) -> None:
    for _ in range(5):
        transport.send(batch_of())
    assert (server.connections, len(server.posts("/verify"))) == (1, 1)


def test_the_base_path_of_the_url_is_kept(server: RawServer, transport_to: MakeTransport) -> None:
    server.on("/v1/beacon/verify", answer(200, b'{"token":"t"}'))
    server.on("/v1/beacon/ingest-traces", answer(200, b'{"inserted_count":2}'))
    transport = transport_to(f"{server.url}/v1/beacon/")
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED


def test_another_header_carries_the_token_bare(server: RawServer, transport_to: MakeTransport) -> None:
    transport_to(server.url, token_header="X-Langchain-License-Key").send(batch_of())
    (post,) = server.posts("/ingest-traces")
    assert post.headers["x-langchain-license-key"] == TOKEN
    assert "authorization" not in post.headers


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (503, b"", Verdict.UNAVAILABLE),
        (413, b"", Verdict.TOO_LARGE),
        (422, b"", Verdict.REFUSED),
        (404, b"", Verdict.MISCONFIGURED),
        (200, b"<html>", Verdict.AMBIGUOUS),
        (409, b"duplicate", Verdict.DELIVERED),
    ],
)
def test_the_answer_is_judged(
    server: RawServer, transport: BeaconTransport, status: int, body: bytes, verdict: Verdict
) -> None:
    server.on("/ingest-traces", answer(status, body))
    receipt = transport.send(batch_of())
    assert (receipt.verdict, receipt.status, receipt.excerpt) == (verdict, status, body.decode())
    assert receipt.body_sha256


def test_retry_after_reaches_the_receipt(server: RawServer, transport: BeaconTransport) -> None:
    server.on("/ingest-traces", answer(429, headers={"Retry-After": "17"}))
    assert transport.send(batch_of()).retry_after_seconds == 17


def test_a_redirect_is_never_followed(server: RawServer, transport: BeaconTransport) -> None:
    with RawServer() as elsewhere:
        elsewhere.on("/ingest-traces", answer(200, b'{"inserted_count":2}'))
        location = {"Location": f"{elsewhere.url}/ingest-traces"}
        for status in (301, 302, 303, 307, 308):
            server.on("/ingest-traces", answer(status, headers=location))
            assert transport.send(batch_of()).verdict is Verdict.MISCONFIGURED
        assert elsewhere.connections == 0


def test_an_interim_answer_is_waited_through(server: RawServer, transport: BeaconTransport) -> None:
    body = b'{"inserted_count":2}'
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"
    server.on("/ingest-traces", send_bytes(interim + head_of(200, {}, len(body)) + body))
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED


def test_cookies_of_an_answer_are_not_sent_back(server: RawServer, transport: BeaconTransport) -> None:
    server.on("/verify", answer(200, b'{"token":"t"}', {"Set-Cookie": "session=1; Path=/"}))
    transport.send(batch_of())
    transport.send(batch_of())
    assert all("cookie" not in seen.headers for seen in server.seen)


def test_a_gzip_answer_nobody_asked_for_is_read(server: RawServer, transport: BeaconTransport) -> None:
    packed = gzip.compress(b'{"inserted_count":2}')
    server.on("/ingest-traces", answer(200, packed, {"Content-Encoding": "gzip"}))
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_renewed_and_the_batch_sent_once_more(
    server: RawServer, transport: BeaconTransport, status: int
) -> None:
    server.on("/verify", answer(200, b'{"token":"old"}'), answer(200, b'{"token":"new"}'))
    server.on("/ingest-traces", answer(status), answer(200, b'{"inserted_count":2}'))
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED
    first, second = server.posts("/ingest-traces")
    assert [first.headers["authorization"], second.headers["authorization"]] == ["Bearer old", "Bearer new"]
    assert first.body == second.body
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_a_token_refused_twice_is_unauthorized_and_uncounted(server: RawServer, transport: BeaconTransport) -> None:
    server.on("/ingest-traces", answer(401))
    receipt = transport.send(batch_of())
    assert (receipt.verdict, receipt.counted, receipt.status) == (Verdict.UNAUTHORIZED, False, 401)
    assert "OUTBOX_LICENSE_KEY" in receipt.reason
    assert (len(server.posts("/ingest-traces")), len(server.posts("/verify"))) == (2, 2)


@pytest.mark.parametrize("status", [400, 401, 402, 403])
def test_a_refused_licence_sends_nothing_and_counts_nothing(
    server: RawServer, transport: BeaconTransport, status: int
) -> None:
    server.on("/verify", answer(status, b'{"error":"licence expired"}'))
    receipt = transport.send(batch_of())
    assert (receipt.verdict, receipt.counted, receipt.body_sha256) == (Verdict.UNAUTHORIZED, False, None)
    assert receipt.reason.startswith(f"verify: beacon answered {status} and refuses the licence")
    assert receipt.excerpt == '{"error":"licence expired"}'
    assert server.posts("/ingest-traces") == []


def test_an_unavailable_verify_sends_nothing_and_counts_as_an_attempt(
    server: RawServer, transport: BeaconTransport
) -> None:
    server.on("/verify", answer(503, headers={"Retry-After": "30"}), reset, answer(200, b'{"token":"t"}'))
    receipt = transport.send(batch_of())
    assert (receipt.verdict, receipt.counted, receipt.retry_after_seconds) == (Verdict.UNAVAILABLE, True, 30)
    assert receipt.reason == "verify: beacon answered 503 (unavailable)"
    receipt = transport.send(batch_of())
    server.wait_for("reset")
    assert (receipt.verdict, receipt.counted) == (Verdict.UNAVAILABLE, False)
    assert server.posts("/ingest-traces") == []
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED


def test_without_a_licence_nothing_is_sent_and_the_receipt_says_what_to_set(
    server: RawServer, transport_to: MakeTransport
) -> None:
    for key in (None, "", "  \n"):
        receipt = transport_to(server.url, key=key).send(batch_of())
        assert (receipt.verdict, receipt.counted) == (Verdict.UNAUTHORIZED, False)
        assert "OUTBOX_LICENSE_KEY or OUTBOX_LICENSE_FILE" in receipt.reason
    assert server.connections == 0


def test_a_licence_that_cannot_be_read_is_told_not_raised(server: RawServer, tmp_path: Path) -> None:
    class FromFile(FakeSettings):
        def license(self) -> str:
            return (tmp_path / "gone").read_text()

    with BeaconTransport(FromFile(server.url)) as transport:
        receipt = transport.send(batch_of())
    assert receipt.verdict is Verdict.UNAUTHORIZED
    assert "gone" in receipt.reason


def test_a_replaced_licence_is_used_from_the_next_request_on(server: RawServer) -> None:
    settings = FakeSettings(server.url, key="first")
    with BeaconTransport(settings) as transport:
        transport.send(batch_of())
        settings.key = "second"
        transport.send(batch_of())
    assert [json.loads(post.body)["license"] for post in server.posts("/ingest-traces")] == ["first", "second"]


def test_after_an_interrupt_nothing_leaves(server: RawServer, transport: BeaconTransport) -> None:
    transport.send(batch_of())
    before = len(server.seen)
    transport.interrupt()
    receipt = transport.send(batch_of())
    assert (receipt.verdict, receipt.counted) == (Verdict.INTERRUPTED, False)
    assert len(server.seen) == before


def test_interrupted_before_the_first_token_nothing_leaves(server: RawServer, transport: BeaconTransport) -> None:
    transport.interrupt()
    receipt = transport.send(batch_of())
    assert (receipt.verdict, receipt.counted) == (Verdict.INTERRUPTED, False)
    assert server.connections == 0


def test_a_closed_transport_sends_nothing(server: RawServer, transport: BeaconTransport) -> None:
    transport.send(batch_of())
    transport.close()
    transport.close()
    assert transport.send(batch_of()).verdict is Verdict.INTERRUPTED


def test_no_post_starts_after_the_lease_ran_out(server: RawServer, transport: BeaconTransport) -> None:
    receipt = transport.send(batch_of(lease_seconds=-1))
    assert (receipt.verdict, receipt.counted) == (Verdict.INTERRUPTED, False)
    assert "lease" in receipt.reason
    assert server.posts("/ingest-traces") == []


def test_verify_refreshes_the_token_and_tells_its_life(server: RawServer, transport: BeaconTransport) -> None:
    assert transport.license_state() == LicenseState(True, None, None)
    state = transport.verify()
    assert state.present
    assert state.token_expires_in_seconds is not None
    assert 0 < state.token_expires_in_seconds <= 300
    transport.verify()
    assert len(server.posts("/verify")) == 2


@pytest.mark.parametrize("status", [401, 402, 403])
def test_verify_raises_when_beacon_refuses_the_licence(
    server: RawServer, transport: BeaconTransport, status: int
) -> None:
    server.on("/verify", answer(status))
    with pytest.raises(LicenseRefused, match=f"answered {status} and refuses the licence; check OUTBOX_LICENSE_KEY"):
        transport.verify()
    last_error = transport.license_state().last_error
    assert last_error is not None
    assert str(status) in last_error


def test_verify_raises_without_a_licence(transport_to: MakeTransport) -> None:
    transport = transport_to("https://beacon.invalid", key=None)
    with pytest.raises(LicenseRefused, match="OUTBOX_LICENSE_FILE"):
        transport.verify()
    assert not transport.license_state().present


def test_verify_only_tells_of_an_outage(server: RawServer, transport: BeaconTransport) -> None:
    server.on("/verify", answer(503))
    assert transport.verify().last_error == "verify: beacon answered 503 (unavailable)"


def test_an_injected_client_is_used_and_left_open(server: RawServer, transport_to: MakeTransport) -> None:
    with httpx.Client(headers={"X-Mine": "1"}, follow_redirects=True) as client:
        transport = transport_to(server.url, client=client)
        assert transport.send(batch_of()).verdict is Verdict.DELIVERED
        server.on("/ingest-traces", answer(302, headers={"Location": "/elsewhere"}))
        assert transport.send(batch_of()).verdict is Verdict.MISCONFIGURED
        transport.close()
        assert not client.is_closed
    assert all(seen.headers["x-mine"] == "1" for seen in server.seen)
    assert server.posts("/elsewhere") == []


def test_an_exception_that_is_not_the_wires_is_a_surprise_and_passes(transport_to: MakeTransport) -> None:
    def bug(request: httpx.Request) -> httpx.Response:
        raise KeyError("a bug")

    with httpx.Client(transport=httpx.MockTransport(bug)) as client, pytest.raises(KeyError):
        transport_to("https://beacon.invalid", client=client).send(batch_of())


def _verdict_in_child(transport: Any, pipe: Any) -> None:
    pipe.send(transport.send(batch_of()).verdict)
    pipe.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_opens_connections_of_its_own(server: RawServer, transport: BeaconTransport) -> None:
    transport.send(batch_of())
    assert server.connections == 1
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_verdict_in_child, args=(transport, theirs))
    child.start()
    try:
        assert ours.poll(30)
        assert ours.recv() == Verdict.DELIVERED
    finally:
        child.join(30)
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED
    assert server.connections == 2
