"""Requests of a WSGI application, such as a Flask application."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from outbox.otel.requests import Exchange, Requests

Environ = dict[str, Any]
WSGIApp = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

_AT_THE_END = "werkzeug.debug.preserve_context"
"""Flask calls the function under this key with its contexts before it pops them, whether it answers or raises."""


class MeasuredWSGI:
    """WSGI middleware; it must be the outermost one.

    A request ends with the last chunk of its response, or when the response is closed.
    """

    def __init__(self, app: WSGIApp, requests: Requests) -> None:
        self.app = app
        self._requests = requests

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        exchange = self._requests.begin(
            environ["REQUEST_METHOD"],
            environ.get("wsgi.url_scheme", "http"),
            environ.get("HTTP_TRACEPARENT"),
        )
        if exchange is None:
            return self.app(environ, start_response)
        exchange.request_bytes = _length(environ)
        try:
            with exchange.current(), _rule_noted(exchange, environ):
                return _Answer(self.app(environ, _noting(exchange, environ, start_response)), exchange)
        except BaseException as error:
            exchange.failed(error)
            exchange.finish()
            raise


class _Answer:
    """The chunks of a response, counted. Spans that are made while a chunk is generated belong to the request too."""

    def __init__(self, pieces: Iterable[bytes], exchange: Exchange) -> None:
        self._pieces = pieces
        self._next: Iterator[bytes] = iter(pieces)
        self._exchange = exchange

    def __iter__(self) -> _Answer:
        return self

    def __next__(self) -> bytes:
        try:
            with self._exchange.current():
                piece = next(self._next)
        except StopIteration:
            self._exchange.finish()
            raise
        except BaseException as error:
            self._exchange.failed(error)
            raise
        self._exchange.response_bytes += len(piece)
        return piece

    def close(self) -> None:
        try:
            close = getattr(self._pieces, "close", None)
            if close is not None:
                with self._exchange.current():
                    close()
        finally:
            self._exchange.finish()


def _noting(exchange: Exchange, environ: Environ, start_response: Callable[..., Any]) -> Callable[..., Any]:
    def noted(status: str, *arguments: Any) -> Any:
        exchange.status = int(status.split(" ", 1)[0])
        exchange.route = _rule(environ)  # now: Flask removes its request from environ before the response is read
        return start_response(status, *arguments)

    return noted


@contextmanager
def _rule_noted(exchange: Exchange, environ: Environ) -> Iterator[None]:
    """Note the route of a request whose exception Flask propagates, as it does in debug mode and in tests.

    Then ``start_response`` is not called, and the request is gone from ``environ`` before the exception arrives here.
    """
    others = environ.get(_AT_THE_END)  # set by Werkzeug's debugger or Flask's test client

    def noted(context: object) -> None:
        exchange.route = exchange.route or _rule(environ)
        if others is not None:
            others(context)

    environ[_AT_THE_END] = noted
    try:
        yield
    finally:
        environ.pop(_AT_THE_END, None)  # breaks a reference cycle
        if others is not None:
            environ[_AT_THE_END] = others


def _length(environ: Environ) -> int | None:
    """Bytes of the body by Content-Length; 0: no body; None: a chunked body, of unknown length."""
    given = environ.get("CONTENT_LENGTH") or ""
    if given.isdecimal():
        return int(given)
    return None if environ.get("HTTP_TRANSFER_ENCODING") else 0


def _rule(environ: Environ) -> str | None:
    """The route template, as in ``/orders/<int:order_id>``, from the request that Werkzeug leaves in ``environ``."""
    rule = getattr(getattr(environ.get("werkzeug.request"), "url_rule", None), "rule", None)
    return rule if isinstance(rule, str) else None
