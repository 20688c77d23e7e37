"""SqliteHuey in a file, fsync on. It has no bulk, and takes a row out of its table before the handler runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import peer_side
from huey import SqliteHuey
from huey.api import TaskWrapper
from peer_side import Answer, Job, Pace, Sender

Handler = Callable[[str], None]

# Tuned: threads 1 = 2 = 4 when nothing is done with a row, 1 < 2 < 4 = 8 when it is posted.
THREADS = 1
POSTING_THREADS = 4
POLL_SECONDS = 0.001


def task_in(job: Job, handler: Handler | None = None) -> TaskWrapper:
    # fsync: PRAGMA synchronous=FULL, as ours. No results are kept: the handler has none.
    huey = SqliteHuey("usage", filename=f"{job.database}/huey.db", fsync=True, results=False, timeout=30)

    def usage(payload: str) -> None:
        if handler is not None:
            handler(payload)

    return huey.task()(usage)


def enqueue(job: Job) -> Answer:
    task = task_in(job)
    payloads = job.payloads()
    began = time.perf_counter()
    for payload in payloads:
        task(payload)
    return peer_side.took(len(payloads), began)


def drain(job: Job) -> Answer:
    return _drain(task_in(job), job, THREADS)


def post(job: Job) -> Answer:
    return _drain(task_in(job, _poster(job)), job, POSTING_THREADS)


def produce(job: Job) -> Answer:
    task = task_in(job)
    pace, committed = Pace(job.rate), []
    for payload in job.payloads():
        time.sleep(pace.left())
        task(payload)
        committed.append(time.time())
    return {"committed": committed}


def work(job: Job) -> Answer:
    """Nothing wakes it in another process: it polls, each millisecond at most."""
    task = task_in(job, _poster(job))
    consumer = task.huey.create_consumer(
        workers=1, periodic=False, initial_delay=POLL_SECONDS, max_delay=POLL_SECONDS, backoff=1.0
    )
    consumer.start()
    peer_side.at_work()
    threading.Event().wait()
    return {}


def _poster(job: Job) -> Handler:
    """A connection for each thread."""
    local = threading.local()

    def send(payload: str) -> None:
        if not hasattr(local, "sender"):
            local.sender = Sender(job)
        local.sender.post([payload])

    return send


def _drain(task: TaskWrapper, job: Job, threads: int) -> Answer:
    """The loop of its worker, without the sleep when nothing is found."""
    huey, payloads = task.huey, job.payloads()
    for payload in payloads:
        task(payload)

    def run() -> None:
        while (found := huey.dequeue()) is not None:
            huey.execute(found)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return peer_side.took(len(payloads), began)


if __name__ == "__main__":
    peer_side.main({"enqueue": enqueue, "drain": drain, "post": post, "produce": produce, "work": work})
