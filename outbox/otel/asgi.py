"""Requests of an ASGI application, and the templates of its routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from outbox.otel.requests import Exchange, Requests

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class MeasuredASGI:
    """ASGI middleware; it must be the outermost one.

    A request ends with the last chunk of its response, so background tasks do not count into its duration. WebSockets
    are not measured.
    """

    def __init__(self, app: App, requests: Requests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._begin(scope) if scope["type"] == "http" else None
        if exchange is None:
            await self._app(scope, receive, send)
            return
        names = _Names(scope)

        def finish() -> None:
            exchange.route = names.template(scope)
            exchange.finish()

        with exchange.current():
            try:
                await self._app(scope, _counting_in(exchange, receive), _counting_out(exchange, send, finish))
            except BaseException as error:
                exchange.failed(error)
                raise
            finally:
                finish()

    def _begin(self, scope: Scope) -> Exchange | None:
        parent = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"), None)
        return self._requests.begin(scope["method"], scope.get("scheme", "http"), parent)


def _counting_in(exchange: Exchange, receive: Receive) -> Receive:
    async def counted() -> Message:
        message = await receive()
        if message["type"] == "http.request" and exchange.request_bytes is not None:
            exchange.request_bytes += len(message.get("body", b""))
        return message

    return counted


def _counting_out(exchange: Exchange, send: Send, finish: Callable[[], None]) -> Send:
    async def counted(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
        elif message["type"] == "http.response.body":
            exchange.response_bytes += len(message.get("body", b""))
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            finish()

    return counted


class _Names:
    """Finds the template of a request's route. ``scope``: the original one, before mounted applications change it."""

    def __init__(self, scope: Scope) -> None:
        self._app = scope.get("app")
        self._root_path = scope.get("root_path", "")
        self._path = scope["path"].removeprefix(self._root_path)

    def template(self, scope: Scope) -> str | None:
        """``/orders/{order_id}``, preceded by the templates of its mounts; None if no route matched.

        It is read from what Starlette and FastAPI leave in the scope. The root_path of a mount is part of the real
        path and is never used as a name.
        """
        route = scope.get("route")
        # Since 0.137 FastAPI includes routers lazily: a route has only its own path, the context has the full one.
        included = (scope.get("fastapi") or {}).get("effective_route_context")
        own = next((path for path in map(_path_of, (included, route)) if path is not None), None)
        if own is None:  # before 1.7 Starlette leaves the endpoint, but not its route
            return _by_endpoint(getattr(self._app, "routes", ()), self._path, scope.get("endpoint"))
        mounted = scope.get("root_path", "")[len(self._root_path) :]
        if not mounted or hasattr(route, "routes"):  # a mount without a matching route below it
            return own
        return _mounts(getattr(self._app, "routes", ()), mounted) + own


def _path_of(route: Any) -> str | None:
    path = getattr(route, "path_format", None) or getattr(route, "path", None)
    return path if isinstance(path, str) else None


def _mounts(routes: Iterable[Any], mounted: str) -> str:
    """The templates of the mounts that lead to the path ``mounted``; empty if they cannot be determined."""
    for route in routes:
        below = getattr(route, "routes", None)
        if below is None or not hasattr(route, "path_regex"):
            continue
        match = route.path_regex.match(f"{mounted}/")
        if match:
            rest = match.groupdict().get("path", "")
            return str(route.path) + (_mounts(below, "/" + rest.rstrip("/")) if rest.strip("/") else "")
    return ""


def _by_endpoint(routes: Iterable[Any], path: str, endpoint: Any) -> str | None:
    """The template of the first route from ``path`` to ``endpoint``, preceded by those of its mounts; None: none."""
    for route in routes if endpoint is not None else ():
        pattern = getattr(route, "path_regex", None)
        match = pattern.match(path) if pattern is not None else None
        if not match:
            continue
        below = getattr(route, "routes", None)
        if below is None and getattr(route, "endpoint", None) is endpoint:
            return _path_of(route)
        inner = _by_endpoint(below or (), "/" + match.groupdict().get("path", ""), endpoint)
        if inner is not None:
            return str(route.path) + inner
        if getattr(route, "app", None) is endpoint and below is not None:  # a mount without a matching route below it
            return _path_of(route)
    return None
