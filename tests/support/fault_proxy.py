"""A TCP proxy that breaks connections on purpose, on real sockets.

    client ── request ──▶ FaultProxy ── request ──▶ server
           ◀── answer ───            ◀── answer ───

    with FaultProxy(beacon.port) as proxy:
        proxy.plant(Fault.DROP, times=2, only=b"/ingest-traces")
        ...
        assert proxy.fired[Fault.DROP] == 2

The proxy knows nothing of HTTP. A *turn* is the bytes of the client until the server answers, and that answer until
the client sends again: one request and its answer, unless the client pipelines. A planted fault strikes one turn whose
first bytes contain ``only``; faults strike once each, in the order in which they were planted.

``latency`` and ``bytes_per_second`` apply to both directions of every connection until they are changed; ``refuse()``
applies to the port.

``fired`` counts the faults that have struck, ``gave_up`` those during which the client hung up.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from tests.support.waiting import wait_until

CHUNK_BYTES = 65536
_LINGER_ZERO = struct.pack("ii", 1, 0)


class Fault(StrEnum):
    RESET_AT_CONNECT = "reset at connect"
    """RST as soon as the connection is made."""
    RESET_BEFORE = "reset before the request"
    """RST at the first byte of a request, none of which is forwarded."""
    RESET_WITHIN = "reset within the request"
    """``at`` bytes of the request are forwarded, then RST both ways."""
    RESET_AFTER = "reset after the request"
    """The server has the whole request and begins to answer; the client gets RST."""
    DROP = "drop after forwarding"
    """As RESET_AFTER, and the connection to the client is closed."""
    SILENCE = "silence after forwarding"
    """As RESET_AFTER, and the client receives nothing until it gives up."""
    CUT = "cut the answer"
    """The first ``at`` bytes of the answer are sent, then the connection is closed."""
    DRIP = "drip"
    """The answer is sent one byte at a time, one every ``every`` seconds."""
    BLACKHOLE = "blackhole"
    """The request is read and not forwarded; there is never an answer."""
    REFUSE = "refuse"
    """The port does not listen. Not planted: see ``refuse()``."""
    LATENCY = "latency"
    """Not planted: see ``latency``."""
    SLOW = "slow"
    """Not planted: see ``bytes_per_second``."""


@dataclass(frozen=True, slots=True)
class _Planted:
    fault: Fault
    only: bytes
    at: int
    every: float


class Broken(Exception):
    """A fault has ended the turn and closed the connection."""


class FaultProxy:
    """Listens on a free loopback port until closed and forwards to ``port`` of loopback."""

    def __init__(self, port: int) -> None:
        self.latency = 0.0
        """Seconds by which each direction of a turn is delayed."""
        self.bytes_per_second: float | None = None
        """The rate of each direction; None: unlimited."""
        self.fired: Counter[Fault] = Counter()
        self.gave_up: Counter[Fault] = Counter()
        """How often a client hung up during a fault that makes it wait."""
        self.ending = threading.Event()
        self._upstream = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._planted: list[_Planted] = []
        self._lines: set[_Line] = set()
        self._threads: list[threading.Thread] = []
        self._held = self._hold_port()
        self._port: int = self._held.getsockname()[1]
        self._listen()

    @property
    def port(self) -> int:
        return self._port

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self._port}{path}"

    def plant(self, fault: Fault, *, times: int = 1, only: bytes = b"", at: int = 0, every: float = 0.05) -> None:
        """Let ``fault`` strike the next ``times`` turns whose first bytes hold ``only``."""
        with self._lock:
            self._planted += [_Planted(fault, only, at, every)] * times

    @property
    def left(self) -> int:
        """The number of planted faults that have not struck yet."""
        return len(self._planted)

    def wait_for(self, fault: Fault, times: int = 1) -> None:
        """Wait until ``fault`` has fired ``times`` times."""
        wait_until(lambda: self.fired[fault] >= times, message=lambda: f"{fault} not {times} times: {self.fired}")

    def wait_for_hang_up(self, fault: Fault) -> None:
        """Wait until the client has hung up during ``fault``."""
        wait_until(lambda: self.gave_up[fault], message=lambda: f"nobody hung up on {fault}: {self.gave_up}")

    @contextmanager
    def refuse(self) -> Iterator[None]:
        """While the block runs the port does not listen and all connections are closed. Fires after one connection of
        its own was refused."""
        self._stop_listening()
        try:
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self._port)):
                raise AssertionError("somebody listens on the port of the proxy")
            self.fire(Fault.REFUSE)
            yield
        finally:
            self._listen()

    def close(self) -> None:
        self.ending.set()
        self._stop_listening()
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for the lines

    def fire(self, fault: Fault) -> None:
        with self._lock:
            self.fired[fault] += 1

    def note_given_up(self, fault: Fault) -> None:
        with self._lock:
            self.gave_up[fault] += 1

    def take(self, first: bytes | None) -> _Planted | None:
        """The planted fault that strikes a turn that begins with ``first``, or None. ``first`` is None for a new
        connection, before its first byte."""
        with self._lock:
            for number, planted in enumerate(self._planted):
                if (first is None) == (planted.fault is Fault.RESET_AT_CONNECT) and planted.only in (first or b""):
                    return self._planted.pop(number)
        return None

    def pass_slowly(self, sock: socket.socket, data: bytes) -> None:
        """Send ``data`` as fast as the line allows."""
        rate = self.bytes_per_second
        if rate is None:
            sock.sendall(data)
            return
        piece = max(1, int(rate / 20))
        for start in range(0, len(data), piece):
            self.fire(Fault.SLOW)
            self.pause(len(data[start : start + piece]) / rate)
            sock.sendall(data[start : start + piece])

    def delay(self) -> None:
        if self.latency:
            self.fire(Fault.LATENCY)
            self.pause(self.latency)

    def pause(self, seconds: float) -> None:
        """Wait ``seconds``; raises Broken when the proxy is closed meanwhile."""
        if self.ending.wait(seconds):
            raise Broken

    # -- listening

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=64)
        self._accepting = threading.Thread(target=self._accept, args=(self._listener,), name="fault-proxy", daemon=True)
        self._accepting.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            line = _Line(self, client, self._upstream)
            thread = threading.Thread(target=self._carry, args=(line,), name="fault-proxy-line", daemon=True)
            with self._lock:
                self._lines.add(line)
                self._threads = [each for each in self._threads if each.is_alive()] + [thread]
            thread.start()

    def _carry(self, line: _Line) -> None:
        try:
            line.carry()
        finally:
            with self._lock:
                self._lines.discard(line)

    def _stop_listening(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
        self._accepting.join(10)
        with self._lock:
            lines, threads = list(self._lines), list(self._threads)
        for line in lines:
            line.hang_up()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive(), f"{thread.name} hangs"

    @staticmethod
    def _hold_port() -> socket.socket:
        """A port, bound but not listening, so that no other process can take it while nobody listens."""
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        return held


class _Line:
    """One connection of a client, and the proxy's own connection to the server."""

    def __init__(self, proxy: FaultProxy, client: socket.socket, upstream: tuple[str, int]) -> None:
        self._proxy = proxy
        self._client = client
        self._address = upstream
        self._server: socket.socket | None = None

    def carry(self) -> None:
        """Forward turns until either side closes or a fault ends the connection."""
        try:
            if self._proxy.take(None):
                self._reset(self._client, Fault.RESET_AT_CONNECT)
            with socket.create_connection(self._address) as self._server:
                self._turns(self._server)
        except (OSError, Broken):
            pass  # one side has closed: close the other
        finally:
            self._client.close()

    def hang_up(self) -> None:
        """Close both connections from another thread."""
        for sock in (self._client, self._server):
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _turns(self, server: socket.socket) -> None:
        while first := self._first_bytes(server):
            planted = self._proxy.take(first)
            self._request(server, first, planted)
            self._answer(server, planted)

    def _first_bytes(self, server: socket.socket) -> bytes:
        """The next bytes from the client; empty when either side has closed."""
        ready, _, _ = select.select([self._client, server], [], [])
        return self._client.recv(CHUNK_BYTES) if self._client in ready else b""

    def _request(self, server: socket.socket, first: bytes, planted: _Planted | None) -> None:
        """Forward bytes from the client until the server begins to answer."""
        self._proxy.delay()
        match planted:
            case _Planted(Fault.RESET_BEFORE):
                self._reset(self._client, Fault.RESET_BEFORE)
            case _Planted(Fault.RESET_WITHIN, at=at):
                self._reset_within(server, first, at)
            case _Planted(Fault.BLACKHOLE):
                self._say_nothing(Fault.BLACKHOLE)
        self._proxy.pass_slowly(server, first)
        while self._client in select.select([self._client, server], [], [])[0]:
            self._proxy.pass_slowly(server, self._heard(self._client))

    def _answer(self, server: socket.socket, planted: _Planted | None) -> None:
        """Forward bytes from the server until the client sends again."""
        answer = self._heard(server)  # the server has the whole request, so this fault strikes after it
        self._proxy.delay()
        match planted:
            case _Planted(Fault.RESET_AFTER):
                self._reset(self._client, Fault.RESET_AFTER)
            case _Planted(Fault.DROP):
                self._close(Fault.DROP)
            case _Planted(Fault.SILENCE):
                self._say_nothing(Fault.SILENCE)
            case _Planted(Fault.CUT, at=at):
                assert at < len(answer), f"the answer has {len(answer)} bytes: there is nothing to cut at {at}"
                self._client.sendall(answer[:at])
                self._close(Fault.CUT)
            case _Planted(Fault.DRIP, every=every):
                self._drip(answer, every)
            case _:
                self._proxy.pass_slowly(self._client, answer)
        while server in (ready := select.select([self._client, server], [], [])[0]):
            self._proxy.pass_slowly(self._client, self._heard(server))
        assert self._client in ready

    def _heard(self, sock: socket.socket) -> bytes:
        data = sock.recv(CHUNK_BYTES)
        if not data:
            raise Broken
        return data

    def _reset_within(self, server: socket.socket, request: bytes, at: int) -> None:
        while len(request) <= at:
            request += self._heard(self._client)
        server.sendall(request[:at])
        self._linger(server)
        server.close()
        self._reset(self._client, Fault.RESET_WITHIN)

    def _drip(self, answer: bytes, every: float) -> None:
        self._proxy.fire(Fault.DRIP)
        for byte in answer:
            self._proxy.pause(every)
            try:
                self._client.sendall(bytes([byte]))
            except OSError:
                self._proxy.note_given_up(Fault.DRIP)
                raise

    def _say_nothing(self, fault: Fault) -> None:
        self._proxy.fire(fault)
        with suppress(OSError):
            while self._client.recv(CHUNK_BYTES):
                pass
        self._proxy.note_given_up(fault)
        raise Broken

    def _close(self, fault: Fault) -> None:
        self._client.close()
        self._proxy.fire(fault)
        raise Broken

    def _reset(self, sock: socket.socket, fault: Fault) -> None:
        self._linger(sock)
        self._close(fault)

    @staticmethod
    def _linger(sock: socket.socket) -> None:
        """Make close() send RST instead of FIN."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
