"""An instrumented shop: FastAPI, SQLAlchemy and SQLite, with the outbox in a database file of its own.

    python -m examples.service [port]

Beacon gets the number of requests, the durations of requests and SQL statements, and the traces of slow or failed
requests. It never gets personal data, although the paths, the SQL and the errors below contain customers and items.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from sqlalchemy import Engine, create_engine, text

from outbox import BeaconTransport, Outbox, Worker
from outbox.otel import instrument

SLOW_SECONDS = 0.3
"""A request that takes longer counts as slow."""


def make_app(engine: Engine, box: Outbox) -> FastAPI:
    """The shop, with its telemetry in ``box``. With ``SHOP_WORKER=0`` in the environment it starts no worker: an
    ``outbox worker`` process must send."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as stack:
            if os.environ.get("SHOP_WORKER") != "0":
                stack.enter_context(Worker(box, BeaconTransport(box.settings)))
            stack.callback(instruments.shutdown)
            yield

    app = FastAPI(lifespan=lifespan)
    instruments = instrument(app, box=box, engine=engine, service_name="shop", threshold=SLOW_SECONDS)

    @app.post("/customers/{customer}/orders", status_code=201)
    def order(customer: str, item: str) -> dict[str, int]:
        with engine.begin() as connection:
            insert = text("INSERT INTO orders (customer, item) VALUES (:customer, :item) RETURNING id")
            return {"id": connection.execute(insert, {"customer": customer, "item": item}).scalar_one()}

    @app.get("/customers/{customer}/orders")
    def orders(customer: str) -> list[str]:
        with engine.connect() as connection:
            select = text("SELECT item FROM orders WHERE customer = :customer ORDER BY id DESC LIMIT 10")
            return list(connection.execute(select, {"customer": customer}).scalars())

    @app.get("/customers/{customer}/advice")
    def advice(customer: str) -> list[str]:
        """A slow request: it sleeps for 1.5 times ``SLOW_SECONDS``."""
        bought = orders(customer)
        with instruments.step("think"):
            time.sleep(1.5 * SLOW_SECONDS)
        return bought[:1]

    @app.post("/customers/{customer}/refund")
    def refund(customer: str) -> None:
        """A request that fails: the table does not exist, and the error's text contains the customer."""
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO refunds (customer) VALUES (:customer)"), {"customer": customer})

    @app.get("/telemetry")
    def telemetry() -> dict[str, Any]:
        """The numbers of traces kept and dropped since the start, and of telemetry entries that are not sent yet."""
        if instruments.selection is None:
            raise HTTPException(404, "traces are switched off")
        instruments.flush()
        lane = box.status().lanes["traces"]
        waiting = lane.pending + lane.in_flight + lane.waiting
        return {"kept": instruments.selection.kept, "dropped": instruments.selection.dropped, "waiting": waiting}

    return app


def open_shop(url: str = "sqlite:///shop.db") -> Engine:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("PRAGMA journal_mode = WAL"))
        connection.execute(text("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, customer TEXT, item TEXT)"))
    return engine


def serve(box: Outbox, port: int = 8000) -> None:
    box.migrate()
    uvicorn.run(make_app(open_shop(), box), port=port, log_level="warning")


if __name__ == "__main__":
    serve(Outbox(), *map(int, sys.argv[1:]))
