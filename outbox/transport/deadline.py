"""One deadline for a whole request. httpcore's timeouts are per operation: a server that sends a byte now and then
never exceeds one.

    with deadline(15.0):            # seconds; for this thread
        client.stream(...)          # every connect, TLS handshake, write and read gets the time that is left

Name resolution is the only wait that the deadline cannot interrupt (the resolver's own timeout is in resolv.conf).
Nothing has been sent by then, and nothing is sent if it returns too late.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import httpcore

T = TypeVar("T")

ANSWERED_SINCE_WRITE = "outbox_answered_since_write"
"""Extra info of a DeadlineBackend stream: whether the first bytes read after the last write begin an HTTP answer."""
WROTE_ALL = "outbox_wrote_all"
"""Extra info of the same: whether no write has failed. httpcore reads the answer also after a write that failed."""
TELLS_OF_MORE = "outbox_tells_of_more"
"""Extra info of the same: whether the socket is readable whenever unread data is left. TLS within TLS reads ahead, so
there it is not."""

_WRITE_BYTES = 8192
"""Size of one write in TLS within TLS, whose timeout starts again with each part that the socket accepts. A writable
socket takes this much at once, so the write waits at most once."""

_ANSWER = b"HTTP/"

_RECORD_BYTES = 16 * 1024
"""Bytes of TLS that are read at once: the size of a record."""

_JOINED_BYTES = 16 * 1024
"""Requests up to this size are copied into one buffer: the size of a TLS record."""

_ends_at: ContextVar[float | None] = ContextVar("outbox_request_ends_at", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Limit everything that this thread does on the streams of a DeadlineBackend to ``seconds`` from now."""
    token = _ends_at.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ends_at.reset(token)


def in_request() -> bool:
    """Whether this thread is inside ``deadline()``."""
    return _ends_at.get() is not None


def expired() -> bool:
    ends_at = _ends_at.get()
    return ends_at is not None and time.monotonic() >= ends_at


class DeadlineBackend(httpcore.NetworkBackend):
    """httpcore's own sockets, where the timeout of each operation is the time left."""

    def __init__(self) -> None:
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Try each address of ``host`` with an equal share of the time left: a dead IPv6 route costs only a part."""
        addresses = _resolve(host, port)
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for tried, address in enumerate(addresses):
            share = _left(timeout, httpcore.ConnectTimeout, among=len(addresses) - tried)
            try:
                stream = self._sockets.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
            else:
                return _DeadlineStream(stream)
        raise failure


class _DeadlineStream(httpcore.NetworkStream):
    """A stream whose operations share the deadline.

    ``plain``: a socket, or TLS directly on it; not TLS within the TLS of a proxy. The head of a request is held back
    until its body is written or the response is read, so that a small request is sent in one write.
    """

    def __init__(self, stream: httpcore.NetworkStream, *, plain: bool = True) -> None:
        self._stream = stream
        self._plain = plain
        self._answered: bool | None = None
        """Whether what was read since the last write begins an answer; None: nothing was read yet."""
        self._head = b""
        self._wrote_all = True
        self._early: bytes | None = None
        """What was read while a write waited."""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._head:
            self.write(b"", timeout)
        data, self._early = self._early, None
        if data is None:
            data = self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))
        if self._answered is None:
            self._answered = _ANSWER.startswith(data[: len(_ANSWER)])  # else it is the rest of an earlier one
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write in as few calls as possible: between two of them another thread may take the GIL."""
        self._answered = None
        head, self._head = self._head, b""
        try:
            if not head:
                self._head = buffer
            elif len(head) + len(buffer) <= _JOINED_BYTES:
                self._write(head + buffer, timeout)
            else:
                self._write(head, timeout)
                self._write(buffer, timeout)
        except httpcore.WriteError:
            self._wrote_all = False
            raise

    def _write(self, buffer: bytes, timeout: float | None) -> None:
        if self._plain:
            return self._send(self._stream.get_extra_info("socket"), memoryview(buffer), timeout)
        for start in range(0, len(buffer), _WRITE_BYTES):
            piece = buffer[start : start + _WRITE_BYTES]
            self._stream.write(piece, _left(timeout, httpcore.WriteTimeout))
        return None

    def _send(self, peer: socket.socket, left: memoryview, timeout: float | None) -> None:
        """Like httpcore's own write, whose timeout however would start again with each part that the socket accepts.

        It waits for half of the time left at once, and gives up after that if an answer is there already, by a server
        that reads no further. httpcore reads the answer after a WriteError.
        """
        while left:
            try:
                peer.settimeout(_left(timeout, httpcore.WriteTimeout, among=2))
                left = left[peer.send(left) :]
            except TimeoutError as exc:
                self._early = _received(peer)
                if self._early is not None:
                    raise httpcore.WriteError("the server answered and reads no further") from exc
            except OSError as exc:
                raise httpcore.WriteError(str(exc)) from exc

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        server_hostname = server_hostname and server_hostname.strip("[]")  # of an IPv6 address in a URL
        if isinstance(self._stream.get_extra_info("socket"), ssl.SSLSocket):
            return _DeadlineStream(_TlsWithinTls(self._stream, ssl_context, server_hostname, timeout), plain=False)
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        if info == ANSWERED_SINCE_WRITE:
            return bool(self._answered)
        if info == WROTE_ALL:
            return self._wrote_all
        return self._plain if info == TELLS_OF_MORE else self._stream.get_extra_info(info)


