"""persist-queue: its SQLite FIFO queue, WAL and synchronous FULL. It commits each put, so it has no bulk."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import peer_side
from peer_side import Answer, Job, Pace, Sender
from persistqueue import Empty, FIFOSQLiteQueue

# Tuned: the FIFO queue, whose task_done deletes all rows taken since the last one in one commit, at 1000 rows a
# commit (100 < 1000 = 5000): still at least once. The queue with acks commits each get and each ack. Threads that post
# 1 < 2 < 4.
COMMIT_ROWS = 1000
THREADS = 4
POLL_SECONDS = 0.001


def queue_in(job: Job) -> FIFOSQLiteQueue:
    queue = FIFOSQLiteQueue(job.database, multithreading=True, auto_commit=False, timeout=30)
    # It leaves synchronous to the build of SQLite. FULL as ours; there is no option for it.
    for connection in {queue._getter, queue._putter}:
        connection.execute("PRAGMA synchronous=FULL")
    return queue


def enqueue(job: Job) -> Answer:
    queue = queue_in(job)
    payloads = job.payloads()
    began = time.perf_counter()
    for payload in payloads:
        queue.put(payload)
    return peer_side.took(len(payloads), began)


def drain(job: Job) -> Answer:
    return _drain(job, None)


def post(job: Job) -> Answer:
    return _drain(job, Posters(job, THREADS))


def coalesced(job: Job) -> Answer:
    """All rows of a commit in one request."""
    return _drain(job, Sender(job))


def produce(job: Job) -> Answer:
    queue = queue_in(job)
    pace, committed = Pace(job.rate), []
    for payload in job.payloads():
        time.sleep(pace.left())
        queue.put(payload)
        committed.append(time.time())
    return {"committed": committed}


def work(job: Job) -> Answer:
    """Nothing wakes it in another process: it polls, each millisecond."""
    queue, sender = queue_in(job), Sender(job)
    peer_side.at_work()
    while True:
        taken = _take(queue, COMMIT_ROWS)
        if not taken:
            time.sleep(POLL_SECONDS)
        for payload in taken:
            sender.post([payload])
        if taken:
            queue.task_done()


class Posters:
    """Threads that share a batch, each with a connection of its own."""

    def __init__(self, job: Job, threads: int) -> None:
        self._local = threading.local()
        self._job = job
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, initializer=self._connect)

    def post(self, payloads: Sequence[str]) -> None:
        list(self._pool.map(self._post, [payloads[n :: self._threads] for n in range(self._threads)]))

    def _connect(self) -> None:
        self._local.sender = Sender(self._job)

    def _post(self, payloads: Sequence[str]) -> None:
        for payload in payloads:
            self._local.sender.post([payload])


def _drain(job: Job, posters: Posters | Sender | None) -> Answer:
    queue, payloads = queue_in(job), job.payloads()
    for payload in payloads:
        queue.put(payload)
    began = time.perf_counter()
    done = 0
    while taken := _take(queue, COMMIT_ROWS):
        if posters is not None:
            posters.post(taken)
        queue.task_done()
        done += len(taken)
    answer = peer_side.took(len(payloads), began)
    peer_side.require(done == len(payloads), f"{done} of {len(payloads)} rows were taken")
    return answer


def _take(queue: FIFOSQLiteQueue, rows: int) -> list[str]:
    taken: list[str] = []
    try:
        while len(taken) < rows:
            taken.append(queue.get(block=False))
    except Empty:
        pass
    return taken


if __name__ == "__main__":
    peer_side.main(
        {"enqueue": enqueue, "drain": drain, "post": post, "coalesced": coalesced, "produce": produce, "work": work}
    )
