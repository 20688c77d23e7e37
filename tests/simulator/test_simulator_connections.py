"""HTTP as clients speak it, and as they should not."""

from __future__ import annotations

import gc
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from outbox.errors import ConfigError
from outbox.simulator import Simulator
from tests.simulator.calling import Caller, telemetry, usage_row


@pytest.fixture
def wire(simulator: Simulator) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", simulator.port), timeout=60) as wire:
        yield wire


def traces(caller: Caller, items: int = 1, version: str = "1.1", *more: str) -> bytes:
    body = json.dumps(telemetry("traces", items)).encode()
    head = [
        f"POST /v1/beacon/v1/traces HTTP/{version}",
        "Host: beacon",
        "Content-Type: application/json",
        f"Authorization: Bearer {caller.token()}",
        f"Content-Length: {len(body)}",
        *more,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def read_answers(wire: socket.socket, n: int) -> bytes:
    read = b""
    while read.count(b"HTTP/1.1 ") < n or not read.endswith(b"}"):
        chunk = wire.recv(65536)
        assert chunk, f"closed after {read!r}"
        read += chunk
    return read


def read_to_the_end(wire: socket.socket) -> bytes:
    return b"".join(iter(lambda: wire.recv(65536), b""))


def test_one_connection_serves_many_requests(caller: Caller) -> None:
    for _ in range(20):
        assert caller.send("usage").status_code == 200
    assert caller.simulator.received.counts()["connections"] == 1


def test_pipelined_requests_are_answered_in_order(caller: Caller, wire: socket.socket) -> None:
    caller.simulator.fail(500, 200, 404)
    wire.sendall(traces(caller) * 200)
    answers = read_answers(wire, 200)
    assert answers.count(b"HTTP/1.1 200 OK") == 198
    statuses = [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:5]]
    assert statuses == [b"500", b"200", b"404", b"200"]


def test_pipelined_requests_wait_for_an_answer_that_is_held_back(caller: Caller, wire: socket.socket) -> None:
    caller.simulator.faults.latency_ms = 20
    wire.sendall(traces(caller) * 10)
    assert read_answers(wire, 10).count(b"HTTP/1.1 200 OK") == 10
    assert caller.simulator.received.counts()["traces"]["peak_in_flight"] == 1


def test_two_connections_do_not_wait_for_each_other(caller: Caller, wire: socket.socket) -> None:
    caller.token()
    caller.simulator.faults.patch({"latency_ms": 60_000, "lanes": ["traces"]})
    wire.sendall(traces(caller))
    caller.simulator.wait_for("traces")
    for _ in range(5):
        assert caller.send("usage").status_code == 200


def test_a_request_may_come_a_byte_at_a_time(caller: Caller, wire: socket.socket) -> None:
    for byte in traces(caller):
        wire.sendall(bytes([byte]))
    assert b"200 OK" in read_answers(wire, 1)


def test_chunked_request_bodies_are_read_whole(caller: Caller) -> None:
    document = {"license": caller.simulator.license, "trace_transactions": [usage_row() for _ in range(50)]}
    body = json.dumps(document).encode()
    answer = caller.http.post(
        f"{caller.simulator.url}/ingest-traces",
        content=(body[at : at + 1000] for at in range(0, len(body), 1000)),
        headers={"Authorization": f"Bearer {caller.token()}", "Content-Type": "application/json"},
    )
    assert answer.request.headers["transfer-encoding"] == "chunked"
    assert answer.json() == {"inserted_count": 50}


def test_a_trailer_is_not_taken_for_a_header(caller: Caller, wire: socket.socket) -> None:
    head, _, body = traces(caller).partition(b"\r\n\r\n")
    chunked = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head)
    trailers = b"Content-Type: text/plain\r\nAuthorization: Bearer nonsense"
    wire.sendall(b"%b\r\n\r\n%x\r\n%b\r\n0\r\n%b\r\n\r\n" % (chunked, len(body), body, trailers))
    assert b"200 OK" in read_answers(wire, 1)


def test_a_client_that_expects_100_continue_gets_it(caller: Caller, wire: socket.socket) -> None:
    head, _, body = traces(caller, 1, "1.1", "Expect: 100-continue").partition(b"\r\n\r\n")
    wire.sendall(head + b"\r\n\r\n")
    assert wire.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.sendall(body)
    assert b"200 OK" in read_answers(wire, 1)


