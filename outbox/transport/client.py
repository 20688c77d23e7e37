"""The HTTP client: one per process, HTTP/1.1, no redirects, no cookies, the environment's proxies.

It uses httpx on httpcore's connection pools, because these accept a network backend, and only a network backend can
enforce a deadline for a whole request (deadline.py).
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from typing import Any, Literal, Protocol

import httpcore
import httpx

from outbox.transport.deadline import ANSWERED_SINCE_WRITE, TELLS_OF_MORE, WROTE_ALL, DeadlineBackend, in_request
from outbox.transport.proxy import wire_proxy

KEEPALIVE_SECONDS = 30.0


class Client(Protocol):
    """The interface of an injected client; httpx.Client and httpx2.Client have it."""

    def stream(self, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]: ...
    def close(self) -> None: ...


def build_client(tls: Callable[[], ssl.SSLContext | None], proxy: httpx.Proxy | None) -> BeaconClient:
    """``tls``: gives the context of all connections; those of a former one are used no more."""
    _keep_secrets_out_of_debug_logs()

    def new_pool(context: ssl.SSLContext | None) -> httpcore.ConnectionPool:
        return httpcore.ConnectionPool(
            ssl_context=context,
            proxy=None if proxy is None else wire_proxy(proxy, context),
            max_connections=1,
            keepalive_expiry=KEEPALIVE_SECONDS,
            network_backend=DeadlineBackend(),
        )

    by_http = proxy is not None and proxy.url.scheme in ("http", "https")
    return BeaconClient(_PoolTransport(_Pools(new_pool, tls), brackets=by_http))


class BeaconClient:
    """A minimal replacement of httpx.Client: httpx's requests and responses on a transport of its own.

    What httpx.Client does for cookies, defaults, redirects and authentication took as long per request as a step takes
    on SQLite, and beacon needs none of it. The log line of each request is kept, but without the reason phrase, which
    the server can choose freely.
    """

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport

    @contextmanager
    def stream(
        self,
        method: str,
        url: str,
        *,
        content: bytes,
        headers: Mapping[str, str],
        timeout: float,
        follow_redirects: Literal[False] = False,
    ) -> Iterator[httpx.Response]:
        """Send the given headers plus ``Host`` and ``Content-Length``. ``timeout``: seconds for each operation."""
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), timeout)
        where, host = _where(url)
        sent = [("Host", host), *headers.items(), ("Content-Length", str(len(content)))]
        body = httpx.ByteStream(content)  # ``content=`` would make httpx inspect it and copy the headers
        request = httpx.Request(method, where, headers=sent, stream=body, extensions={"timeout": timeouts})
        response = self._transport.handle_request(request)
        _requests.info('HTTP Request: %s %s "HTTP/1.1 %d"', method, request.url, response.status_code)
        try:
            yield response
        finally:
            response.close()
            response.stream = _OVER  # breaks a reference cycle that keeps the body until the next garbage collection

    def close(self) -> None:
        self._transport.close()


_requests = logging.getLogger("httpx.outbox")
"""A child of httpx's logger, whose level and handlers it inherits, so that its lines differ from those of the
application's own requests."""
_OVER = httpx.ByteStream(b"")


@lru_cache(maxsize=16)
def _where(url: str) -> tuple[httpx.URL, str]:
    """The parsed URL of a lane, and its Host header."""
    parsed = httpx.URL(url)
    return parsed, parsed.netloc.decode("ascii")


class _Pools:
    """Pools of one connection each: one pool per request in flight, the most recently used first.

    A single pool for all threads sometimes closes a connection that it has just assigned to another thread, whose
    answer is then lost (https://github.com/encode/httpcore/issues/1110).
    """

    def __init__(
        self,
        new_pool: Callable[[ssl.SSLContext | None], httpcore.ConnectionPool],
        tls: Callable[[], ssl.SSLContext | None],
    ) -> None:
        self._new_pool = new_pool
        self._tls = tls
        self._lock = threading.Lock()
        self._used: dict[httpcore.ConnectionPool, ssl.SSLContext | None] = {}
        """Each with the context that it makes connections with, however often."""
        self._idle: deque[tuple[float, httpcore.ConnectionPool]] = deque()
        self._context: ssl.SSLContext | None = None
        """That of all idle ones."""

    def take(self) -> httpcore.ConnectionPool:
        former: list[httpcore.ConnectionPool] = []
        with self._lock:
            context = self._tls()
            if context is not self._context:
                self._context = context
                former = self._take_idle()
            pool = self._idle.pop()[1] if self._idle else self._new_pool(context)
            self._used[pool] = context
        for each in former:
            each.close()
        return pool

    def give_back(self, pool: httpcore.ConnectionPool) -> None:
        """Return a pool for reuse, and close those that have been idle for longer than the keep-alive time."""
        now = time.monotonic()
        old: list[httpcore.ConnectionPool] = []
        with self._lock:
            if pool not in self._used:  # closed meanwhile
                return
            if self._used.pop(pool) is self._context:
                self._idle.append((now, pool))
            else:
                old.append(pool)
            while self._idle and self._idle[0][0] < now - KEEPALIVE_SECONDS:
                old.append(self._idle.popleft()[1])
        for each in old:
            each.close()

    def drop(self, pool: httpcore.ConnectionPool) -> None:
        with self._lock:
            self._used.pop(pool, None)
        pool.close()

    def fail(self, pool: httpcore.ConnectionPool) -> None:
        """Drop a pool whose request failed, and the idle ones, which were made before it failed: their addresses may be
        out of date too."""
        with self._lock:
            idle = self._take_idle()
        for each in (pool, *idle):
            self.drop(each)

    def close(self) -> None:
        with self._lock:
            pools = [*self._used, *self._take_idle()]
            self._used.clear()
        for pool in pools:
            pool.close()

    def _take_idle(self) -> list[httpcore.ConnectionPool]:
        idle = [pool for _, pool in self._idle]
        self._idle.clear()
        return idle


