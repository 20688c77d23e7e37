"""Enqueueing rows one by one and in bulk, in the caller's transaction and with ``put``.

Each row is built from plain values: outbox validates and encodes them, the hand-written loop encodes them with msgspec
without validation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from uuid import UUID

import msgspec
import uuid_utils
from sqlalchemy import Engine, create_engine, insert, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.figures import Run
from benchmarks.hand import Hand, by_hand
from benchmarks.places import Places, outbox_in, settings
from benchmarks.rows import AT, ONE, messages
from outbox import Outbox
from outbox.core.lane import Lane
from outbox.store.schema import LOGS

ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "mariadb": "mysql+asyncmy"}
FULL_ROWS = 200_000
BULK = {"100": (100, 2000), "1k": (1000, 3000), "10k": (10_000, 10_000)}
"""By name: rows per transaction, and rows in all in the quick profile."""


class _Row(msgspec.Struct):
    """A usage row without validation."""

    id: str
    tenant_id: str
    session_id: str
    trace_count: int
    start_insertion_time: str
    end_insertion_time: str
    start_interval_time: str
    end_interval_time: str
    status: str
    num_failed_send_attempts: int
    transaction_type: str
    organization_id: str


def _by_hand(count: int) -> list[tuple[UUID, str]]:
    encode = msgspec.json.Encoder().encode
    rows = []
    for _ in range(count):
        id = uuid_utils.uuid7()
        row = _Row(str(id), ONE, ONE, 7, AT, AT, AT, AT, "completed", 0, "longlived_traces", ONE)
        rows.append((UUID(bytes=id.bytes), encode(row).decode()))
    return rows


def run(run: Run, places: Places, databases: Sequence[str]) -> None:
    singles = 2000 if run.full else 100
    for kind in databases:
        with places.fresh(kind) as url, outbox_in(url, settings()) as box:
            with closing(by_hand(kind, url)) as hand:
                _added(run, kind, url, box, singles * 4)
                _put(run, kind, box, hand, singles)
                for name, (size, quick) in BULK.items():
                    _bulk(run, kind, box, hand, name, size, FULL_ROWS if run.full else quick)
            _async(run, kind, url, box, singles if run.full else 40)


def _added(run: Run, kind: str, url: str, box: Outbox, count: int) -> None:
    """Microseconds per row added to an open transaction: the cost that a service's request pays."""
    engine = create_engine(url)
    rows = messages(count)

    def ours() -> float:
        return _within(engine, lambda connection: [box.enqueue(connection, row) for row in rows], count)

    log = LOGS[Lane.USAGE]
    statement = insert(log)
    values = [{"id": row.id, "payload": row.payload, "size": len(row.payload)} for row in rows]

    def base() -> float:
        return _within(engine, lambda connection: [connection.execute(statement, value) for value in values], count)

    run.compare(
        f"enqueue/{kind}/added",
        f"one row into the caller's transaction, {kind}",
        ours,
        base,
        unit="us",
        better="lower",
        base_name="bare Core insert",
    )
    engine.dispose()


def _within(engine: Engine, work: Callable[..., object], count: int) -> float:
    """Microseconds per row inside one transaction, which is rolled back."""
    with engine.connect() as connection, connection.begin() as transaction:
        began = time.perf_counter()
        work(connection)
        took = time.perf_counter() - began
        transaction.rollback()
    return took / count * 1e6


def _put(run: Run, kind: str, box: Outbox, hand: Hand, count: int) -> None:
    def ours() -> float:
        rows = messages(count)
        began = time.perf_counter()
        for row in rows:
            box.put(row)
        return count / (time.perf_counter() - began)

    def base() -> float:
        rows = _by_hand(count)
        began = time.perf_counter()
        for id, payload in rows:
            hand.insert_one(id, payload)
        return count / (time.perf_counter() - began)

    run.compare(f"enqueue/{kind}/put", f"put, a row a transaction, {kind}", ours, base)


def _bulk(run: Run, kind: str, box: Outbox, hand: Hand, name: str, size: int, count: int) -> None:
    """Rows a second from plain values to the commit."""

    def ours() -> float:
        began = time.perf_counter()
        for _ in range(count // size):
            box.put(*messages(size))
        return count / (time.perf_counter() - began)

    def base() -> float:
        began = time.perf_counter()
        for _ in range(count // size):
            hand.insert(_by_hand(size))
        return count / (time.perf_counter() - began)

    run.compare(f"enqueue/{kind}/{name}", f"bulk, {name} rows a transaction, {kind}", ours, base)


def _async(run: Run, kind: str, url: str, box: Outbox, count: int) -> None:
    """One row per transaction with an asynchronous driver, compared with a plain Core insert by the same driver."""
    statement = insert(LOGS[Lane.USAGE])

    async def measure(add: Callable[..., Awaitable[object]]) -> float:
        engine = create_async_engine(make_url(url).set(drivername=ASYNC_DRIVERS[kind], query={}))
        rows = messages(count)
        async with engine.connect():
            pass  # opens the pool's first connection before the clock starts
        began = time.perf_counter()
        for row in rows:
            async with engine.begin() as connection:
                await add(connection, row)
        took = time.perf_counter() - began
        await engine.dispose()
        return count / took

    async def bare(connection: object, row: object) -> None:
        await connection.execute(statement, {"id": row.id, "payload": row.payload, "size": len(row.payload)})  # type: ignore[attr-defined]

    run.compare(
        f"enqueue/{kind}/async",
        f"a row a transaction, asynchronous, {kind}",
        lambda: asyncio.run(measure(box.enqueue_async)),
        lambda: asyncio.run(measure(bare)),
        base_name="bare Core insert",
    )