@pytest.mark.parametrize(("version", "header"), [("1.1", "Connection: close"), ("1.0", "X: y")])
def test_a_connection_closes_when_its_client_says_so(
    caller: Caller, wire: socket.socket, version: str, header: str
) -> None:
    wire.sendall(traces(caller, 1, version, header))
    answer = read_to_the_end(wire)
    assert b" 200 OK" in answer
    assert b"connection: close" in answer


@pytest.mark.parametrize(
    "garbage",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
    ],
)
def test_what_is_not_http_is_answered_400_and_the_connection_closes(
    caller: Caller, wire: socket.socket, garbage: bytes
) -> None:
    wire.sendall(garbage)
    head, _, body = read_to_the_end(wire).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    assert json.loads(body)["error"] == "this is not HTTP/1.1"
    assert caller.simulator.received.counts()["garbage"] == 1


def test_an_upgrade_is_refused_and_its_request_is_not_taken(caller: Caller, wire: socket.socket) -> None:
    wire.sendall(traces(caller, 1, "1.1", "Upgrade: h2c", "Connection: Upgrade"))
    answer = read_to_the_end(wire)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"upgrades" in answer
    assert caller.simulator.received.counts()["traces"]["requests"] == 0


def test_garbage_after_a_good_request_does_not_undo_it(caller: Caller, wire: socket.socket) -> None:
    wire.sendall(traces(caller) + b"GARBAGE\r\n\r\n")
    read_to_the_end(wire)
    assert caller.simulator.received.counts()["garbage"] == 1
    assert caller.simulator.received.unique("traces") == 1


def test_a_request_that_breaks_off_is_not_taken(caller: Caller, wire: socket.socket) -> None:
    wire.sendall(traces(caller)[:-1])
    wire.close()
    assert caller.send("usage").status_code == 200
    assert caller.simulator.received.counts()["traces"]["requests"] == 0


def test_a_body_of_several_megabytes_is_taken(caller: Caller) -> None:
    assert caller.post("traces", telemetry("traces", items=200_000)).status_code == 200
    assert caller.simulator.received.counts()["traces"]["rows"] == 200_000


def test_a_port_in_use_is_told_with_what_to_do(simulator: Simulator) -> None:
    with pytest.raises(ConfigError, match=f"127.0.0.1:{simulator.port}.*another port"):
        Simulator(simulator.port).start()


@pytest.mark.parametrize("host", ["nosuch.host.invalid", "203.0.113.9"])
def test_a_host_that_is_not_this_machine_is_told_with_what_to_do(host: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {host}:0: .*; choose another host"):
        Simulator(host=host).start()


def test_a_simulator_can_listen_on_ipv6() -> None:
    with Simulator(host="::1") as simulator, Caller(simulator) as caller:
        assert simulator.url.startswith("http://[::1]:")
        assert caller.send("usage").status_code == 200


def test_closing_twice_or_before_starting_is_no_error() -> None:
    simulator = Simulator()
    simulator.close()
    simulator.start()
    simulator.close()
    simulator.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(simulator.url, trust_env=False)
    with pytest.raises(RuntimeError, match="make another"):
        simulator.start()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_connections_that_come_while_a_simulator_closes_are_closed_with_it() -> None:
    """A socket left open is found by the collector, which warns; in every second round one had been."""
    came: list[socket.socket] = []

    def knock(port: int, begin: threading.Barrier) -> None:
        begin.wait()
        with suppress(OSError):  # refused: it is closed
            while True:
                came.append(socket.create_connection(("127.0.0.1", port), timeout=10))

    for _ in range(20):
        simulator, begin = Simulator().start(), threading.Barrier(2)
        knocking = threading.Thread(target=knock, args=(simulator.port, begin))
        knocking.start()
        begin.wait()
        simulator.close()
        knocking.join()
    assert came, "some were connected"
    for each in came:
        with each, suppress(ConnectionError):
            each.sendall(b"?")  # the kernel tells nothing of a connection that it made while its listener closed
            assert each.recv(1) == b""
    gc.collect()
