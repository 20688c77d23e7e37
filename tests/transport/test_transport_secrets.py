"""Canaries: the licence and the token are never shown, even if the server repeats them."""

from __future__ import annotations

import copy
import html
import json
import logging
import pickle
import traceback
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from outbox.core.lane import LANES, Lane
from outbox.errors import LicenseRefused
from outbox.transport.beacon import BeaconTransport
from outbox.transport.deadline import deadline
from outbox.transport.request import build_request, build_verify
from outbox.transport.secret import Secret, mask
from tests.transport.support.batches import LICENSE, TOKEN, MakeTransport, batch_of
from tests.transport.support.raw_server import RawServer, answer, half, reset, send_bytes

CANARY = "C4NARY"
"""A text that is part of the licence and of the token, and of nothing else."""

ECHO = json.dumps({"error": f"no: {LICENSE}", "again": TOKEN, "partialSuccess": {"errorMessage": LICENSE}}).encode()
ECHO_HEADERS = {"X-Echo": f"Bearer {TOKEN}", "Set-Cookie": f"token={TOKEN}", "Content-Type": "application/json"}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Everything that any logger writes, at DEBUG."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "httpcore.http11", "httpcore.connection", "outbox"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


def assert_silent(log: pytest.LogCaptureFixture, *told: object) -> None:
    assert any(record.name.startswith("httpcore") for record in log.records), "the debug log was on"
    for record in log.records:
        assert CANARY not in f"{record.getMessage()} {record.exc_text} {record.__dict__}"
    for value in told:
        assert CANARY not in f"{value!r} {value!s}"


def test_a_delivery_logs_no_secret(server: RawServer, transport: BeaconTransport, log: Any) -> None:
    receipt = transport.send(batch_of())
    assert CANARY in str(server.seen), "both did go over the wire"
    assert_silent(log, receipt, transport, transport._tokens, transport._tokens._held, transport.license_state())


@pytest.mark.parametrize("status", [200, 400, 401, 403, 409, 413, 422, 500, 503])
@pytest.mark.parametrize("lane", [Lane.USAGE, Lane.TRACES])
def test_an_answer_that_repeats_the_secrets_is_masked(
    server: RawServer, transport: BeaconTransport, log: Any, lane: Lane, status: int
) -> None:
    server.on(LANES[lane].path, answer(status, ECHO, ECHO_HEADERS))
    receipt = transport.send(batch_of(lane=lane))
    assert receipt.status == status
    assert "no: ***" in receipt.excerpt
    assert_silent(log, receipt)


@pytest.mark.parametrize("status", [200, 400, 401, 404, 503])
def test_a_verify_that_repeats_the_secrets_is_masked(
    server: RawServer, transport: BeaconTransport, log: Any, status: int
) -> None:
    server.on("/verify", answer(status, json.dumps({"error": f"no: {LICENSE}"}).encode(), {"X-Echo": LICENSE}))
    receipt = transport.send(batch_of())
    with suppress(LicenseRefused):
        transport.verify()
    assert transport.license_state().last_error
    assert_silent(log, receipt, transport.license_state())


def test_the_traceback_of_a_refused_licence_holds_no_secret(server: RawServer, transport: BeaconTransport) -> None:
    server.on("/verify", answer(401, json.dumps({"error": f"no: {LICENSE}"}).encode()))
    with pytest.raises(LicenseRefused) as refused:
        transport.verify()
    whole = traceback.TracebackException.from_exception(refused.value, capture_locals=True)
    assert CANARY not in "".join(whole.format())


