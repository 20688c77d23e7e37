"""Latency from COMMIT to the arrival at beacon, without a backlog.

The time runs from the return of COMMIT in the producer (before it wakes the worker) to the time of arrival that the
simulator recorded for the id; both clocks are this machine's. ``inside``: the worker runs in the producer's process;
``across``: it is an ``outbox worker`` process. At 200 rows/s each commit has one row, at 2,000 rows/s ten. Outbox and
the hand-written loop (``benchmarks.hand.live``) take turns; the processes of the resting side are stopped with SIGSTOP,
so that they use no processor time.

p50 has a sample per turn. p99 is that of all commits of all turns together: a turn of the quick profile has a hundred
commits, whose p99 would be its second longest wait, and the median of those says nothing about the tail.

Across processes the clock of outbox starts when ``put()`` has returned, that of the hand-written loop right after
COMMIT: nothing in the producer's process can see the COMMIT within ``put()`` without a listener, and with one outbox
would not notify other processes. It makes the waits of outbox shorter by what ``put()`` does after its COMMIT, some
microseconds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.checks import require
from benchmarks.children import Child, HandWorker, OutboxWorker, Producer, close_all
from benchmarks.figures import Figure, Run
from benchmarks.hand import by_hand
from benchmarks.places import Beacon, Places, outbox_in, settings
from benchmarks.records import quantile, read_commits, waits

MIDDLE, TAIL = 0.5, 0.99
LEAST_COMMITS = 1000
"""The minimum of a part whose p99 is shown as spread: the p99 of fewer rests on fewer than ten of them."""
BEYOND = 10
"""The distribution is drawn as far as this many commits lie beyond."""
MODES = {"inside": "in one process", "across": "across processes"}
ARRIVAL_SECONDS = 20.0
WARM_SECONDS = 0.5
"""Both sides run for so long before the first turn. A worker audits and purges its lanes in the first 0.15."""
AWAKE_SECONDS = 0.02
"""A pause after SIGCONT, in which the processes handle timers that expired while they were stopped."""


@dataclass(frozen=True)
class Pace:
    """``rate``: rows/s; ``rows``: rows per commit; ``seconds``: the length of each turn."""

    rate: int
    rows: int
    seconds: float


QUICK, QUICK_ROUNDS = (Pace(200, 1, 0.35), Pace(2000, 10, 0.35)), 5
FULL, FULL_ROUNDS = (Pace(200, 1, 5.0), Pace(2000, 10, 5.0)), 7


def run(run: Run, places: Places, databases: Sequence[str]) -> None:
    paces, rounds = (FULL, FULL_ROUNDS) if run.full else (QUICK, QUICK_ROUNDS)
    with Beacon() as for_ours, Beacon() as for_hand:
        for kind in databases:
            for mode in MODES:
                with (
                    _side("outbox", places, kind, mode, for_ours) as ours,
                    _side("hand", places, kind, mode, for_hand) as hand,
                ):
                    _warm((ours, hand))
                    _take_turns((ours, hand), paces, rounds)
                    _report(run, kind, mode, paces, ours.waits(), hand.waits())


Turns = dict[Pace, list[list[float]]]
"""By pace, the latencies of each turn, in seconds."""


@dataclass
class Side:
    """A producer and the processes that deliver its rows."""

    beacon: Beacon
    producer: Producer
    children: Sequence[Child | OutboxWorker]
    turns: list[tuple[Pace, float, float]] = field(default_factory=list)
    """The pace of each turn, with its begin and end in epoch seconds."""

    def turn(self, pace: Pace) -> None:
        self.thaw()
        time.sleep(AWAKE_SECONDS)
        began = time.time()
        self.producer.go(pace.rate, pace.rows)
        time.sleep(pace.seconds)
        committed = self.producer.rest()
        self.turns.append((pace, began, time.time()))
        self.freeze(committed)

    def freeze(self, committed: int) -> None:
        """Stop the processes, once beacon has received that many rows."""
        self._until_received(committed)
        for child in self.children:
            child.freeze()

    def thaw(self) -> None:
        for child in self.children:
            child.thaw()

    def waits(self) -> Turns:
        commits, arrivals = read_commits([self.producer.record]), self.beacon.control.arrivals()
        found: Turns = {}
        for pace, began, ended in self.turns:
            during = commits.between(began, ended)
            found.setdefault(pace, []).append(waits(during, arrivals))
            arrived = len(found[pace][-1])
            require(0 < len(during) == arrived, f"{len(during)} rows were committed in a turn, {arrived} arrived")
        return found

    def _until_received(self, rows: int) -> None:
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while self.beacon.counts["usage"]["unique"] < rows:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{rows} rows were committed, received: {self.beacon.counts['usage']}")
            time.sleep(0.01)


def _warm(sides: tuple[Side, Side]) -> None:
    """Run both sides at once until what each does at its start is over, unrecorded: a worker audits all lanes."""
    for side in sides:
        for child in side.children:
            child.expect(child.ready)
    for side in sides:
        side.producer.go(200, 1)
    time.sleep(WARM_SECONDS)
    for side in sides:
        side.freeze(side.producer.rest())


def _take_turns(sides: tuple[Side, Side], paces: Sequence[Pace], rounds: int) -> None:
    for number in range(rounds):
        for pace in paces:
            for side in sides if number % 2 else reversed(sides):
                side.turn(pace)


@contextmanager
def _side(how: str, places: Places, kind: str, mode: str, beacon: Beacon) -> Iterator[Side]:
    """Start the processes of one side without waiting for them; ``warm`` waits."""
    beacon.control.reset()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outbox-bench-")))
        url = stack.enter_context(places.fresh(kind))
        if how == "outbox":
            with outbox_in(url, settings()):
                pass
        elif mode == "across":
            by_hand(kind, url).close()  # creates its tables
        workers = [] if mode == "inside" else [_worker(how, kind, url, beacon, folder)]
        stack.callback(close_all, workers)
        inside = beacon.url if mode == "inside" else ""
        producer = Producer(kind, url, folder / "commits", how=how, beacon=inside)
        stack.callback(producer.close)
        side = Side(beacon, producer, [producer, *workers])
        stack.callback(side.thaw)  # runs first: a stopped worker must not hold the producer up at its end
        yield side


def _worker(how: str, kind: str, url: str, beacon: Beacon, folder: Path) -> Child | OutboxWorker:
    return OutboxWorker(url, beacon.url, folder) if how == "outbox" else HandWorker(kind, url, beacon.url)


def _report(run: Run, kind: str, mode: str, paces: Sequence[Pace], ours: Turns, hand: Turns) -> None:
    for pace in paces:
        key, title = f"{kind}/{mode}/{pace.rate}", f"commit to received, {kind}, {MODES[mode]}, {pace.rate} rows/s"
        for figure in figures(f"latency/{key}", title, pace.rows, ours[pace], hand[pace]):
            run.add(figure)
        run.series[key] = distribution(ours[pace], hand[pace], pace.rows)


def figures(
    key: str, title: str, rows: int, ours: Sequence[Sequence[float]], hand: Sequence[Sequence[float]]
) -> list[Figure]:
    """``ours``, ``hand``: the waits of each row in each turn, in seconds, in order. ``rows``: of a commit."""
    middle = [_milliseconds(side, MIDDLE) for side in (ours, hand)]
    tail = [_milliseconds([_pooled(side)], TAIL) for side in (ours, hand)]
    commits = min(len(_pooled(side)) for side in (ours, hand)) // rows
    return [
        Figure(f"{key}/p50", f"{title}, p50", "ms", "lower", *middle),
        Figure(
            f"{key}/p99-pooled",
            f"{title}, p99 of all commits",
            "ms",
            "lower",
            *tail,
            note=f"of {commits:,} commits of each side{_spread(ours, hand, rows)}",
        ),
    ]


def _spread(ours: Sequence[Sequence[float]], hand: Sequence[Sequence[float]], rows: int) -> str:
    """The lowest and the highest ratio of parts that are large enough; nothing unless there are two of them."""
    parts = [_milliseconds(_parts(side, LEAST_COMMITS * rows), TAIL) for side in (ours, hand)]
    ratios = [mine / base for mine, base in zip(*parts, strict=False)]
    if len(ratios) < 2:
        return ""
    return f"; in {len(ratios)} parts of at least {LEAST_COMMITS:,}: {min(ratios):.2f} to {max(ratios):.2f}"


def _parts(turns: Sequence[Sequence[float]], least: int) -> list[list[float]]:
    """Consecutive turns together, until a part has ``least`` rows; what remains belongs to no part."""
    parts, part = [], list[float]()
    for turn in turns:
        part = [*part, *turn]
        if len(part) >= least:
            parts.append(part)
            part = []
    return parts


def _pooled(turns: Sequence[Sequence[float]]) -> list[float]:
    return [wait for turn in turns for wait in turn]


def _milliseconds(groups: Sequence[Sequence[float]], part: float) -> list[float]:
    return [1000 * quantile(group, part) for group in groups]


def distribution(ours: Sequence[Sequence[float]], hand: Sequence[Sequence[float]], rows: int) -> dict[str, list[float]]:
    """The columns of a plot of the whole distribution: the share of rows, and the milliseconds of each side.

    It begins at p5: a row that a look met by chance would stretch the axis. It ends where fewer than ``BEYOND`` commits
    of a side lie beyond: what is further out is chance.
    """
    columns = {"ours_ms": sorted(_pooled(ours)), "hand_ms": sorted(_pooled(hand))}
    last = 1 - BEYOND * rows / min(map(len, columns.values()))
    parts = [part for part in (*(number / 200 for number in range(10, 200)), 0.998, 0.999) if part <= last]
    return {"part": parts} | {name: [1000 * quantile(side, part) for part in parts] for name, side in columns.items()}
