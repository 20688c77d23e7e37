"""Delivering a backlog that is committed already: batches leased, posted over HTTP, settled.

The worker is a Dispatcher in this process, the beacon a simulator in another; nobody else works. Time runs from the
first claim to the last settle, and the beacon's own record must have each row once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from benchmarks.figures import Run
from benchmarks.hand import by_hand
from benchmarks.hand.beacon import HandSender, drain
from benchmarks.places import Beacon, Places, fill, outbox_in, settings
from benchmarks.rows import prepared
from outbox import BeaconTransport, Dispatcher
from outbox.core.lane import Lane

FILL_ROWS = 10_000
BATCH_ROWS = 1000


def run(run: Run, places: Places, databases: Sequence[str]) -> None:
    sizes = {"100k": 100_000, "1M": 1_000_000} if run.full else {"100k": 100_000}
    for kind in databases:
        for name, count in sizes.items():
            run.compare(
                f"drain/{kind}/{name}",
                f"drain {name} rows, {kind}, one worker",
                with_outbox(places, kind, count),
                hand(places, kind, count),
                rounds=5 if count <= 100_000 else 3,
            )


def with_outbox(places: Places, kind: str, count: int, **changes: object) -> Callable[[], float]:
    """Rows a second."""

    def measure() -> float:
        with Beacon() as beacon, places.fresh(kind) as url, outbox_in(url, settings(beacon, **changes)) as box:
            fill(box, count)
            with BeaconTransport(box.settings) as transport:
                transport.verify()
                dispatcher = Dispatcher(box, transport, lanes=[Lane.USAGE])
                began = time.perf_counter()
                report = dispatcher.run_lane(Lane.USAGE)
                took = time.perf_counter() - began
                dispatcher.close()
            assert report.sent == beacon.counts["usage"]["unique"] == beacon.counts["usage"]["rows"] == count
        return count / took

    return measure


def hand(places: Places, kind: str, count: int) -> Callable[[], float]:
    """Rows a second."""

    def measure() -> float:
        with Beacon() as beacon, places.fresh(kind) as url:
            ledger = by_hand(kind, url)
            for start in range(0, count, FILL_ROWS):
                ledger.insert(prepared(min(FILL_ROWS, count - start)))
            sender = HandSender(beacon.url, beacon.license)
            began = time.perf_counter()
            sent = drain(ledger, sender, BATCH_ROWS)
            took = time.perf_counter() - began
            sender.close()
            ledger.close()
            assert sent == beacon.counts["usage"]["unique"] == count
        return count / took

    return measure
