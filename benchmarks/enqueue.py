"""Enqueueing rows one by one and in bulk, in the caller's transaction and with ``put``.

Bulk figures include building each row from plain values: outbox validates and encodes them, the hand-written loop
encodes them with msgspec without validation. Figures of single rows and asynchronous ones do not: there the rows are
built before the clock starts, on both sides, so that what is compared is the way into the database.
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
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.figures import ROUNDS, Run
from benchmarks.hand import Hand, by_hand
from benchmarks.places import Places, outbox_in, settings
from benchmarks.rows import AT, ONE, messages
from outbox import Outbox, UsageInterval
from outbox.core.lane import Lane
from outbox.store.schema import LOGS

ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "mariadb": "mysql+asyncmy"}
FULL_ROWS = 200_000
FULL_SINGLES = 2000
QUICK_SINGLES = {"added": 400, "put": 400, "async": 150}
"""Rows of a round. The full profile adds four times ``FULL_SINGLES`` rows to the caller's transaction."""
ASYNC_ROUNDS, ASYNC_BULK_ROWS = 3, 1000
BULK = {"100": (100, 2000), "1k": (1000, 3000), "10k": (10_000, 10_000)}
"""By name: rows per transaction, and rows in all in the quick profile."""

Add = Callable[[AsyncEngine, Sequence[UsageInterval]], Awaitable[object]]
"""Commits the rows in one transaction."""


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
    singles = QUICK_SINGLES if not run.full else QUICK_SINGLES | dict.fromkeys(("put", "async"), FULL_SINGLES)
    added = 4 * FULL_SINGLES if run.full else QUICK_SINGLES["added"]
    for kind in databases:
        with places.fresh(kind) as url, outbox_in(url, settings()) as box:
            with closing(by_hand(kind, url)) as hand:
                _added(run, kind, url, box, added)
                _put(run, kind, box, hand, singles["put"])
                for name, (size, quick) in BULK.items():
                    _bulk(run, kind, box, hand, name, size, FULL_ROWS if run.full else quick)
            Async(run, kind, url, box).all(singles["async"], FULL_ROWS // 4 if run.full else 2 * ASYNC_BULK_ROWS)


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


class Async:
    """With an asynchronous driver, compared with a plain Core insert by the same driver."""

    def __init__(self, run: Run, kind: str, url: str, box: Outbox) -> None:
        self._run, self._kind, self._box = run, kind, box
        self._url = make_url(url).set(drivername=ASYNC_DRIVERS[kind], query={})
        self._statement = insert(LOGS[Lane.USAGE])

    def all(self, singles: int, bulk: int) -> None:
        one = "a row a transaction"
        self._compare("async", f"{one}, asynchronous", singles, 1, self._enqueue)
        self._compare("put-async", f"put_async, {one}", singles, 1, self._put)
        bulk_title = "bulk, 1k rows a transaction, asynchronous"
        self._compare("async-1k", bulk_title, bulk, ASYNC_BULK_ROWS, self._enqueue_many)

    def _compare(self, name: str, title: str, count: int, size: int, ours: Add) -> None:
        self._run.compare(
            f"enqueue/{self._kind}/{name}",
            f"{title}, {self._kind}",
            lambda: asyncio.run(self._measure(ours, count, size)),
            lambda: asyncio.run(self._measure(self._bare, count, size)),
            base_name="bare Core insert",
            rounds=ROUNDS if self._run.full else ASYNC_ROUNDS,
        )

    async def _measure(self, add: Add, count: int, size: int) -> float:
        """Rows a second, from the rows to the commit of the last transaction."""
        engine = create_async_engine(self._url)
        chunks = [messages(size) for _ in range(count // size)]
        async with engine.connect():
            pass  # opens the pool's first connection before the clock starts
        began = time.perf_counter()
        for rows in chunks:
            await add(engine, rows)
        took = time.perf_counter() - began
        await engine.dispose()
        return len(chunks) * size / took

    async def _enqueue(self, engine: AsyncEngine, rows: Sequence[UsageInterval]) -> None:
        async with engine.begin() as connection:
            await self._box.enqueue_async(connection, *rows)

    async def _enqueue_many(self, engine: AsyncEngine, rows: Sequence[UsageInterval]) -> None:
        async with engine.begin() as connection:
            await self._box.enqueue_many_async(connection, rows)

    async def _put(self, _engine: AsyncEngine, rows: Sequence[UsageInterval]) -> None:
        """In a thread, by the synchronous driver: that is what ``put_async`` does."""
        await self._box.put_async(*rows)

    async def _bare(self, engine: AsyncEngine, rows: Sequence[UsageInterval]) -> None:
        values = [{"id": row.id, "payload": row.payload, "size": len(row.payload)} for row in rows]
        async with engine.begin() as connection:
            await connection.execute(self._statement, values if len(values) > 1 else values[0])
