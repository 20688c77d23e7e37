"""procrastinate on PostgreSQL, by psycopg 3. Bulk is its own: ``batch_defer``."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import peer_side
import psycopg
import psycopg_pool
from peer_side import Answer, AsyncSender, Job, Pace
from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
from procrastinate.jobs import JobDeferrer

QUEUE = "usage"
Handler = Callable[[str], Awaitable[None]]

# Tuned: pools of our own, because its own asks each connection whether it lives before each statement; autocommit,
# because each of its statements is a transaction; deferring by the synchronous driver; jobs at a time 1 = 4 = 8 < 32;
# a job deleted when done, rather than marked.
CONCURRENCY = 32
CONNECTIONS = 4


class Deferring:
    """The producing side, and the tables."""

    def __init__(self, job: Job) -> None:
        self._pool = psycopg_pool.ConnectionPool(
            job.database, min_size=1, max_size=1, kwargs={"autocommit": True}, open=True
        )
        self._app = App(connector=SyncPsycopgConnector())
        self._app.open(self._pool)
        with self._pool.connection() as connection:
            installed = connection.execute("SELECT to_regclass('procrastinate_jobs')").fetchone() != (None,)
        if not installed:
            self._app.schema_manager.apply_schema()
        self.deferrer: JobDeferrer = self._app.configure_task(QUEUE, queue=QUEUE, allow_unknown=True)

    def fill(self, chunks: list[list[str]]) -> int:
        for chunk in chunks:
            self.deferrer.batch_defer(*[{"payload": payload} for payload in chunk])
        return sum(map(len, chunks))

    def close(self) -> None:
        self._app.close()
        self._pool.close()


def enqueue(job: Job) -> Answer:
    defer, payloads = Deferring(job).deferrer.defer, job.payloads()
    began = time.perf_counter()
    for payload in payloads:
        defer(payload=payload)
    return peer_side.took(len(payloads), began)


def bulk(job: Job) -> Answer:
    side, chunks = Deferring(job), job.chunks()
    began = time.perf_counter()
    return peer_side.took(side.fill(chunks), began)


async def drain(job: Job) -> Answer:
    async def nothing(payload: str) -> None:
        pass

    return await _drain(job, nothing)


async def post(job: Job) -> Answer:
    return await _drain(job, await _poster(job))


def produce(job: Job) -> Answer:
    defer, committed = Deferring(job).deferrer.defer, []
    pace = Pace(job.rate)
    for payload in job.payloads():
        time.sleep(pace.left())
        defer(payload=payload)
        committed.append(time.time())
    return {"committed": committed}


async def work(job: Job) -> Answer:
    """Woken by NOTIFY."""
    app = _working(await _poster(job))
    async with _pool(job) as pool, app.open_async(pool):
        peer_side.at_work()
        await app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False)
    return {}


async def _poster(job: Job) -> Handler:
    sender = await AsyncSender(job).open(CONNECTIONS)

    async def send(payload: str) -> None:
        await sender.post([payload.encode()])

    return send


def _working(handler: Handler) -> App:
    app = App(connector=PsycopgConnector())
    app.task(name=QUEUE, queue=QUEUE)(handler)
    return app


def _pool(job: Job) -> psycopg_pool.AsyncConnectionPool:
    return psycopg_pool.AsyncConnectionPool(
        job.database, min_size=CONNECTIONS, max_size=CONNECTIONS, configure=_autocommit, open=False
    )


async def _autocommit(connection: psycopg.AsyncConnection) -> None:
    await connection.set_autocommit(True)


async def _drain(job: Job, handler: Handler) -> Answer:
    filling = Deferring(job)
    rows = filling.fill(job.chunks())
    filling.close()
    app = _working(handler)
    async with _pool(job) as pool, app.open_async(pool):
        async with pool.connection() as connection:
            await connection.execute("ANALYZE procrastinate_jobs")
        began = time.perf_counter()
        await app.run_worker_async(
            concurrency=CONCURRENCY,
            wait=False,
            listen_notify=False,
            install_signal_handlers=False,
            delete_jobs="successful" if job.delete else "never",
        )
        return peer_side.took(rows, began)


if __name__ == "__main__":
    peer_side.main({"enqueue": enqueue, "bulk": bulk, "drain": drain, "post": post, "produce": produce, "work": work})
