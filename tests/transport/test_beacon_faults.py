"""Each fault of the network, injected for real, proved to have happened, and judged."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import httpx
import pytest

from outbox.core.lane import Lane
from outbox.core.receipt import Receipt, Verdict
from outbox.transport.beacon import OTLP_ANSWER_BYTES, USAGE_ANSWER_BYTES, BeaconTransport
from tests.transport.support.batches import MakeTransport, batch_of, envelope, row
from tests.transport.support.raw_server import (
    JSON,
    Connection,
    RawServer,
    Reply,
    answer,
    drip,
    flood,
    half,
    hang_up,
    head_of,
    read_slowly,
    reset,
    silence,
)

DEADLINE = 2.0
"""Request timeout in seconds. Each of these tests waits for it, but it must be enough for all that comes before the
fault, however busy the machine is."""

STATUS_LINE = b"HTTP/1.1 200 OK\r\n"
GOOD = b'{"inserted_count":2}'


def lost(receipt: Receipt) -> bool:
    return (receipt.verdict, receipt.counted, receipt.status) == (Verdict.AMBIGUOUS, True, None)


def not_sent(receipt: Receipt) -> bool:
    return (receipt.verdict, receipt.counted, receipt.status) == (Verdict.UNAVAILABLE, True, None)


@pytest.fixture
def hasty(server: RawServer, transport_to: MakeTransport) -> BeaconTransport:
    """A transport with a short deadline that already has a token."""
    transport = transport_to(server.url, request_timeout=DEADLINE)
    assert transport.verify().last_error is None
    return transport


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        pytest.param(reset, "reset", id="reset"),
        pytest.param(hang_up, "hung up", id="hang up"),
        pytest.param(half(b"HTTP/1.1 200 OK\r\nContent-"), "hung up half-way", id="half a head"),
        pytest.param(half(b"\x16\x03\x01 this is not HTTP\r\n\r\n"), "hung up half-way", id="not HTTP"),
        pytest.param(half(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000), "hung up half-way", id="endless header"),
    ],
)
def test_a_connection_lost_before_the_status_is_ambiguous(
    server: RawServer, transport: BeaconTransport, reply: Reply, fault: str
) -> None:
    server.on("/ingest-traces", reply)
    receipt = transport.send(batch_of())
    server.wait_for(fault)
    assert lost(receipt), receipt
    assert receipt.body_sha256


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(head_of(200, JSON, 100) + GOOD, id="short of its length"),
        pytest.param(head_of(200, JSON | {"Transfer-Encoding": "chunked"}) + b"14\r\n" + GOOD + b"\r\n", id="no end"),
    ],
)
def test_half_an_answer_is_ambiguous_even_if_it_reads_well(
    server: RawServer, transport: BeaconTransport, raw: bytes
) -> None:
    server.on("/ingest-traces", half(raw))
    receipt = transport.send(batch_of())
    server.wait_for("hung up half-way")
    assert (receipt.verdict, receipt.counted, receipt.status) == (Verdict.AMBIGUOUS, True, 200)
    assert receipt.excerpt == GOOD.decode()


def test_half_an_error_is_judged_by_its_status(server: RawServer, transport: BeaconTransport) -> None:
    server.on("/ingest-traces", half(head_of(503, {"Retry-After": "5"}, 100) + b"busy"))
    receipt = transport.send(batch_of())
    server.wait_for("hung up half-way")
    assert (receipt.verdict, receipt.retry_after_seconds) == (Verdict.UNAVAILABLE, 5)


def test_a_server_that_never_answers_is_cut_at_the_deadline(server: RawServer, hasty: BeaconTransport) -> None:
    server.on("/ingest-traces", silence)
    assert lost(hasty.send(batch_of()))
    server.wait_for("silence")
    server.wait_for("client hung up")


# Each byte comes well within any timeout per read: only a total deadline can end these.
@pytest.mark.parametrize(
    ("reply", "status"),
    [
        pytest.param(drip(b"HTTP/1.1 200 O", byte=b"K"), None, id="in the status line"),
        pytest.param(drip(STATUS_LINE + b"X-Slow: ", byte=b"a"), None, id="in the headers"),
        pytest.param(drip(STATUS_LINE + b"Content-Length: 9999\r\n\r\n" + GOOD), 200, id="in the body"),
        pytest.param(drip(STATUS_LINE + b"Transfer-Encoding: chunked\r\n\r\n1", byte=b"0"), 200, id="in a chunk size"),
        pytest.param(drip(b"", byte=b"HTTP/1.1 102 Processing\r\n\r\n"), None, id="interim answers"),
    ],
)
def test_a_server_that_drips_is_cut_at_the_deadline(
    server: RawServer, hasty: BeaconTransport, reply: Reply, status: int | None
) -> None:
    server.on("/ingest-traces", reply)
    receipt = hasty.send(batch_of())
    server.wait_for("client hung up while it dripped many")
    assert (receipt.verdict, receipt.counted, receipt.status) == (Verdict.AMBIGUOUS, True, status)


def test_a_server_that_drips_on_a_reused_connection_is_cut_too(server: RawServer, hasty: BeaconTransport) -> None:
    server.on("/ingest-traces", answer(200, GOOD), drip(STATUS_LINE + b"X-Slow: ", byte=b"a"))
    hasty.send(batch_of())
    assert lost(hasty.send(batch_of()))
    server.wait_for("client hung up while it dripped many")
    assert server.connections == 1


def test_an_injected_client_is_cut_between_the_drips_of_a_body(server: RawServer, transport_to: MakeTransport) -> None:
    server.on("/ingest-traces", drip(head_of(200, JSON, 9999)))
    with httpx.Client() as client:
        receipt = transport_to(server.url, client=client, request_timeout=DEADLINE).send(batch_of())
    server.wait_for("client hung up while it dripped many")
    assert receipt.verdict is Verdict.AMBIGUOUS


def test_a_server_that_reads_slowly_is_cut_at_the_deadline(transport_to: MakeTransport, server: RawServer) -> None:
    token = transport_to(server.url)._tokens.get()
    with RawServer(on_connect=read_slowly) as slow:
        transport = transport_to(slow.url, request_timeout=DEADLINE)
        transport._tokens._verify = lambda: token
        more_than_the_kernel_buffers = envelope(Lane.TRACES, "x" * (24 << 20))
        receipt = transport.send(batch_of([more_than_the_kernel_buffers], lane=Lane.TRACES))
        slow.wait_for("client hung up while it wrote")
    assert lost(receipt)
    assert "WriteTimeout" in receipt.reason


@pytest.mark.parametrize(("lane", "limit"), [(Lane.USAGE, USAGE_ANSWER_BYTES), (Lane.TRACES, OTLP_ANSWER_BYTES)])
def test_an_endless_answer_is_cut_at_its_limit(
    server: RawServer, transport: BeaconTransport, lane: Lane, limit: int
) -> None:
    path = "/ingest-traces" if lane is Lane.USAGE else "/v1/traces"
    server.on(path, flood(head_of(200, JSON, 1 << 40), b" " * 65536))
    receipt = transport.send(batch_of(lane=lane))
    server.wait_for("client hung up in the flood")
    assert (receipt.verdict, receipt.status) == (Verdict.AMBIGUOUS, 200)

    at_the_limit = (b"{}" if lane is not Lane.USAGE else GOOD).ljust(limit)
    server.on(path, answer(200, at_the_limit), answer(200, at_the_limit + b" "))
    assert transport.send(batch_of(lane=lane)).verdict is Verdict.DELIVERED
    assert transport.send(batch_of(lane=lane)).verdict is Verdict.AMBIGUOUS


def test_an_early_error_is_read_although_the_body_was_not(server: RawServer, transport_to: MakeTransport) -> None:
    """A server may refuse after the headers and close. The 413 decides, not the write error."""

    def refuse_unread(connection: object) -> None:
        sock = connection.sock  # type: ignore[attr-defined]
        sock.recv(1024)
        sock.sendall(head_of(413, {"Connection": "close"}, 0))
        sock.shutdown(socket.SHUT_WR)
        server.note("refused unread")
        while sock.recv(1 << 16):
            pass

    token = transport_to(server.url)._tokens.get()
    with RawServer(on_connect=refuse_unread) as strict:
        transport = transport_to(strict.url)
        transport._tokens._verify = lambda: token
        receipt = transport.send(batch_of([envelope(Lane.TRACES, "x" * (4 << 20))], lane=Lane.TRACES))
    server.wait_for("refused unread")
    assert receipt.verdict is Verdict.TOO_LARGE


def test_an_early_error_is_read_although_the_server_keeps_the_connection_and_reads_no_further(
    server: RawServer, transport_to: MakeTransport
) -> None:
    """Without its 413 a batch that is too large would be sent for ever, and never halved."""

    def refuse_and_stay(connection: Connection) -> None:
        connection.sock.recv(1024)
        connection.sock.sendall(head_of(413, {}, 0))
        connection.pause(60)

    with RawServer(on_connect=refuse_and_stay) as strict:
        transport = with_a_token(transport_to(strict.url, request_timeout=DEADLINE), server, transport_to)
        receipt = transport.send(batch_of([envelope(Lane.TRACES, "x" * (24 << 20))] * 2, lane=Lane.TRACES))
    assert receipt.verdict is Verdict.TOO_LARGE


def test_a_success_of_a_server_that_did_not_read_the_batch_is_none(
    server: RawServer, transport_to: MakeTransport
) -> None:
    def take_unread(connection: Connection) -> None:
        connection.sock.recv(1024)
        connection.sock.sendall(head_of(200, JSON, len(GOOD)) + GOOD)
        connection.reset()

    with RawServer(on_connect=take_unread) as liar:
        transport = with_a_token(transport_to(liar.url), server, transport_to)
        receipt = transport.send(batch_of([row(1, note="x" * (24 << 20)), row(2)]))
        liar.wait_for("reset")
    assert lost(receipt)


def with_a_token(transport: BeaconTransport, server: RawServer, make: MakeTransport) -> BeaconTransport:
    token = make(server.url)._tokens.get()
    transport._tokens._verify = lambda: token
    return transport


def test_a_refused_connection_is_certainly_not_sent(
    server: RawServer, transport_to: MakeTransport, dead_port: int
) -> None:
    transport = with_a_token(transport_to(f"http://127.0.0.1:{dead_port}"), server, transport_to)
    receipt = transport.send(batch_of())
    assert not_sent(receipt), receipt
    assert receipt.reason.startswith("beacon could not be reached, nothing was sent (unavailable): ConnectError")


@pytest.mark.parametrize("host", ["beacon.invalid", "a" * 64 + ".invalid"])
def test_a_name_that_does_not_resolve_is_certainly_not_sent(
    server: RawServer, transport_to: MakeTransport, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    asked = []

    def no_such_name(name: str, *_: object, **__: object) -> list[object]:
        asked.append(name)
        name.encode("idna")  # raises UnicodeError for a label that is too long, as the real one does
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    transport = with_a_token(transport_to(f"http://{host}", allow_http=True), server, transport_to)
    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    assert not_sent(transport.send(batch_of()))
    assert asked == [host]


def test_a_connection_that_is_never_taken_is_certainly_not_sent(server: RawServer, transport_to: MakeTransport) -> None:
    """A full accept queue: the kernel drops every further SYN."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        queue = [socket.socket() for _ in range(4)]
        try:
            for sock in queue:
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            transport = with_a_token(transport_to(url, request_timeout=DEADLINE), server, transport_to)
            receipt = transport.send(batch_of())
        finally:
            for sock in queue:
                sock.close()
    assert not_sent(receipt), receipt
    assert "timed out" in receipt.reason


