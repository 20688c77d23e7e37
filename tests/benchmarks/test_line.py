"""The slow line of the compression benchmark: what it lets pass, and when."""

from __future__ import annotations

import socket
import threading

from benchmarks.line import Direction, Line


def test_a_piece_leaves_when_those_before_it_have_left_and_arrives_a_delay_later() -> None:
    direction = Direction(rate=1024, delay=0.5)  # fractions that a float holds exactly
    assert direction.arrival(128, now=10.0) == 10.0 + 0.125 + 0.5
    assert direction.arrival(256, now=10.0) == 10.0 + 0.125 + 0.25 + 0.5
    assert direction.ahead(now=10.0) == 0.375
    assert direction.arrival(128, now=20.0) == 20.0 + 0.125 + 0.5
    assert direction.carried == 512


def test_what_is_sent_arrives_unchanged_both_ways_and_is_counted() -> None:
    sent = bytes(range(256)) * 200
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Line(f"http://127.0.0.1:{server.getsockname()[1]}/v1") as line,
    ):
        echo = threading.Thread(target=_echo, args=(server,))
        echo.start()
        assert line.url.endswith("/v1")
        port = int(line.url.removesuffix("/v1").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: client.recv(65536), b"")) == sent
        echo.join(60)
        assert line.carried() == (len(sent), len(sent))


def _echo(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"".join(iter(lambda: connection.recv(65536), b"")))