def test_a_token_that_fits_no_header_is_not_quoted(server: RawServer, transport: BeaconTransport, log: Any) -> None:
    server.on("/verify", answer(200, json.dumps({"token": f"{TOKEN}\r\nX: 1"}).encode()))
    assert_silent(log, transport.send(batch_of()))


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(reset, id="reset"),
        pytest.param(half(f"HTTP/1.1 {TOKEN}\r\n\r\n".encode()), id="as a status"),
        pytest.param(send_bytes(f"{TOKEN} nonsense\r\n\r\n".encode()), id="as no HTTP"),
    ],
)
def test_a_failure_that_quotes_the_wire_is_masked(
    server: RawServer, transport: BeaconTransport, log: Any, reply: Any
) -> None:
    server.on("/ingest-traces", reply)
    receipt = transport.send(batch_of())
    assert receipt.status is None
    assert_silent(log, receipt)


def test_a_reason_phrase_that_repeats_the_token_is_not_logged(
    server: RawServer, transport: BeaconTransport, log: Any
) -> None:
    server.on("/ingest-traces", send_bytes(f"HTTP/1.1 503 {TOKEN}\r\nContent-Length: 0\r\n\r\n".encode()))
    assert_silent(log, transport.send(batch_of()))


def test_the_password_for_a_socks_proxy_is_not_logged(transport: BeaconTransport, log: Any) -> None:
    """The record is that of httpcore's ``Socks5Connection``; the suite runs without the package that it needs."""
    transport.verify()
    log.clear()
    with deadline(20.0):
        logging.getLogger("httpcore.socks").debug("setup_socks5_connection.started auth=(b'user', b'hunter2')")
    assert [record.getMessage() for record in log.records] == ["setup_socks5_connection.started"]


def test_the_words_of_an_exception_are_masked(transport_to: MakeTransport, log: Any) -> None:
    def failing(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError(f"broke in {request.content.decode()}")

    logging.getLogger("httpcore").debug("the debug log is on")
    with httpx.Client(transport=httpx.MockTransport(failing)) as client:
        receipt = transport_to("https://beacon.invalid", client=client).send(batch_of())
    assert "ReadError: broke in" in receipt.reason
    assert_silent(log, receipt)


def test_a_warning_cut_through_a_secret_is_withheld(server: RawServer, transport: BeaconTransport) -> None:
    message = "x" * 490 + TOKEN
    server.on("/v1/traces", answer(200, json.dumps({"partialSuccess": {"errorMessage": message}}).encode()))
    receipt = transport.send(batch_of(lane=Lane.TRACES))
    assert receipt.warning == "beacon's message is withheld: its answer repeats the licence or the token"
    assert "tok-" not in repr(receipt)


def test_the_logs_of_others_keep_their_headers(server: RawServer, transport: BeaconTransport, log: Any) -> None:
    transport.send(batch_of())
    log.clear()
    httpx.post(f"{server.url}/verify", trust_env=False, timeout=60)
    assert any("return_value=(b'HTTP/1.1', 200" in record.getMessage() for record in log.records)


def test_requests_do_not_print_what_they_carry() -> None:
    license, token = Secret(LICENSE), Secret(TOKEN)
    request = build_request(batch_of(), LANES[Lane.USAGE], license, token, "https://x")
    for value in (request, build_verify(license, "https://x"), license, token, [license], {"token": token}):
        assert CANARY not in f"{value!r} {value!s} {value}"


def test_a_secret_is_compared_hashed_but_never_pickled() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    for leak in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="not pickled"):
            leak(Secret("a"))


@pytest.mark.parametrize(
    "spelling",
    [
        LICENSE,
        json.dumps(LICENSE)[1:-1],
        json.dumps(LICENSE)[1:-1].replace("/", "\\/"),
        html.escape(LICENSE),
        quote(LICENSE),
        quote(LICENSE, safe=""),
    ],
)
def test_every_spelling_of_a_secret_is_masked_whole(spelling: str) -> None:
    assert mask(f"<{spelling}>", Secret(LICENSE), None) == "<***>"


def test_a_text_without_a_secret_is_left_alone() -> None:
    assert mask("beacon answered 503", Secret(LICENSE), Secret("")) == "beacon answered 503"


def test_a_secret_as_short_as_a_word_tears_no_holes_into_messages() -> None:
    assert mask("beacon answered 503", Secret("e"), Secret("503")) == "beacon answered 503"