def test_a_dead_address_leaves_time_for_the_next_one(
    server: RawServer, transport_to: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    real, resolve, tried = socket.create_connection, socket.getaddrinfo, []

    def both(name: str, port: int, *rest: int, **options: int) -> Sequence[object]:
        if name != "localhost":
            return resolve(name, port, *rest, **options)
        return [(*family, ("127.0.0.2", port)), (*family, ("127.0.0.1", port))]

    def connect(address: tuple[str, int], timeout: float, **rest: object) -> socket.socket:
        tried.append(address[0])
        if address[0] == "127.0.0.2":
            assert timeout <= 10, "a share of the 20 s, not all of them"
            raise TimeoutError("timed out")
        return real(address, timeout, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    monkeypatch.setattr(socket, "create_connection", connect)
    transport = transport_to(f"http://localhost:{server.port}")
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED
    assert tried[:2] == ["127.0.0.2", "127.0.0.1"]


def test_an_idle_connection_the_server_has_closed_is_replaced(server: RawServer, transport: BeaconTransport) -> None:
    def answer_and_close(connection: object) -> None:
        answer(200, GOOD)(connection)  # type: ignore[arg-type]
        hang_up(connection)  # type: ignore[arg-type]

    server.on("/ingest-traces", answer_and_close, answer(200, GOOD))
    transport.send(batch_of())
    server.wait_for("hung up")
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED
    assert server.connections == 2
