"""The cost of a long backlog: throughput, memory of the worker, and the effect of a long snapshot on PostgreSQL."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psycopg
from sqlalchemy import make_url

from benchmarks.checks import require
from benchmarks.drain import WorkerProcess, hand, with_outbox
from benchmarks.figures import Figure, Measure, Run
from benchmarks.places import Places, fill, outbox_in, settings

ROUNDS = 3
SHORT, MILLION = 100_000, 1_000_000
MEGABYTE = 2**20


def run(run: Run, places: Places, databases: Sequence[str]) -> None:
    for kind in databases:
        _longer(run, places, kind, "1M", MILLION, ROUNDS)
        _memory(run, places, kind)
        if kind == "postgresql":
            _held(run, places)
        if run.full:
            _longer(run, places, kind, "10M", 10 * MILLION, 1)


def _longer(run: Run, places: Places, kind: str, name: str, count: int, rounds: int) -> None:
    """Compare a long backlog with a short one, and with the hand-written loop on both, all in the same rounds."""
    measures = [how(places, kind, rows) for how in (with_outbox, hand) for rows in (count, SHORT)]
    long, short, hand_long, hand_short = (list(samples) for samples in zip(*_in_turns(measures, rounds), strict=True))
    title, unit, key = f"drain {name} rows, {kind}", "rows/s", f"scale/{kind}/{name}"
    run.add(Figure(key, title, unit, "higher", long, short, base_name="100k rows"))
    run.add(Figure(f"{key}/of-hand", f"by hand: {title}", unit, "higher", hand_long, hand_short, base_name="100k rows"))
    run.add(Figure(f"{key}/by-hand", f"{title}, one worker", unit, "higher", long, hand_long))


def _in_turns(measures: Sequence[Measure], rounds: int) -> list[list[float]]:
    """The values of all measures, per round. The order of the measures alternates: forwards, then backwards."""
    found = []
    for number in range(rounds):
        gave: dict[int, float] = {}
        for which in sorted(range(len(measures)), reverse=bool(number % 2)):
            gc.collect()
            gave[which] = measures[which]()
        found.append([gave[which] for which in range(len(measures))])
    return found


def _memory(run: Run, places: Places, kind: str) -> None:
    run.compare(
        f"scale/{kind}/memory",
        f"the worker's highest resident memory, 1M rows, {kind}",
        _megabytes(places, kind, MILLION),
        _megabytes(places, kind, 0),
        unit="MiB",
        better="lower",
        rounds=ROUNDS,
        base_name="no rows",
    )


def _megabytes(places: Places, kind: str, count: int) -> Callable[[], float]:
    def measure() -> float:
        beacon = places.beacon()
        with places.fresh(kind) as url, outbox_in(url, settings(beacon)) as box:
            fill(box, count)
            worker = WorkerProcess(url, beacon.url)
            worker.start()
            drained = worker.wait()
            require(drained.sent == count, f"{drained.sent} of {count} rows were sent")
        return drained.peak_bytes / MEGABYTE

    return measure


def _held(run: Run, places: Places) -> None:
    run.compare(
        "scale/postgresql/xmin",
        "drain 1M rows, postgresql, while a session holds a snapshot from before",
        with_outbox(places, "postgresql", MILLION, beside=_snapshot),
        with_outbox(places, "postgresql", MILLION),
        rounds=ROUNDS,
        base_name="no such session",
    )


@contextmanager
def _snapshot(url: str) -> Iterator[None]:
    """Hold a snapshot: vacuum cannot remove rows that are deleted or updated during the block."""
    with psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)) as session:
        session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        session.execute("SELECT count(*) FROM outbox_usage")
        yield
