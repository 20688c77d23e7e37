"""An answer counts only for the request that was just sent, never for an earlier one."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from outbox.core.lane import Lane
from outbox.core.receipt import Verdict
from outbox.transport.beacon import BeaconTransport
from tests.transport.support.batches import MakeTransport, batch_of
from tests.transport.support.certificates import Authority
from tests.transport.support.raw_server import JSON, Connection, RawServer, answer, hang_up, head_of, send_bytes

GOOD = b'{"inserted_count":2}'
ANSWER = head_of(200, JSON, len(GOOD)) + GOOD
CHUNKED = head_of(200, JSON | {"Transfer-Encoding": "chunked"}) + b"14\r\n" + GOOD + b"\r\n0\r\n\r\n"


def lost(transport: BeaconTransport, lane: Lane = Lane.USAGE) -> bool:
    receipt = transport.send(batch_of(lane=lane))
    return (receipt.verdict, receipt.counted, receipt.status) == (Verdict.AMBIGUOUS, True, None)


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(ANSWER + ANSWER, id="of a length"),
        pytest.param(CHUNKED + ANSWER, id="chunked"),
        pytest.param(ANSWER + head_of(200, JSON, len(GOOD)) + GOOD[:5], id="half of another"),
        pytest.param(ANSWER + head_of(503, {}, 0), id="an error"),
        pytest.param(ANSWER + b"HTTP/1.1 204 No Content\r\n\r\n", id="an empty one"),
        pytest.param(ANSWER + b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER, id="an interim one between"),
    ],
)
def test_a_second_answer_is_not_taken_for_that_of_the_next_request(
    server: RawServer, transport: BeaconTransport, answers: bytes
) -> None:
    server.on("/ingest-traces", send_bytes(answers), hang_up, answer(200, GOOD))
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED
    assert lost(transport)
    server.wait_for("hung up")
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED


def test_nor_is_one_whose_end_comes_with_the_true_answer(server: RawServer, transport: BeaconTransport) -> None:
    """The stale answer is split at a packet boundary."""
    another = head_of(200, JSON, len(GOOD)) + GOOD
    server.on(
        "/ingest-traces", send_bytes(ANSWER + another[:40]), send_bytes(another[40:] + head_of(503, {}, 0)), hang_up
    )
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED
    assert lost(transport)


def test_nor_is_it_on_another_lane(server: RawServer, transport: BeaconTransport) -> None:
    server.on("/ingest-traces", send_bytes(ANSWER + head_of(200, JSON, 2) + b"{}"))
    server.on("/v1/traces", hang_up)
    transport.send(batch_of())
    assert lost(transport, Lane.TRACES)


def test_nor_is_it_behind_tls(transport_to: MakeTransport, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    with RawServer(tls=authority.server_context()) as server:
        server.on("/verify", answer(200, b'{"token":"a.b.c"}'))
        server.on("/ingest-traces", send_bytes(ANSWER + ANSWER), hang_up)
        transport = transport_to(server.url, ca_file=authority.ca)
        assert transport.send(batch_of()).verdict is Verdict.DELIVERED
        assert lost(transport)


def test_what_comes_unasked_on_an_idle_connection_is_not_an_answer(
    server: RawServer, transport: BeaconTransport
) -> None:
    """Nothing of it was read with the first answer, so the pool sees that the idle connection is readable."""
    delivered = threading.Event()

    def answer_and_go_on(connection: Connection) -> None:
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else it waits for the next request
        connection.sock.sendall(ANSWER)
        delivered.wait(10)
        connection.sock.sendall(ANSWER)
        connection.fire("went on")

    server.on("/ingest-traces", answer_and_go_on, hang_up)
    transport.send(batch_of())
    delivered.set()
    server.wait_for("went on")
    assert lost(transport)
    assert server.connections == 2
