"""A server of raw bytes on a real port, for responses that no HTTP framework sends.

    server.on("/verify", answer(200, b'{"token":"t"}'))
    server.on("/ingest-traces", drip(b"HTTP/1.1 200 OK\\r\\n"), answer(200, b'{"inserted_count":1}'))

The replies of a path are used in turn, and the last one is repeated. Every request is kept in ``seen``. Every fault is
recorded in ``fired`` when it has really happened, so that a test can prove it.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from tests.support.waiting import wait_until

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    """Lower-case names."""
    body: bytes


class Connection:
    """One accepted connection, as a reply sees it."""

    def __init__(self, sock: socket.socket, server: RawServer) -> None:
        self.sock = sock
        self.server = server

    def fire(self, fault: str) -> None:
        self.server.note(fault)

    def pause(self, seconds: float) -> bool:
        """Wait for ``seconds`` or for the end of the server; True: it is ending."""
        return self.server.ending.wait(seconds)

    def wait_for_hang_up(self) -> None:
        try:
            while self.sock.recv(65536):
                pass
        except OSError:
            pass
        self.fire("client hung up")

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self.fire("reset")


Reply = Callable[[Connection], None]
"""Answers one request. Closing the connection's socket ends the conversation."""


class RawServer:
    """Listens on loopback until closed. ``on_connect`` takes over a connection before a byte is read."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, on_connect: Reply | None = None) -> None:
        self.seen: list[Seen] = []
        self.fired: list[str] = []
        self.connections = 0
        self.ending = threading.Event()
        self._tls = tls
        self._on_connect = on_connect
        self._replies: dict[str, list[Reply]] = {}
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="raw-server")]
        self._threads[0].start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def on(self, path: str, *replies: Reply) -> None:
        with self._lock:
            self._replies[path] = list(replies)

    def note(self, fault: str) -> None:
        with self._lock:
            self.fired.append(fault)

    def wait_for(self, fault: str) -> None:
        """Proves that ``fault`` happened."""
        wait_until(lambda: fault in self.fired, message=lambda: f"{fault!r} never fired, only {self.fired}")

    def posts(self, path: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.path == path]

    def close(self) -> None:
        self.ending.set()
        with self._lock:
            open_sockets = list(self._open)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in open_sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed by its own end already
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), f"{thread.name} hangs"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self.ending.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), name=f"raw-connection-{self.connections}")
            with self._lock:
                self.connections += 1
                self._open.append(sock)
                self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            if self._on_connect:
                self._on_connect(Connection(sock, self))
                return
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True)
                with self._lock:
                    self._open.append(sock)
            converse(Connection(sock, self))
        except OSError:
            self.note("connection broke")
        finally:
            sock.close()

    def next_reply(self, path: str) -> Reply:
        with self._lock:
            replies = self._replies.get(path, [answer(404)])
            return replies.pop(0) if len(replies) > 1 else replies[0]


def converse(connection: Connection) -> None:
    """Reads requests and replies to each, until either side closes."""
    while connection.sock.fileno() != -1:
        seen = read_request(connection.sock)
        if seen is None:
            return
        connection.server.seen.append(seen)
        connection.server.next_reply(seen.path)(connection)


def read_request(sock: socket.socket) -> Seen | None:
    head = b""
    while b"\r\n\r\n" not in head:
        chunk = sock.recv(65536)
        if not chunk:
            return None
        head += chunk
    head, _, body = head.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    parts, missing = [body], int(headers.get("content-length", 0)) - len(body)
    while missing > 0:
        chunk = sock.recv(min(missing, 1 << 20))
        if not chunk:
            return None
        parts.append(chunk)
        missing -= len(chunk)
    return Seen(method, path, headers, b"".join(parts))


def head_of(status: int, headers: dict[str, str], length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} Reason", *(f"{name}: {value}" for name, value in headers.items())]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def answer(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Reply:
    return send_bytes(head_of(status, JSON if headers is None else headers, len(body)) + body)


def send_bytes(raw: bytes) -> Reply:
    return lambda connection: connection.sock.sendall(raw)


def silence(connection: Connection) -> None:
    """Never answers."""
    connection.fire("silence")
    connection.wait_for_hang_up()


def hang_up(connection: Connection) -> None:
    """Reads the request and closes the connection without a response."""
    connection.sock.close()
    connection.fire("hung up")


def reset(connection: Connection) -> None:
    """Reads the request and sends RST."""
    connection.reset()


def half(raw: bytes) -> Reply:
    """Sends ``raw`` and closes."""

    def reply(connection: Connection) -> None:
        connection.sock.sendall(raw)
        connection.sock.close()
        connection.fire("hung up half-way")

    return reply


def drip(head: bytes, *, byte: bytes = b" ", every: float = 0.02) -> Reply:
    """Sends ``head``, then one byte at a time, until the client hangs up."""

    def reply(connection: Connection) -> None:
        connection.sock.sendall(head)
        dripped = 0
        try:
            while not connection.pause(every):
                connection.sock.sendall(byte)
                dripped += 1
        except OSError:
            connection.fire(f"client hung up while it dripped {'many' if dripped > 3 else 'few'}")

    return reply


def flood(head: bytes, chunk: bytes) -> Reply:
    """Sends ``head``, then ``chunk`` again and again, until the client hangs up."""

    def reply(connection: Connection) -> None:
        connection.sock.sendall(head)
        try:
            while not connection.server.ending.is_set():
                connection.sock.sendall(chunk)
        except OSError:
            connection.fire("client hung up in the flood")

    return reply


def read_slowly(connection: Connection) -> None:
    """For ``on_connect``: reads the request at a few MB a second. No single write is slow, but the whole is."""
    try:
        while connection.sock.recv(65536):
            if connection.pause(0.01):
                return
    except OSError:
        pass
    connection.fire("client hung up while it wrote")
