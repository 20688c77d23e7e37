"""HTTP/1.1 on a plain asyncio.Protocol: keep-alive, pipelining, chunked bodies, and faulty delivery of answers.

A connection answers its requests in order, one at a time. While an answer is delayed (latency, drip), further requests
wait in the queue, and reading from the socket is paused.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol

from outbox.simulator.exchange import Delivery, Reply, Request, refusal

try:
    import httptools
except ImportError as error:  # the simulator is an extra
    raise ImportError(
        "outbox.simulator needs httptools, which is not installed: pip install 'beacon-outbox[simulator]'",
        name=error.name,
    ) from error

_LINGER_ZERO = struct.pack("ii", 1, 0)
_BODILESS = (204, 304)


class Application(Protocol):
    """The application behind the protocol: one synchronous call per request."""

    def __call__(self, request: Request, /) -> Reply: ...

    def garbage(self, reason: str, /) -> None:
        """Called when a connection sends bytes that are not HTTP."""


@lru_cache(maxsize=256)
def _status_line(status: int) -> str:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unassigned"
    return f"HTTP/1.1 {status} {phrase}\r\nserver: beacon-simulator\r\n"


def _head(reply: Reply, framing: str, keep_alive: bool) -> bytes:
    extra = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
    ending = "\r\n" if keep_alive else "connection: close\r\n\r\n"
    return f"{_status_line(reply.status)}content-type: {reply.content_type}\r\n{framing}{extra}{ending}".encode(
        "latin-1"
    )


class Connection(asyncio.Protocol):
    """One client connection. It is in the set ``connections`` from its creation until the connection is lost."""

    def __init__(self, application: Application, connections: set[Connection]) -> None:
        self._application = application
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request] = deque()
        self._answering: Reply | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._hanging_up = False
        self._garbage: str | None = None  # why the bytes after the queued requests are not HTTP
        self._made = False
        self.on_message_begin()
        connections.add(self)

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._made = True
        if self._hanging_up:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._answered()

    def data_received(self, data: bytes) -> None:
        if self._garbage is None:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade:
                self._queue.pop()  # the parser does not parse the body of an upgrade request
                self._garbage = "upgrades are not spoken here"
            except httptools.HttpParserError as error:
                self._garbage = str(error)
        self._advance()

    # -- httptools

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._in_head = True
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer field must not be merged into the headers (RFC 9110, 6.5.1)
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        path, _, query = self._url.decode("latin-1").partition("?")
        self._queue.append(
            Request(
                method=self._parser.get_method().decode("ascii"),
                path=path,
                query=query,
                headers=self._headers,
                body=self._body[0] if len(self._body) == 1 else b"".join(self._body),
                keep_alive=self._parser.should_keep_alive(),
            )
        )

    # -- answering

    def hang_up(self) -> None:
        """Abort the connection; a pending answer of the control endpoints is still sent first."""
        self._hanging_up = True
        if self._made and (self._answering is None or self._answering.wait is None):
            self._transport.abort()

    def _advance(self) -> None:
        while self._queue and self._answering is None and not self._transport.is_closing():
            self._begin(self._queue.popleft())
        if self._transport.is_closing():
            self._queue.clear()
        elif self._answering is not None:
            self._transport.pause_reading()
        elif self._garbage is not None:
            self._reject(self._garbage)
        else:
            self._transport.resume_reading()

    def _reject(self, reason: str) -> None:
        self._application.garbage(reason)
        self._give(refusal(400, "this is not HTTP/1.1", detail=reason), keep_alive=False)

    def _begin(self, request: Request) -> None:
        self._answering = reply = self._application(request)
        keep_alive = request.keep_alive
        if reply.wait is not None:
            reply.wait.add_done_callback(lambda _: self._later(reply, keep_alive))
        elif reply.delay_seconds > 0:
            self._call_later(reply.delay_seconds, lambda: self._later(reply, keep_alive))
        else:
            self._give(reply, keep_alive)

    def _later(self, reply: Reply, keep_alive: bool) -> None:
        self._give(reply, keep_alive and not self._hanging_up)
        self._advance()

    def _call_later(self, seconds: float, then: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _give(self, reply: Reply, keep_alive: bool) -> None:
        if self._transport.is_closing():
            return
        match reply.delivery:
            case Delivery.LOST:
                keep_alive = False
            case Delivery.RESET:
                self._reset()
            case Delivery.HALF:
                keep_alive = False
                self._write(reply, reply.body[: len(reply.body) // 2], keep_alive)
            case Delivery.DRIP:
                self._write(reply, b"", keep_alive)
                self._drip(reply, 0, keep_alive)
                return
            case Delivery.WHOLE if reply.parts is not None:
                self._write_chunks(reply, keep_alive)
            case Delivery.WHOLE:
                self._write(reply, reply.body, keep_alive)
        self._end(keep_alive)

    def _write(self, reply: Reply, body: bytes, keep_alive: bool) -> None:
        if reply.status in _BODILESS:
            self._transport.write(_head(reply, "", keep_alive))
        else:
            self._transport.write(
                _head(reply, f"content-length: {len(reply.body)}\r\n", keep_alive) + body,
            )

    def _write_chunks(self, reply: Reply, keep_alive: bool) -> None:
        assert reply.parts is not None
        self._transport.write(_head(reply, "transfer-encoding: chunked\r\n", keep_alive))
        for part in reply.parts:
            if part:  # an empty chunk ends the body
                self._transport.write(b"%x\r\n%b\r\n" % (len(part), part))
        self._transport.write(b"0\r\n\r\n")

    def _drip(self, reply: Reply, at: int, keep_alive: bool) -> None:
        if self._transport.is_closing():
            return
        if at < len(reply.body):
            self._transport.write(reply.body[at : at + 1])
            self._call_later(reply.drip_seconds, lambda: self._drip(reply, at + 1, keep_alive))
            return
        self._end(keep_alive)
        self._advance()

    def _reset(self) -> None:
        peer: socket.socket = self._transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._transport.abort()

    def _end(self, keep_alive: bool) -> None:
        self._answered()
        if not keep_alive:
            self._transport.close()

    def _answered(self) -> None:
        reply, self._answering = self._answering, None
        if reply is not None and reply.done is not None:
            reply.done()
