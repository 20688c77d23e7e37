"""Inserting, delivering and purging at the same time: the regular load of a service and its worker, without pauses.

A producer in a process of its own commits 1,000 rows at a time as fast as it can, while the worker of this process
delivers and purges. There is no HTTP: the transport answers at once, so that only the database is measured. Time runs
from the first insert to the purge of the last row.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

from benchmarks.checks import require
from benchmarks.children import Child
from benchmarks.figures import Run
from benchmarks.hand import by_hand
from benchmarks.places import Places, fill, outbox_in, settings
from benchmarks.records import quantile
from benchmarks.rows import messages, prepared
from outbox import Dispatcher, Outbox, Receipt, Verdict
from outbox.core.batch import Batch
from outbox.core.lane import Lane
from outbox.core.policy import Retention

QUICK_ROWS = {"sqlite": 20_000, "postgresql": 20_000, "mariadb": 6_000}
QUICK_PURGED_ROWS = {"sqlite": 10_000, "postgresql": 10_000, "mariadb": 4_000}
ALONE_SECONDS = 0.2
TURN_SECONDS = {"sqlite": 0.001}
"""A pause of the hand-written loop after each transaction, where there is one writer at a time: it leaves the lock to
the inserter, as ours does. A loop that takes it again at once starves the inserter or not, as chance has it."""
COMMIT_ROWS = 1000
BATCH_ROWS = 1000
SMALL_BATCHES, SMALL_BATCH_ROWS = 1000, 2
AT_ONCE = Retention(sent_seconds=0, receipts_seconds=3600, max_bytes=2**60, at_least_seconds=0)


class Swallow:
    """A transport that accepts every row at once and sends nothing."""

    def send(self, batch: Batch) -> Receipt:
        return Receipt(Verdict.DELIVERED, counted=False, reason="taken", status=200, inserted_count=batch.rows)


def run(run: Run, places: Places, databases: Sequence[str]) -> None:
    with closing(Child("benchmarks.steady")) as other:
        for kind in databases:
            count, purged = (1_000_000, 1_000_000) if run.full else (QUICK_ROWS[kind], QUICK_PURGED_ROWS[kind])
            run.compare(
                f"steady/{kind}",
                f"insert + drain + purge at once, {kind}, no HTTP",
                lambda kind=kind, count=count: _ours(places, other, kind, count),  # type: ignore[misc]
                lambda kind=kind, count=count: _hand(places, other, kind, count),  # type: ignore[misc]
                rounds=5 if not run.full else 3,
            )
            _beside_a_purge(run, places, other, kind, purged, BATCH_ROWS)
            if kind == "sqlite" and run.full:  # SQLite has one writer at a time, so a purge may block a put
                _beside_a_purge(run, places, other, kind, SMALL_BATCHES * SMALL_BATCH_ROWS, SMALL_BATCH_ROWS)


def _ours(places: Places, other: Child, kind: str, count: int) -> float:
    with places.fresh(kind) as url, outbox_in(url, settings()) as box:
        dispatcher = Dispatcher(box, Swallow(), lanes=[Lane.USAGE])
        with _meanwhile(other, "insert", kind, url, count):
            began = time.perf_counter()
            sent = deleted = 0
            while deleted < count:
                other.require_alive()
                sent += dispatcher.run_lane(Lane.USAGE).sent
                deleted += box.store.purge(Lane.USAGE, AT_ONCE)
            took = time.perf_counter() - began
        dispatcher.close()
        require(sent == count, f"{sent} of {count} rows were sent")
    return count / took


def _hand(places: Places, other: Child, kind: str, count: int) -> float:
    with (
        places.fresh(kind) as url,
        closing(by_hand(kind, url)) as hand,
        _meanwhile(other, "insert-by-hand", kind, url, count),
    ):
        began = time.perf_counter()
        deleted, settled = 0, None
        rest = partial(time.sleep, TURN_SECONDS[kind]) if kind in TURN_SECONDS else _go_on
        while deleted < count:
            other.require_alive()
            step = hand.step(settled, BATCH_ROWS)
            settled = step[0] if step else None
            rest()
            deleted += hand.purge()
            rest()
        took = time.perf_counter() - began
    return count / took


def _go_on() -> None:
    """The servers let others write meanwhile."""


def _beside_a_purge(run: Run, places: Places, other: Child, kind: str, count: int, batch_rows: int) -> None:
    """The p99 of a put in milliseconds while another process purges delivered rows."""
    with places.fresh(kind) as url, outbox_in(url, settings(batch_max_rows=batch_rows)) as box:

        def beside() -> float:
            fill(box, count)
            dispatcher = Dispatcher(box, Swallow(), lanes=[Lane.USAGE])
            dispatcher.run_lane(Lane.USAGE)
            dispatcher.close()
            with _meanwhile(other, "purge", kind, url, count) as over:
                return _p99_of_puts(box, over)

        def alone() -> float:
            deadline = time.monotonic() + ALONE_SECONDS
            return _p99_of_puts(box, lambda: time.monotonic() > deadline)

        small = batch_rows < BATCH_ROWS
        title = f"put while a purge deletes {count:,} rows, p99, {kind}" + f", {batch_rows} a batch" * small
        run.compare(
            f"steady/{kind}/put-p99" + "-small" * small,
            title,
            beside,
            alone,
            unit="ms",
            better="lower",
            base_name="no purge",
        )


def _p99_of_puts(box: Outbox, over: Callable[[], bool]) -> float:
    times: list[float] = []
    while not over():
        (row,) = messages(1)
        began = time.perf_counter()
        box.put(row)
        times.append((time.perf_counter() - began) * 1000)
    return quantile(times, 0.99)


@contextmanager
def _meanwhile(other: Child, what: str, kind: str, url: str, count: int) -> Iterator[Callable[[], bool]]:
    """Meanwhile the other process inserts or purges ``count`` rows. Yields a function that says if it has ended."""
    other.say(f"{what} {kind} {url} {count}")
    other.expect("ready")
    other.say("go")
    yield other.has_output
    other.expect("done")


Work = Callable[[], object]


@contextmanager
def _inserting_by_hand(kind: str, url: str, count: int) -> Iterator[Work]:
    with closing(by_hand(kind, url, create=False)) as hand:

        def work() -> None:
            for _ in range(count // COMMIT_ROWS):
                hand.insert(prepared(COMMIT_ROWS))

        yield work


@contextmanager
def _inserting(_kind: str, url: str, count: int) -> Iterator[Work]:
    with Outbox(url, settings=settings()) as box:
        yield lambda: fill(box, count, COMMIT_ROWS)


@contextmanager
def _purging(_kind: str, url: str, _count: int) -> Iterator[Work]:
    with Outbox(url, settings=settings()) as box:
        yield lambda: box.store.purge(Lane.USAGE, AT_ONCE)


_WORK = {"insert": _inserting, "insert-by-hand": _inserting_by_hand, "purge": _purging}


def main() -> None:
    """The other process: each line of stdin names a job, which starts at the line after it."""
    for line in sys.stdin:
        what, kind, url, count = line.split()
        with _WORK[what](kind, url, int(count)) as work:
            print("ready", flush=True)
            sys.stdin.readline()
            work()
        print("done", flush=True)


if __name__ == "__main__":
    main()