class _TlsWithinTls(httpcore.NetworkStream):
    """TLS to beacon inside the TLS connection to a proxy.

    httpcore has one too, but there each part of a record has the whole timeout: a byte now and then never exceeds it.
    """

    def __init__(
        self, outer: httpcore.NetworkStream, context: ssl.SSLContext, server_hostname: str | None, timeout: float | None
    ) -> None:
        self._outer = outer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        try:
            self._carry_out(self._tls.do_handshake, timeout, httpcore.ConnectError)
        except BaseException:
            self.close()
            raise

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._carry_out(lambda: self._tls.read(max_bytes), timeout, httpcore.ReadError)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._carry_out(lambda: self._tls.write(buffer), timeout, httpcore.WriteError)

    def close(self) -> None:
        self._outer.close()

    def get_extra_info(self, info: str) -> Any:
        return self._tls if info == "ssl_object" else self._outer.get_extra_info(info)

    def _carry_out(self, operation: Callable[[], T], timeout: float | None, failed: type[Exception]) -> T:
        """The result of ``operation``, after reading and writing what it needs from and to the proxy."""
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                self._send(timeout)
                data = self._outer.read(_RECORD_BYTES, _left(timeout, httpcore.ReadTimeout))
                self._incoming.write(data) if data else self._incoming.write_eof()
            except ssl.SSLError as exc:
                raise failed(str(exc)) from exc
            else:
                self._send(timeout)
                return result

    def _send(self, timeout: float | None) -> None:
        if data := self._outgoing.read():
            self._outer.write(data, _left(timeout, httpcore.WriteTimeout))


def _left(timeout: float | None, over: type[Exception], *, among: int = 1) -> float | None:
    """Seconds for the next of ``among`` operations. Raises ``over`` if the deadline has passed."""
    ends_at = _ends_at.get()
    if ends_at is None:
        return timeout
    left = ends_at - time.monotonic()
    if left <= 0:
        raise over("the deadline of the request is over")
    return left / among


def _received(peer: socket.socket) -> bytes | None:
    """What has arrived; empty at the end of the connection, None if there is nothing. A readable TLS connection may
    have nothing but session tickets."""
    peer.settimeout(0)
    try:
        return peer.recv(_RECORD_BYTES)
    except (BlockingIOError, ssl.SSLWantReadError):
        return None
    except OSError:
        return b""


def _resolve(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:  # UnicodeError: a name that no DNS label can hold
        raise httpcore.ConnectError(f"{host} cannot be resolved: {exc}") from exc
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
