"""Pure: the chunks of a response become an Answer, an exception of the HTTP library becomes a Failure."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping

from outbox.core.receipt import Answer, Failure

_GZIP = zlib.MAX_WBITS | 16

# By class name, because an injected client may be httpx2's, which has the same names on other classes. The first
# class of the exception's MRO that is listed decides, so an unknown subclass is judged by its base class.
_FAILURES = {
    # Certainly not sent.
    "ConnectError": Failure.NOT_SENT,
    "ConnectTimeout": Failure.NOT_SENT,
    "PoolTimeout": Failure.NOT_SENT,
    "ProxyError": Failure.NOT_SENT,
    "UnsupportedProtocol": Failure.NOT_SENT,
    # Read and write errors, timeouts, protocol errors, closed connections, and classes of future versions.
    "NetworkError": Failure.LOST,
    "TimeoutException": Failure.LOST,
    "ProtocolError": Failure.LOST,
    "TransportError": Failure.LOST,
    "HTTPError": Failure.LOST,
    "StreamError": Failure.LOST,
}


def failure_of(exc: BaseException) -> Failure | None:
    """The Failure that an exception of httpx, httpx2 or httpcore stands for; None: it is not one of theirs."""
    for cls in type(exc).__mro__:
        if cls.__module__.partition(".")[0].startswith("http") and cls.__name__ in _FAILURES:
            return _FAILURES[cls.__name__]
    return None


def read_answer(
    status: int,
    headers: Mapping[str, str],
    chunks: Iterable[bytes],
    *,
    limit: int,
    expired: Callable[[], bool] = lambda: False,
) -> Answer:
    """Read the raw, still encoded ``chunks`` of a response body, up to ``limit`` decoded bytes.

    A longer body, a lost connection, a damaged encoding or ``expired()`` give what was read so far, marked as
    truncated: the status is known by then, and it counts. The request asks for the identity encoding. A gzip body,
    which a proxy may send all the same, is decoded without ever holding more than ``limit`` bytes; any other encoding
    is left as it is and will not parse as JSON.
    """
    headers = {name.lower(): value for name, value in headers.items()}
    gzipped = headers.get("content-encoding", "").strip().lower() in ("gzip", "x-gzip")
    body = _Gzip(limit) if gzipped else _Body(limit)
    try:
        for chunk in chunks:
            if expired() or not body.take(chunk):
                return Answer(status, headers, body.read(), truncated=True)
    except Exception as exc:
        if not isinstance(exc, zlib.error) and failure_of(exc) is None:
            raise
        return Answer(status, headers, body.read(), truncated=True)
    return Answer(status, headers, body.read(), truncated=not body.complete)


class _Body:
    """A buffer for at most ``limit`` bytes of a body."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = bytearray()

    def take(self, chunk: bytes) -> bool:
        """Add a chunk. False: the body is longer than the limit."""
        self._bytes += self._decode(chunk, self._limit + 1 - len(self._bytes))
        return len(self._bytes) <= self._limit

    def read(self) -> bytes:
        return bytes(self._bytes[: self._limit])

    @property
    def complete(self) -> bool:
        return True

    def _decode(self, chunk: bytes, room: int) -> bytes:
        return chunk[:room]


class _Gzip(_Body):
    """The same for a gzip body. A decompression bomb is not unpacked: zlib stops at the remaining limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._zlib = zlib.decompressobj(_GZIP)

    @property
    def complete(self) -> bool:
        return self._zlib.eof

    def _decode(self, chunk: bytes, room: int) -> bytes:
        decoded = self._zlib.decompress(chunk, room)
        if self._zlib.unused_data:
            raise zlib.error("bytes after the end of the gzip stream")  # zlib would keep all of them in memory
        return decoded