class _PoolTransport(httpx.BaseTransport):
    """An httpx transport on ``_Pools``. Exceptions stay httpcore's; ``failure_of`` knows them by the same names.

    ``brackets``: an IPv6 address is put into the brackets that it has in what an HTTP proxy is told to reach; httpcore
    takes the host as it is.
    """

    def __init__(self, pools: _Pools, *, brackets: bool = False) -> None:
        self._pools = pools
        self._brackets = brackets

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        departure = _Departure()
        url = request.url
        host = b"[%b]" % url.raw_host if self._brackets and b":" in url.raw_host else url.raw_host
        wire_request = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions={**request.extensions, "trace": departure.trace},
        )
        pool = self._pools.take()
        try:
            answer = pool.handle_request(wire_request)
            _require_its_own(answer)
        except BaseException as exc:
            self._pools.fail(pool)
            if _by_socks(exc):
                raise httpcore.ProxyError(f"the proxy does not answer as a SOCKS5 proxy ({exc})") from exc
            if departure.left or not isinstance(exc, _FAILURES):
                raise
            raise httpcore.ConnectError(str(exc)) from exc
        assert isinstance(answer.stream, Iterable)
        # Without it, a second answer already buffered in the connection could not be detected before the next request.
        again = answer.extensions["network_stream"].get_extra_info(TELLS_OF_MORE)
        stream = _Stream(answer, partial(self._pools.give_back if again else self._pools.drop, pool))
        return httpx.Response(answer.status, headers=answer.headers, stream=stream)

    def close(self) -> None:
        self._pools.close()


_FAILURES = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)


def _by_socks(exc: BaseException) -> bool:
    """Whether socksio could not read the proxy's reply. httpcore lets its exceptions through, before any POST."""
    return type(exc).__module__.partition(".")[0] == "socksio"


def _require_its_own(answer: httpcore.Response) -> None:
    """Raise httpcore.RemoteProtocolError for an answer that cannot be a judgement of the whole request: a batch that
    never arrived would count as delivered.

    One that, or whose beginning, arrived before its request left: a server or proxy that answers twice leaves the
    second answer in the connection's buffer, and httpcore would take it for the answer to the next request. And a 2xx
    after which the rest of the request could not be sent.
    """
    stream = answer.extensions["network_stream"]
    if not stream.get_extra_info(ANSWERED_SINCE_WRITE):
        flaw = "the answer on the connection is older than the request"
    elif 200 <= answer.status < 300 and not stream.get_extra_info(WROTE_ALL):
        flaw = f"{answer.status} before the whole request was sent, and then no more of it was taken"
    else:
        return
    answer.close()
    raise httpcore.RemoteProtocolError(flaw)


class _Departure:
    """Whether a byte of the POST may have been sent. The CONNECT request to a proxy does not count."""

    def __init__(self) -> None:
        self.left = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "http11.send_request_headers.started":
            self.left = self.left or info["request"].method != b"CONNECT"


class _Stream(httpx.SyncByteStream):
    """The body of a response. Closing it returns or drops the connection."""

    def __init__(self, answer: httpcore.Response, closed: Callable[[], None]) -> None:
        self._answer = answer
        self._closed = closed

    def __iter__(self) -> Iterator[bytes]:
        return self._answer.iter_stream()

    def close(self) -> None:
        try:
            self._answer.close()
        finally:
            self._closed()


def _keep_secrets_out_of_debug_logs() -> None:
    for name in ("httpcore.http11", "httpcore.socks"):
        logging.getLogger(name).addFilter(_without_details)


def _without_details(record: logging.LogRecord) -> bool:
    """Reduce httpcore's DEBUG records of our requests to the event name.

    They contain the response headers and quote malformed responses, where a server may repeat a token, and the password
    for a SOCKS proxy.
    """
    if in_request():
        record.msg = str(record.msg).partition(" ")[0]  # the event name
    return True
