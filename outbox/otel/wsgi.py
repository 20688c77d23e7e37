"""Requests of a WSGI application, as Flask is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from outbox.otel.requests import Exchange, Requests

Environ = dict[str, Any]
WSGIApp = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

_AT_THE_END = "werkzeug.debug.preserve_context"
"""Flask calls what is there with its contexts before it takes them down, whether it answers or raises."""


class MeasuredWSGI:
    """WSGI middleware, to be the outermost. A request ends with the last piece of its answer, or when it is closed."""

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
    """The answer's pieces, counted. What makes them belongs to the request as well."""

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
        exchange.route = _rule(environ)  # now: Flask takes its request out of the environment before the answer is read
        return start_response(status, *arguments)

    return noted


@contextmanager
def _rule_noted(exchange: Exchange, environ: Environ) -> Iterator[None]:
    """For a request whose exception Flask lets through, as it does in debug mode and in tests: no answer is begun, and
    the request is out of the environment before the exception is here."""
    others = environ.get(_AT_THE_END)  # of Werkzeug's debugger, or of Flask's test client

    def noted(context: object) -> None:
        exchange.route = exchange.route or _rule(environ)
        if others is not None:
            others(context)

    environ[_AT_THE_END] = noted
    try:
        yield
    finally:
        environ.pop(_AT_THE_END, None)  # it holds the environment that holds it
        if others is not None:
            environ[_AT_THE_END] = others


def _length(environ: Environ) -> int | None:
    """Bytes of the body as the client says; 0 without one; None where they come in chunks."""
    given = environ.get("CONTENT_LENGTH") or ""
    if given.isdecimal():
        return int(given)
    return None if environ.get("HTTP_TRANSFER_ENCODING") else 0


def _rule(environ: Environ) -> str | None:
    """``/orders/<int:order_id>``: Werkzeug leaves the request in the environment, and Flask the rule in it."""
    rule = getattr(getattr(environ.get("werkzeug.request"), "url_rule", None), "rule", None)
    return rule if isinstance(rule, str) else None
