"""The same columns by outbox. Messages are ready before time runs, as the payloads of the peers are."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.checks import require
from benchmarks.children import OutboxWorker, Producer
from benchmarks.drain import with_outbox
from benchmarks.peers.columns import Measure, Values, waiting
from benchmarks.peers.storage import settled_bytes
from benchmarks.places import Beacon, Places, outbox_in, settings
from benchmarks.records import read_commits, waits
from benchmarks.rows import messages
from outbox import Dispatcher, Outbox, Receipt, UsageInterval, Verdict
from outbox.core.batch import Batch
from outbox.core.lane import Lane
from outbox.core.policy import Retention

BULK_ROWS = 1000
ARRIVAL_SECONDS = 20.0
ROWS = {
    "enqueue": 2000,
    "bulk": 20_000,
    "drain": 50_000,
    "post": 50_000,
    "latency": 400,
    "kept": 200_000,
    "deleted": 200_000,
}
"""Of a round of the quick profile."""
EVERYTHING = Retention(sent_seconds=0, receipts_seconds=0, max_bytes=1, at_least_seconds=0)


def measure(places: Places, kind: str, column: str, rows: int, rate: int) -> Measure:
    if column == "post":
        deliver = with_outbox(places, kind, rows)
        return lambda: {column: deliver()}
    if column == "latency":
        return lambda: _latency(places, kind, rows, rate)
    if column in ("kept", "deleted"):
        return lambda: {column: _storage(places, kind, rows, purged=column == "deleted")}
    how = _SPEEDS[column]

    def measured() -> Values:
        with places.fresh(kind) as url, outbox_in(url, settings()) as box:
            return {column: how(box, rows)}

    return measured


def _enqueue(box: Outbox, rows: int) -> float:
    ready = messages(rows)
    began = time.perf_counter()
    for message in ready:
        box.put(message)
    return rows / (time.perf_counter() - began)


def _bulk(box: Outbox, rows: int) -> float:
    ready = messages(rows)
    began = time.perf_counter()
    _fill(box, ready)
    return rows / (time.perf_counter() - began)


def _drain(box: Outbox, rows: int) -> float:
    _fill(box, messages(rows))
    dispatcher = Dispatcher(box, Nothing(), lanes=[Lane.USAGE])
    began = time.perf_counter()
    report = dispatcher.run_lane(Lane.USAGE)
    took = time.perf_counter() - began
    dispatcher.close()
    require(report.sent == rows, report)
    return rows / took


def _fill(box: Outbox, ready: Sequence[UsageInterval]) -> None:
    for start in range(0, len(ready), BULK_ROWS):
        box.put(*ready[start : start + BULK_ROWS])  # a statement that commits itself, as pgqueuer's is


_SPEEDS: dict[str, Callable[[Outbox, int], float]] = {"enqueue": _enqueue, "bulk": _bulk, "drain": _drain}
"""Rows a second."""


class Nothing:
    """A transport that does nothing with a batch."""

    def send(self, batch: Batch) -> Receipt:
        return Receipt(Verdict.DELIVERED, counted=False, reason="", status=200, inserted_count=batch.rows)


def _storage(places: Places, kind: str, rows: int, *, purged: bool) -> float:
    """Bytes a row beyond the empty tables, after all were delivered and VACUUM has run."""
    with places.fresh(kind) as url:
        with outbox_in(url, settings()):
            pass
        empty = settled_bytes(url)
        with outbox_in(url, settings()) as box:
            _drain(box, rows)
            if purged:
                deleted = box.store.purge(Lane.USAGE, EVERYTHING)
                require(deleted == rows, f"{deleted} of {rows} rows were purged")
        return (settled_bytes(url) - empty) / rows


def _latency(places: Places, kind: str, rows: int, rate: int) -> Values:
    """A producer in one process, ``outbox worker`` in another."""
    with tempfile.TemporaryDirectory(prefix="outbox-bench-") as name, Beacon() as beacon, places.fresh(kind) as url:
        folder = Path(name)
        with outbox_in(url, settings()):
            pass
        worker = OutboxWorker(url, beacon.url, folder)
        producer = Producer(kind, url, folder / "commits")
        try:
            worker.expect("sending from")
            producer.expect("ready")
            producer.go(rate, 1)
            time.sleep(rows / rate)
            committed = producer.rest()
            _until_received(beacon, committed)
        finally:
            producer.close()
            worker.close()
        return waiting(waits(read_commits([producer.record]), beacon.control.arrivals()))


def _until_received(beacon: Beacon, rows: int) -> None:
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while (received := beacon.counts["usage"]["unique"]) < rows:
        if time.monotonic() > deadline:
            raise RuntimeError(f"outbox delivered {received} of {rows} rows")
        time.sleep(0.02)
