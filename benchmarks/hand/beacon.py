"""Sending by hand: a thread that posts one batch after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from benchmarks.hand.post import HandPost


class HandSender:
    """Posts in a thread of its own while the caller works on the database. At most one request is on the wire."""

    def __init__(self, post: HandPost) -> None:
        self._post = post
        self._todo: SimpleQueue[Sequence[str] | None] = SimpleQueue()
        self._done: SimpleQueue[Exception | None] = SimpleQueue()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, payloads: Sequence[str]) -> None:
        self._todo.put(payloads)

    def wait(self) -> None:
        """Until the request on the wire was answered 200. Raises what the request raised."""
        if (error := self._done.get()) is not None:
            raise error

    def close(self) -> None:
        self._todo.put(None)
        self._thread.join()
        self._post.close()

    def _run(self) -> None:
        while (payloads := self._todo.get()) is not None:
            try:
                self._post.rows(payloads)
            except Exception as error:  # noqa: BLE001 - raised in the thread that waits
                self._done.put(error)
            else:
                self._done.put(None)


def capacity(url: str, license: str, connections: int, payloads: Sequence[str], seconds: float) -> float:
    """Rows/s that beacon takes, on each of ``connections`` one request of ``payloads`` after the other."""
    posts = [HandPost(url, license) for _ in range(connections)]
    until = time.monotonic() + seconds

    def post_all(post: HandPost) -> int:
        posted = 0
        while time.monotonic() < until:
            post.rows(payloads)
            posted += len(payloads)
        return posted

    began = time.monotonic()
    with ThreadPoolExecutor(connections) as threads:
        posted = sum(threads.map(post_all, posts))
    took = time.monotonic() - began
    for post in posts:
        post.close()
    return posted / took


class Ledger(Protocol):
    def step(self, settled: bytes | None, batch_rows: int) -> tuple[bytes, list[str]] | None: ...


def drain(ledger: Ledger, sender: HandSender, batch_rows: int) -> int:
    """Deliver all there is: while one batch is on the wire, the one before is settled and the next is leased."""
    flying, sent = None, 0
    ahead = ledger.step(None, batch_rows)
    while ahead is not None:
        key, payloads = ahead
        sender.send(payloads)
        sent += len(payloads)
        ahead = ledger.step(flying, batch_rows)
        sender.wait()
        flying = key
    ledger.step(flying, batch_rows)
    return sent
