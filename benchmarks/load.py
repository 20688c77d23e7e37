"""A producer at a fixed rate, in a process of its own: ``python -m benchmarks.load`` (see ``benchmarks.children``).

    stdin   "2000 10"   commit 10 rows at a time at 2000 rows/s, until the next line
            "0 0"       pause
            EOF         exit
    stdout  "ready", then "resting N" at each pause: rows committed so far

Every commit is recorded (``benchmarks.records``): its ids, the time at which COMMIT returned, and its latency for the
caller. Where another process delivers for outbox, that time is when ``put()`` returned: see ``benchmarks.latency``.

No scheduled commit is skipped: after a stall the overdue ones follow at once, and the latency of each includes its
delay by the commits before it. Otherwise a stall of one second would count as a single slow commit among many
(coordinated omission).
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from uuid import UUID

from benchmarks.hand.live import HandProducer, delivering
from benchmarks.known import DEFAULTS, LICENSE
from benchmarks.records import pack
from benchmarks.rows import messages, prepared

Commit = Callable[[int], tuple[Sequence[UUID], float]]
"""Commits that many rows. Returns their ids, and the epoch seconds right after COMMIT, before a worker is woken."""
Order = tuple[float, int]
"""Rows a second, and rows per commit."""


def main() -> None:
    given = _arguments()
    with given.record.open("wb", buffering=0) as record, _HOW[given.how](given) as commit:
        producer = Producer(commit, record)
        gc.collect()
        gc.freeze()
        print("ready", flush=True)
        producer.follow(_orders())


class Producer:
    def __init__(self, commit: Commit, record: FileIO) -> None:
        self._commit = commit
        self._record = record
        ids, _ = commit(1)  # warm-up: opens connections and imports modules; the row is delivered, but not recorded
        self._rows = len(ids)

    def follow(self, orders: SimpleQueue[Order | None]) -> None:
        while (order := orders.get()) is not None:
            rate, rows = order
            if rate:
                self._beat(rows, rows / rate, orders)
            else:
                print(f"resting {self._rows}", flush=True)

    def _beat(self, rows: int, interval: float, orders: SimpleQueue[Order | None]) -> None:
        due = free = time.perf_counter()
        while orders.empty():
            pause = due - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            # A delay by the commit before counts as latency; one by this process's own sleep does not.
            began = due if free > due else time.perf_counter()
            ids, committed = self._commit(rows)
            free = time.perf_counter()
            self._record.write(b"".join([pack(id, committed, free - began) for id in ids]))
            self._rows += len(ids)
            due += interval


@contextmanager
def _with_outbox(given: argparse.Namespace) -> Iterator[Commit]:
    """Commit with ``Outbox.put``; with ``--beacon`` a Worker delivers in this process."""
    from outbox import BeaconTransport, Outbox, Settings, Worker  # slow to import, and not needed with --how hand

    wire = {"beacon_url": given.beacon, "license_key": LICENSE} if given.beacon else {}
    woken: list[float] = []
    with Outbox(given.database, settings=Settings(DEFAULTS, **wire)) as box:

        def commit(rows: int) -> tuple[Sequence[UUID], float]:
            made = messages(rows)
            woken.clear()
            box.put(*made)
            return [message.id for message in made], woken[0] if woken else time.time()

        if not given.beacon:
            yield commit
            return
        # Registered before the worker, so that this listener runs first. Without a worker in this process there must be
        # no listener: only then does the outbox notify other processes.
        box.wake.listen(lambda *_: woken.append(time.time()))
        with BeaconTransport(box.settings) as transport, Worker(box, transport):
            yield commit


@contextmanager
def _by_hand(given: argparse.Namespace) -> Iterator[Commit]:
    """INSERT with the raw driver; with ``--beacon`` the hand-written loop delivers in this process."""
    if given.beacon:
        with delivering(given.kind, given.database, given.beacon, inside=True) as tell:
            yield from _inserting(given, tell, notify=False)
    else:
        yield from _inserting(given, lambda: None, notify=True)


def _inserting(given: argparse.Namespace, tell: Callable[[], None], *, notify: bool) -> Iterator[Commit]:
    producer = HandProducer(given.kind, given.database, notify=notify)

    def commit(rows: int) -> tuple[Sequence[UUID], float]:
        made = prepared(rows)
        producer.insert(made)
        committed = time.time()
        tell()
        return [id for id, _ in made], committed

    try:
        yield commit
    finally:
        producer.close()


_HOW: dict[str, Callable[[argparse.Namespace], AbstractContextManager[Commit]]] = {
    "outbox": _with_outbox,
    "hand": _by_hand,
}


def _orders() -> SimpleQueue[Order | None]:
    """A queue of the orders read from stdin, with None at the end of stdin."""
    orders: SimpleQueue[Order | None] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            rate, rows = line.split()
            orders.put((float(rate), int(rows)))
        orders.put(None)

    Thread(target=read, daemon=True).start()
    return orders


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", required=True, help="of database")
    parser.add_argument("--database", required=True, help="URL")
    parser.add_argument("--how", choices=_HOW, required=True)
    parser.add_argument("--record", type=Path, required=True, help="file of commits")
    parser.add_argument("--beacon", default="", help="URL; deliver in this process too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
