"""PgQueuer on PostgreSQL, by asyncpg. Bulk is its own: one ``enqueue`` of lists."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import peer_side
from peer_side import Answer, AsyncSender, Coalescing, Job, Pace
from pgqueuer.models import Job as Row
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries

ENTRYPOINT = "usage"
Handler = Callable[[Row], Awaitable[None]]

# Tuned: rows of a dequeue (and so of a write of its log) 100 < 500 < 1000, coalesced 500 = 1000 > 2000; one connection
# as fast as a pool of three; connections to beacon 8 >= 16, 32, coalesced 1 = 2 = 4. A worker that waits for rows takes
# few at a time, and looks again at once.
BATCH_ROWS = 1000
CONNECTIONS, COALESCING_CONNECTIONS = 8, 2
WAITING_BATCH_ROWS = 10
AT_ONCE = timedelta(milliseconds=1)


async def queries_in(job: Job) -> Settled:
    queries = Settled.from_asyncpg_connection(await asyncpg.connect(job.database))
    assert isinstance(queries, Settled)
    if not await queries.schema_is_installed():
        await queries.install()
    return queries


async def enqueue(job: Job) -> Answer:
    queries, payloads = await queries_in(job), job.payloads()
    began = time.perf_counter()
    for payload in payloads:
        await queries.enqueue(ENTRYPOINT, payload.encode())
    return peer_side.took(len(payloads), began)


async def bulk(job: Job) -> Answer:
    queries, chunks = await queries_in(job), job.chunks()
    began = time.perf_counter()
    return peer_side.took(await _fill(queries, chunks), began)


async def drain(job: Job) -> Answer:
    async def nothing(_row: Row) -> None:
        pass

    return await _drain(job, nothing)


async def post(job: Job) -> Answer:
    return await _drain(job, await _poster(job))


async def coalesced(job: Job) -> Answer:
    coalescing = Coalescing(await AsyncSender(job).open(COALESCING_CONNECTIONS))

    async def send(row: Row) -> None:
        await coalescing.post(row.payload or b"")

    return await _drain(job, send)


async def produce(job: Job) -> Answer:
    queries, committed = await queries_in(job), []
    pace = Pace(job.rate)
    for payload in job.payloads():
        await asyncio.sleep(pace.left())
        await queries.enqueue(ENTRYPOINT, payload.encode())
        committed.append(time.time())
    return {"committed": committed}


async def work(job: Job) -> Answer:
    """Woken by NOTIFY."""
    manager = QueueManager(await queries_in(job))
    manager.min_dequeue_poll_interval = AT_ONCE
    manager.entrypoint(ENTRYPOINT)(await _poster(job))
    peer_side.at_work()
    await manager.run(batch_size=WAITING_BATCH_ROWS)
    return {}


class Settled(Queries):
    """Notes when the last row was settled: the manager looks for more before it ends."""

    expected = 0
    rows = 0
    at = 0.0
    all: asyncio.Event

    async def log_jobs(self, job_status: list[Any]) -> None:
        await super().log_jobs(job_status)
        self.rows += len(job_status)
        if self.rows == self.expected:
            self.at = time.perf_counter()
            self.all.set()


async def _poster(job: Job) -> Handler:
    sender = await AsyncSender(job).open(CONNECTIONS)

    async def send(row: Row) -> None:
        await sender.post([row.payload or b""])

    return send


async def _fill(queries: Queries, chunks: list[list[str]]) -> int:
    for chunk in chunks:
        size = len(chunk)
        await queries.enqueue([ENTRYPOINT] * size, [payload.encode() for payload in chunk], [0] * size)
    return sum(map(len, chunks))


async def _drain(job: Job, handler: Handler) -> Answer:
    queries = await queries_in(job)
    queries.all = asyncio.Event()
    queries.expected = await _fill(queries, job.chunks())
    await queries.driver.execute("ANALYZE pgqueuer")
    manager = QueueManager(queries)
    manager.entrypoint(ENTRYPOINT)(handler)
    began = time.perf_counter()
    running = asyncio.create_task(manager.run(batch_size=BATCH_ROWS, log_aggregation_interval=timedelta(0)))
    await queries.all.wait()
    manager.shutdown.set()
    await running
    return {"rows": queries.rows, "seconds": queries.at - began}


if __name__ == "__main__":
    peer_side.main(
        {
            "enqueue": enqueue,
            "bulk": bulk,
            "drain": drain,
            "post": post,
            "coalesced": coalesced,
            "produce": produce,
            "work": work,
        }
    )
