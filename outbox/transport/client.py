"""The HTTP client: one a process, HTTP/1.1, no redirects, no cookies, the environment's proxies.

httpx on httpcore's pools, because only these take a network backend, and only there a deadline can be total
(deadline.py).
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

from outbox.errors import ConfigError
from outbox.transport.config import TransportSettings
from outbox.transport.deadline import ANSWERED_SINCE_WRITE, TELLS_OF_MORE, DeadlineBackend, in_request
from outbox.transport.proxy import wire_proxy

KEEPALIVE_SECONDS = 30.0


class Client(Protocol):
    """What an injected client must do: httpx.Client and httpx2.Client both do."""

    def stream(self, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]: ...
    def close(self) -> None: ...


def tls_context(settings: TransportSettings) -> ssl.SSLContext | None:
    """A context for a private authority or a client certificate; None: neither is set.

    A file that cannot be read, or does not belong to its key, is a ConfigError.
    """
    if not (settings.ca_file or settings.client_cert_file):
        return None
    try:
        context = (
            ssl.create_default_context(cafile=settings.ca_file) if settings.ca_file else httpx.create_ssl_context()
        )
        if settings.client_cert_file:
            context.load_cert_chain(settings.client_cert_file, settings.client_key_file)
    except OSError as exc:  # ssl.SSLError is one
        raise ConfigError(
            f"TLS files cannot be used ({exc.strerror or exc}); check OUTBOX_CA_FILE, OUTBOX_CLIENT_CERT_FILE "
            "and OUTBOX_CLIENT_KEY_FILE"
        ) from exc
    return context


def build_client(base_url: str, context: ssl.SSLContext | None, proxy: httpx.Proxy | None) -> BeaconClient:
    _keep_headers_out_of_debug_logs()
    url = httpx.URL(base_url)
    if context is None and url.scheme == "https":
        context = httpx.create_ssl_context()  # reads every authority there is: tens of milliseconds
    new_pool = partial(
        httpcore.ConnectionPool,
        ssl_context=context,
        proxy=None if proxy is None else wire_proxy(proxy, context),
        max_connections=1,
        keepalive_expiry=KEEPALIVE_SECONDS,
        network_backend=DeadlineBackend(),
    )
    return BeaconClient(_PoolTransport(_Pools(new_pool)))


class BeaconClient:
    """httpx below its Client: requests, a transport, answers. What a Client adds to each of them took as long as SQLite
    takes for a step, and little of it is for beacon: no cookies, no defaults, no redirects, no authentication. Its line
    in the log stays, where people look for it, without the reason phrase, which is the server's to choose."""

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
        """Headers are sent as they are given, with ``Host`` and the length; ``timeout`` in seconds for each step."""
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), timeout)
        where, host = _where(url)
        sent = [("Host", host), *headers.items(), ("Content-Length", str(len(content)))]
        body = httpx.ByteStream(content)  # as ``content`` it would be looked at for what it is, and the headers copied
        request = httpx.Request(method, where, headers=sent, stream=body, extensions={"timeout": timeouts})
        response = self._transport.handle_request(request)
        _requests.info('HTTP Request: %s %s "HTTP/1.1 %d"', method, request.url, response.status_code)
        try:
            yield response
        finally:
            response.close()
            response.stream = _OVER  # it holds the response, and the body, until the garbage collector comes by

    def close(self) -> None:
        self._transport.close()


_requests = logging.getLogger("httpx.outbox")
"""Below httpx's, whose level and handlers it has: so it can be told from the requests of the host's own."""
_OVER = httpx.ByteStream(b"")


@lru_cache(maxsize=16)
def _where(url: str) -> tuple[httpx.URL, str]:
    """The URL of a lane, parsed once, and its host."""
    parsed = httpx.URL(url)
    return parsed, parsed.netloc.decode("ascii")


class _Pools:
    """A pool of one connection for each request that is on the wire, the one used last first.

    One pool for all would close, now and then, a connection that it has just given to another thread, whose answer
    is lost then (https://github.com/encode/httpcore/issues/1110).
    """

    def __init__(self, new_pool: Callable[[], httpcore.ConnectionPool]) -> None:
        self._new_pool = new_pool
        self._lock = threading.Lock()
        self._used: set[httpcore.ConnectionPool] = set()
        self._idle: deque[tuple[float, httpcore.ConnectionPool]] = deque()

    def take(self) -> httpcore.ConnectionPool:
        with self._lock:
            pool = self._idle.pop()[1] if self._idle else self._new_pool()
            self._used.add(pool)
        return pool

    def give_back(self, pool: httpcore.ConnectionPool) -> None:
        """Ends what has been idle for longer than its connection is kept."""
        now = time.monotonic()
        with self._lock:
            if pool not in self._used:  # closed meanwhile
                return
            self._used.remove(pool)
            self._idle.append((now, pool))
            old = []
            while self._idle[0][0] < now - KEEPALIVE_SECONDS:
                old.append(self._idle.popleft()[1])
        for each in old:
            each.close()

    def drop(self, pool: httpcore.ConnectionPool) -> None:
        with self._lock:
            self._used.discard(pool)
        pool.close()

    def close(self) -> None:
        with self._lock:
            pools = [*self._used, *(pool for _, pool in self._idle)]
            self._used.clear()
            self._idle.clear()
        for pool in pools:
            pool.close()


class _PoolTransport(httpx.BaseTransport):
    """httpx on pools of ours. Exceptions stay httpcore's: ``failure_of`` knows them by the same names."""

    def __init__(self, pools: _Pools) -> None:
        self._pools = pools

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        departure = _Departure()
        url = request.url
        wire_request = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions={**request.extensions, "trace": departure.trace},
        )
        pool = self._pools.take()
        try:
            answer = pool.handle_request(wire_request)
            _require_fresh(answer)
        except BaseException as exc:
            self._pools.drop(pool)
            if departure.left or not isinstance(exc, _FAILURES):
                raise
            raise httpcore.ConnectError(str(exc)) from exc
        assert isinstance(answer.stream, Iterable)
        # A second answer that waits in such a connection could not be seen before the next request.
        again = answer.extensions["network_stream"].get_extra_info(TELLS_OF_MORE)
        stream = _Stream(answer, partial(self._pools.give_back if again else self._pools.drop, pool))
        return httpx.Response(answer.status, headers=answer.headers, stream=stream)

    def close(self) -> None:
        self._pools.close()


_FAILURES = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)


def _require_fresh(answer: httpcore.Response) -> None:
    """Raises httpcore.RemoteProtocolError for an answer that was here before its request left, or its beginning was.

    A server or proxy that answers twice leaves the second answer in the connection's buffer, where httpcore would
    find it and take it for the answer to the next request: a batch that never arrived would be delivered.
    """
    if not answer.extensions["network_stream"].get_extra_info(ANSWERED_SINCE_WRITE):
        answer.close()
        raise httpcore.RemoteProtocolError("the answer on the connection is older than the request")


class _Departure:
    """Whether a byte of the POST may have left. While a proxy is asked for its tunnel, none has."""

    def __init__(self) -> None:
        self.left = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "http11.send_request_headers.started":
            self.left = self.left or info["request"].method != b"CONNECT"


class _Stream(httpx.SyncByteStream):
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


def _keep_headers_out_of_debug_logs() -> None:
    logging.getLogger("httpcore.http11").addFilter(_without_headers)


def _without_headers(record: logging.LogRecord) -> bool:
    """At DEBUG httpcore prints each answer's headers and quotes what is no HTTP; a server may repeat a token there."""
    if in_request():
        record.msg = str(record.msg).partition(" ")[0]  # the name of the event
    return True
