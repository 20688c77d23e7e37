"""Delivery of a committed backlog: batches are leased, posted over HTTP, and settled.

The worker is a Dispatcher in this process, beacon a simulator in another; there is no other load. Time runs from the
first claim to the last settle, and the simulator's record must have each row exactly once.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen

from benchmarks.checks import require
from benchmarks.figures import Run
from benchmarks.hand import by_hand
from benchmarks.hand.beacon import HandSender, drain
from benchmarks.hand.post import HandPost
from benchmarks.known import LICENSE
from benchmarks.places import Beacon, Places, fill, outbox_in, settings
from benchmarks.rows import prepared
from outbox import BeaconTransport, Dispatcher, Outbox
from outbox.core.lane import Lane

QUICK_ROWS = {"sqlite": 60_000, "postgresql": 50_000, "mariadb": 15_000}
"""Rows of the quick profile's backlog, chosen so that all databases take about as long to fill. The key names them."""
PAYLOADS = {2000: 50_000, 8000: 20_000}
"""Bytes of a payload: rows of the backlog. Other figures have payloads of about 500 bytes."""
BATCH_BYTES = 500_000
"""About what a batch of 1,000 usual rows has, and a batch of larger payloads too."""
FILL_ROWS = 10_000
BATCH_ROWS = 1000
Beside = Callable[[str], AbstractContextManager[object]]


def run(run: Run, places: Places, databases: Sequence[str]) -> None:
    for kind in databases:
        count = 100_000 if run.full else QUICK_ROWS[kind]
        _backlog(run, places, kind, f"{count // 1000}k", count)
        if run.full:
            _backlog(run, places, kind, "1M", 1_000_000)
            _httpx_by_hand(run, places, kind)
            for rows in (100, 300, 3000):
                _sweep(run, places, kind, rows)
            for payload_bytes, rows in PAYLOADS.items():
                _payloads(run, places, kind, payload_bytes, rows)
            for number in (2, 4):
                _several(run, places, kind, number)


def _backlog(run: Run, places: Places, kind: str, name: str, count: int) -> None:
    run.compare(
        f"drain/{kind}/{name}",
        f"drain {count:,} rows, {kind}, one worker",
        with_outbox(places, kind, count),
        hand(places, kind, count),
        rounds=5 if count <= 100_000 else 3,
    )


def _httpx_by_hand(run: Run, places: Places, kind: str) -> None:
    run.compare(
        f"drain/{kind}/httpx",
        f"the loop by hand itself, 100k rows, {kind}, by httpx",
        hand(places, kind, 100_000),
        hand(places, kind, 100_000, bare=True),
        base_name="by http.client",
    )


def _sweep(run: Run, places: Places, kind: str, rows: int) -> None:
    run.compare(
        f"drain/{kind}/batch-{rows}",
        f"drain 100k rows, {kind}, batches of {rows:,}",
        with_outbox(places, kind, 100_000, batch_max_rows=rows, batch_max_bytes=4 * 2**20),
        hand(places, kind, 100_000, rows),
    )


def _payloads(run: Run, places: Places, kind: str, payload_bytes: int, count: int) -> None:
    rows = BATCH_BYTES // payload_bytes
    run.compare(
        f"drain/{kind}/payload-{payload_bytes}",
        f"drain {count:,} rows of {payload_bytes:,} bytes, {kind}, batches of {rows}",
        with_outbox(places, kind, count, payload_bytes=payload_bytes, batch_max_rows=rows, batch_max_bytes=4 * 2**20),
        hand(places, kind, count, rows, payload_bytes=payload_bytes),
    )


def _several(run: Run, places: Places, kind: str, number: int) -> None:
    run.compare(
        f"drain/{kind}/{number}-workers",
        f"drain 100k rows, {kind}, {number} workers",
        lambda: _by_workers(places, kind, 100_000, number),
        with_outbox(places, kind, 100_000),
        base_name="one worker",
    )


