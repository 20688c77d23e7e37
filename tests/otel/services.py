"""The same small service in each framework, and a client of it.

GET    /orders/{order_id}        one order by its name, 404 without it
POST   /orders                   the body's bytes come back twice
GET    /slow, /broken, /answers/{status}
GET    /tenants/{tenant}/orders/{order_id}     in an application that is mounted
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import fastapi
import flask
import httpx
import starlette.requests
import starlette.responses
from sqlalchemy import Engine, text
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from tests.otel.personal import MEASURED

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Calling(Protocol):
    def __call__(self, method: str, path: str, **options: Any) -> int:
        """The status of the response; 500 if the application raised."""


def work(engine: Engine, name: str) -> bool:
    """A SELECT with personal data in a literal, a comment and a parameter."""
    with engine.begin() as connection:
        query = f"/* {MEASURED['sql']} */ SELECT '{MEASURED['sql']}', name FROM orders WHERE name = :name"
        return connection.execute(text(query), {"name": name}).first() is not None


def fail(engine: Engine) -> None:
    """Raises an IntegrityError whose message contains personal data."""
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO orders (name) VALUES (:name)"), {"name": MEASURED["parameter"]})


def broken() -> None:
    raise ValueError(f"no such customer: {MEASURED['exception']}")


def in_fastapi(engine: Engine) -> fastapi.FastAPI:
    app, orders, tenants = fastapi.FastAPI(), fastapi.APIRouter(prefix="/orders"), fastapi.FastAPI()

    @orders.get("/{order_id}")
    def one(order_id: str) -> fastapi.Response:
        return fastapi.Response(MEASURED["answer"], 200 if work(engine, order_id) else 404)

    @orders.post("")
    async def add(request: fastapi.Request) -> fastapi.Response:
        return fastapi.Response(2 * await request.body())

    @app.get("/broken")
    def let_through() -> None:
        broken()

    @app.get("/integrity")
    def integrity() -> None:
        fail(engine)

    @app.get("/answers/{status}")
    def answer(status: int) -> fastapi.Response:
        return fastapi.Response(status_code=status)

    @tenants.get("/orders/{order_id}")
    def of_tenant(order_id: str) -> str:
        return order_id

    app.include_router(orders)
    app.mount("/tenants/{tenant}", tenants)
    return app


def in_starlette(engine: Engine) -> Starlette:
    async def one(request: starlette.requests.Request) -> starlette.responses.Response:
        there = await asyncio.to_thread(work, engine, request.path_params["order_id"])
        return starlette.responses.Response(MEASURED["answer"], 200 if there else 404)

    async def add(request: starlette.requests.Request) -> starlette.responses.Response:
        return starlette.responses.Response(2 * await request.body())

    async def let_through(_request: starlette.requests.Request) -> starlette.responses.Response:
        broken()
        raise AssertionError

    def integrity(_request: starlette.requests.Request) -> starlette.responses.Response:
        fail(engine)
        raise AssertionError

    async def answer(request: starlette.requests.Request) -> starlette.responses.Response:
        return starlette.responses.Response(status_code=request.path_params["status"])

    return Starlette(
        routes=[
            Route("/orders/{order_id}", one),
            Route("/orders", add, methods=["POST"]),
            Route("/broken", let_through),
            Route("/integrity", integrity),
            Route("/answers/{status:int}", answer),
            Mount("/tenants/{tenant}", routes=[Mount("/orders", routes=[Route("/{order_id}", one)])]),
        ]
    )


def in_flask(engine: Engine) -> flask.Flask:
    app, tenants = flask.Flask(__name__), flask.Blueprint("tenants", __name__)

    @app.get("/orders/<order_id>")
    def one(order_id: str) -> tuple[str, int]:
        return MEASURED["answer"], 200 if work(engine, order_id) else 404

    @app.post("/orders")
    def add() -> bytes:
        return 2 * flask.request.get_data()

    @app.get("/broken")
    def let_through() -> str:
        broken()
        return ""

    @app.get("/integrity")
    def integrity() -> str:
        fail(engine)
        return ""

    @app.get("/answers/<int:status>")
    def answer(status: int) -> tuple[str, int]:
        return "", status

    @tenants.get("/orders/<order_id>")
    def of_tenant(tenant: str, order_id: str) -> str:
        return tenant + order_id

    app.register_blueprint(tenants, url_prefix="/tenants/<tenant>")
    return app


FRAMEWORKS: dict[str, Callable[[Engine], Any]] = {"fastapi": in_fastapi, "starlette": in_starlette, "flask": in_flask}


def caller(app: Any) -> Calling:
    """Calls ``app`` in this process, with personal data in the headers."""
    headers = {
        "user-agent": MEASURED["agent"],
        "x-forwarded-for": MEASURED["header"],
        "cookie": f"session={MEASURED['header']}",
        "tracestate": f"vendor={MEASURED['tracestate']}",
        "baggage": f"user={MEASURED['baggage']}",
    }
    if hasattr(app, "wsgi_app"):

        def call(method: str, path: str, **options: Any) -> int:
            transport = httpx.WSGITransport(app, raise_app_exceptions=False)
            with httpx.Client(transport=transport, base_url="http://service.test", headers=headers) as client:
                return client.request(method, path, **options).status_code

        return call

    async def ask(method: str, path: str, **options: Any) -> int:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service.test", headers=headers) as client:
            return (await client.request(method, path, **options)).status_code

    return lambda method, path, **options: asyncio.run(ask(method, path, **options))
