"""Spans through OutboxSpanProcessor, compared with the SDK's BatchSpanProcessor and OTLP/HTTP exporter in the same run.

``cost``: the processor time of the application's process per span. With outbox it covers storing the span, as a worker
sends it later from another process; with the standard exporter it covers sending. ``cost-with-worker`` has the worker's
processor time too. ``burst``: the share that arrives of spans that end faster than they can be exported. What arrives
of outbox is counted by the simulator after all has been sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from benchmarks.children import Child
from benchmarks.figures import ROUNDS, Figure, Run
from benchmarks.otel_load import WARM
from benchmarks.places import Beacon, Places, outbox_in, settings
from outbox import BeaconTransport, Outbox
from outbox.core.lane import Lane
from outbox.testing import drain

BURST = 20_000
STEADY_QUICK, STEADY_FULL = 10_000, 20_000
BASE = "OTLP/HTTP"
DRAIN_SECONDS = 120.0


def run(run: Run, places: Places, databases: Sequence[str]) -> None:
    run.settings |= {"burst": BURST}
    for kind in databases[:1] if not run.full else databases:
        _cost(run, places, kind)
        _burst(run, places, kind)


def _cost(run: Run, places: Places, kind: str) -> None:
    spans = STEADY_FULL if run.full else STEADY_QUICK
    both: list[float] = []

    def ours() -> float:
        with places.fresh(kind) as url, Beacon() as beacon, outbox_in(url, settings(beacon)) as box:
            cost = _application("outbox", url, "steady", spans)
            sending = _sent(box)
            _all_there(arrived(beacon), spans + WARM)
            both.append(cost + 1e6 * sending / (spans + WARM))
            return cost

    def standard() -> float:
        with _sink() as (url, count):
            cost = _application("standard", url, "steady", spans)
            _all_there(count(), spans + WARM)
            return cost

    title = f"{kind}: processor time of the application for a span"
    rounds = ROUNDS if run.full else 2
    alone = run.compare(
        f"otel/{kind}/cost", title, ours, standard, unit="us", better="lower", base_name=BASE, rounds=rounds
    )
    run.add(
        Figure(
            f"otel/{kind}/cost-with-worker",
            f"{kind}: processor time of the application and the worker for a span",
            "us",
            "lower",
            both,
            alone.base,
            base_name=BASE,
        )
    )


def _burst(run: Run, places: Places, kind: str) -> None:
    lost = 0

    def ours() -> float:
        nonlocal lost
        with places.fresh(kind) as url, Beacon() as beacon, outbox_in(url, settings(beacon)) as box:
            _application("outbox", url, "burst", BURST)
            _sent(box)
            there = arrived(beacon)
        lost += BURST - there
        return 100 * there / BURST

    def standard() -> float:
        with _sink() as (url, count):
            _application("standard", url, "burst", BURST)
            return 100 * count() / BURST

    title = f"{kind}: arrived of a burst of {BURST} spans"
    run.compare(f"otel/{kind}/burst", title, ours, standard, unit="%", base_name=BASE, rounds=3 if run.full else 1)
    run.facts["lost"] = run.facts.get("lost", 0) + lost


def arrived(beacon: Beacon) -> int:
    """The number of different spans in the simulator's own record."""
    return int(beacon.counts[Lane.TRACES]["unique"])


def _sent(box: Outbox) -> float:
    """Deliver all there is, as a worker does. Returns the seconds of processor time that it took.

    Raises TimeoutError if something still waits after DRAIN_SECONDS.
    """
    with closing(BeaconTransport(box.settings)) as transport:
        transport.verify()
        began = time.process_time()
        drain(box, transport, timeout=DRAIN_SECONDS)
        return time.process_time() - began


def _application(how: str, to: str, load: str, spans: int) -> float:
    child = Child("benchmarks.otel_load", "--how", how, "--to", to, "--load", load, "--spans", str(spans))
    with closing(child):
        return float(child.expect("us "))


@contextmanager
def _sink() -> Iterator[tuple[str, Callable[[], int]]]:
    with closing(Child("benchmarks.otel_sink")) as child:

        def count() -> int:
            child.say("count")
            return int(child.expect("spans "))

        yield f"http://127.0.0.1:{child.expect('port ')}/v1/traces", count


def _all_there(count: int, spans: int) -> None:
    if count != spans:
        raise RuntimeError(f"{spans} spans were made and {count} arrived: their costs say nothing")
