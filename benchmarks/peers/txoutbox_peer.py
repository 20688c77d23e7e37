"""txoutbox on PostgreSQL, by asyncpg. It has no batching API: bulk is ``insert`` a thousand times a transaction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import peer_side
from peer_side import Answer, AsyncSender, Coalescing, Job, Pace
from txoutbox import OutboxMessage, Relay, RelayConfig
from txoutbox.adapters.postgres import PostgresStorage

TOPIC = "usage"
CHANNEL = "outbox_rows"
Publish = Callable[[OutboxMessage], Awaitable[None]]

# Tuned: rows of a claim 500 < 1000 = 2000, all published at once, without a timer for each; no strict ordering, whose
# lock is for keys and there are none; rows deleted when delivered (marked: 0.75 of that); relays that take turns at the
# database 1 < 2 > 3, with coalescing 1 < 2 < 3; connections to beacon 8 = 16 < 32 = 64.
BATCH_ROWS = 1000
CONFIG = RelayConfig(batch_size=BATCH_ROWS, concurrency=BATCH_ROWS, publish_timeout=None)
RELAYS, COALESCING_RELAYS = 2, 3
CONNECTIONS = 32
POOL = COALESCING_RELAYS + 1


async def storage_in(job: Job) -> PostgresStorage:
    """With NOTIFY for each row in every column: the wait of its rows is measured with the same tables."""
    storage: PostgresStorage = await PostgresStorage.connect(
        job.database,
        min_size=POOL,
        max_size=POOL,
        strict_ordering=False,
        delete_on_ack=job.delete,
        notify_channel=CHANNEL,
    )
    await storage.create_schema()
    return storage


async def enqueue(job: Job) -> Answer:
    storage = await storage_in(job)
    payloads = job.payloads()
    async with storage.pool.acquire() as connection:
        began = time.perf_counter()
        for payload in payloads:
            await storage.insert(connection, TOPIC, payload)
        return peer_side.took(len(payloads), began)


async def bulk(job: Job) -> Answer:
    storage = await storage_in(job)
    chunks = list(job.chunks())
    async with storage.pool.acquire() as connection:
        began = time.perf_counter()
        for chunk in chunks:
            async with connection.transaction():
                for payload in chunk:
                    await storage.insert(connection, TOPIC, payload)
        return peer_side.took(sum(map(len, chunks)), began)


async def drain(job: Job) -> Answer:
    async def nothing(_message: OutboxMessage) -> None:
        pass

    return await _drain(job, [nothing] * RELAYS)


async def post(job: Job) -> Answer:
    return await _drain(job, [await _poster(job)] * RELAYS)


async def coalesced(job: Job) -> Answer:
    sender = await AsyncSender(job).open(COALESCING_RELAYS)
    return await _drain(job, [_publish_by(Coalescing(sender)) for _ in range(COALESCING_RELAYS)])


async def produce(job: Job) -> Answer:
    storage = await storage_in(job)
    pace, committed = Pace(job.rate), []
    async with storage.pool.acquire() as connection:
        for payload in job.payloads():
            await asyncio.sleep(pace.left())
            await storage.insert(connection, TOPIC, payload)
            committed.append(time.time())
    return {"committed": committed}


async def work(job: Job) -> Answer:
    """Woken by NOTIFY."""
    storage = await storage_in(job)
    relay = Relay(storage, await _poster(job), config=CONFIG)
    await storage.listen(relay.wake)
    peer_side.at_work()
    await relay.run()
    return {}


async def _poster(job: Job) -> Publish:
    sender = await AsyncSender(job).open(CONNECTIONS)

    async def publish(message: OutboxMessage) -> None:
        await sender.post([message.payload])

    return publish


def _publish_by(coalescing: Coalescing) -> Publish:
    async def publish(message: OutboxMessage) -> None:
        await coalescing.post(message.payload)

    return publish


async def _drain(job: Job, publishers: list[Publish]) -> Answer:
    """A relay for each publisher, until each finds nothing."""
    storage = await storage_in(job)
    payloads = job.payloads()
    records = [(TOPIC, payload.encode()) for payload in payloads]
    await storage.pool.copy_records_to_table("outbox", records=records, columns=["topic", "payload"])
    await storage.pool.execute("ANALYZE outbox")

    async def run(relay: Relay) -> int:
        delivered = 0
        while (done := await relay.run_once()).claimed:
            delivered += done.published
        return delivered

    relays = [Relay(storage, publish, config=CONFIG) for publish in publishers]
    began = time.perf_counter()
    delivered = sum(await asyncio.gather(*map(run, relays)))
    answer = peer_side.took(len(payloads), began)
    peer_side.require(delivered == len(payloads), f"{delivered} of {len(payloads)} rows were delivered")
    return answer


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