def _by_workers(places: Places, kind: str, count: int, number: int) -> float:
    """Rows a second of several dispatcher processes, from the start signal to the end of the last one."""
    beacon = places.beacon()
    with places.fresh(kind) as url, outbox_in(url, settings(beacon)) as box:
        fill(box, count)
        workers = [WorkerProcess(url, beacon.url) for _ in range(number)]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        sent = sum(worker.wait().sent for worker in workers)
        took = time.perf_counter() - began
        _each_once(beacon, count, sent)
    return count / took


def _each_once(beacon: Beacon, count: int, sent: int) -> None:
    """Raise RuntimeError unless ``count`` rows were ``sent``, and the simulator's record has each exactly once."""
    usage = beacon.counts["usage"]
    require(
        sent == usage["unique"] == usage["rows"] == count,
        f"{sent} of {count} rows were sent; beacon received {usage['rows']}, {usage['unique']} different ones",
    )


@dataclass(frozen=True)
class Drained:
    sent: int
    peak_bytes: int
    """Peak resident memory of the process."""


class WorkerProcess:
    """A dispatcher in a process of its own, ready to start."""

    def __init__(self, url: str, beacon_url: str) -> None:
        command = [sys.executable, "-m", "benchmarks.drain", url, beacon_url]
        self._process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if said != "ready\n":
            self._process.kill()
            self._process.communicate()
            raise RuntimeError(f"the worker did not start: it said {said!r}")

    def start(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def wait(self) -> Drained:
        said = self._process.communicate()[0]
        require(self._process.returncode == 0, f"the worker ended with status {self._process.returncode}: {said!r}")
        sent, kibibytes = said.split()
        return Drained(int(sent), int(kibibytes) * 1024)


def _work(url: str, beacon_url: str) -> None:
    given = settings(beacon_url=beacon_url, license_key=LICENSE)
    with Outbox(url, settings=given) as box, BeaconTransport(given) as transport:
        transport.verify()
        dispatcher = Dispatcher(box, transport, lanes=[Lane.USAGE])
        print("ready", flush=True)
        sys.stdin.readline()
        sent = dispatcher.run_lane(Lane.USAGE).sent
        dispatcher.close()
    print(sent, _peak_kibibytes())


def _peak_kibibytes() -> int:
    """Peak memory of this process since its exec. getrusage would include the peak of the parent before the exec."""
    [peak] = re.findall(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(peak)


def with_outbox(
    places: Places,
    kind: str,
    count: int,
    *,
    beside: Beside = nullcontext,
    payload_bytes: int = 0,
    **changes: object,
) -> Callable[[], float]:
    """Rows a second. ``beside``: a context that is held on the database from before the first row to the end."""

    def measure() -> float:
        beacon = places.beacon()
        with places.fresh(kind) as url, outbox_in(url, settings(beacon, **changes)) as box, beside(url):
            fill(box, count, payload_bytes=payload_bytes)
            with BeaconTransport(box.settings) as transport:
                transport.verify()
                dispatcher = Dispatcher(box, transport, lanes=[Lane.USAGE])
                began = time.perf_counter()
                report = dispatcher.run_lane(Lane.USAGE)
                took = time.perf_counter() - began
                dispatcher.close()
            _each_once(beacon, count, report.sent)
        return count / took

    return measure


def hand(
    places: Places, kind: str, count: int, batch_rows: int = BATCH_ROWS, *, bare: bool = False, payload_bytes: int = 0
) -> Callable[[], float]:
    """Rows a second of the hand-written loop; ``bare``: with http.client instead of httpx."""

    def measure() -> float:
        beacon = places.beacon()
        with places.fresh(kind) as url:
            ledger = by_hand(kind, url)
            for start in range(0, count, FILL_ROWS):
                ledger.insert(prepared(min(FILL_ROWS, count - start), payload_bytes))
            sender = HandSender(HandPost(beacon.url, beacon.license, bare=bare))
            began = time.perf_counter()
            sent = drain(ledger, sender, batch_rows)
            took = time.perf_counter() - began
            sender.close()
            ledger.close()
            _each_once(beacon, count, sent)
        return count / took

    return measure


if __name__ == "__main__":
    _work(*sys.argv[1:3])
