"""Producers at a fixed rate while beacon has one kind of trouble after the other.

    healthy ─▶ trouble ─▶ caught up ─▶ healthy ─▶ trouble ─▶ ...

A producer commits single rows with ``Outbox.put`` in a process of its own. ``outbox worker`` delivers with its default
settings except for small batches, so that a limit of requests is a limit of rows, and latency has an effect. Beacon is
a third process. The commit latency of producers during a trouble is compared with that in all healthy phases together,
which lie between the troubles. ``benchmarks.pressure`` makes the figures from it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.figures import Run
from benchmarks.hand.beacon import capacity
from benchmarks.places import Beacon, Places, effective
from benchmarks.pressure import BACK, HEALTHY, SETTLING, Observations, Phase, report
from benchmarks.rows import messages
from benchmarks.scene import Scene, scene

BATCH_ROWS = 12
SENDERS = 4
BACK_CAPACITY = 2.0
"""When beacon comes back from an outage, its latency limits all senders together to this multiple of the arrival rate,
apart from the time that a request itself takes. The real capacity is measured by hand; half of it is left for the
backlog."""
CAPACITY_SECONDS = 1.0
CAUGHT_UP_SECONDS = 0.1
"""A backlog counts as cleared when it is no more than the arrivals of this time."""
WARM_SECONDS = 0.5
HEALTHY_SECONDS = 0.7
SETTLING_PART = 0.6
"""The share of the phase under a limit that "goodput" and "429" leave out: the worker has to find the limit first, and
each 429 costs it a second. "goodput-from-start" and "429-from-start" include it."""
PATIENCE_SECONDS = 60.0
"""Upper bound of the time to clear a backlog, times the profile's scale."""


@dataclass(frozen=True)
class Profile:
    """``rate``: rows/s of all producers together. ``scale``: a factor of the seconds of each phase."""

    rate: int
    producers: int
    scale: float


QUICK, FULL = Profile(250, 1, 1.0), Profile(500, 2, 8.0)
"""A producer that commits 250 times a second is idle half of the time, so its latency is not due to its own load."""


@dataclass(frozen=True)
class Trouble:
    """``faults``: those of the simulator. ``bursts``: the number of equal parts of the phase, with faults in the first
    half of each; 0: faults during the whole phase.

    ``limit``: the share of the arrival rate that beacon accepts; 0: no limit.
    """

    name: str
    seconds: float
    faults: Mapping[str, object]
    bursts: int = 0
    limit: float = 0.0


TROUBLES = (
    Trouble("slow 50 ms", 5.0, {"latency_ms": 50}),
    Trouble("slow 500 ms", 5.0, {"latency_ms": 500}),
    Trouble("limited", 20.0, {}, limit=0.5),
    Trouble("bursts of 503", 5.0, {"status": 503}, bursts=2),
    Trouble("bursts of 429", 5.0, {"status": 429, "retry_after": 1}, bursts=2),
    Trouble("resets", 5.0, {"reset": 0.2, "lose_answers": 0.2}),
    Trouble("down", 3.0, {"down": True}),
)
CALM = dict.fromkeys(("latency_ms", "rate_limit", "status", "retry_after", "reset", "lose_answers", "down"))


def run(run: Run, places: Places, databases: Sequence[str]) -> None:
    if not run.full and "sqlite" in databases:
        databases = ["sqlite"]  # where producers and the worker contend most: it has one writer
    profile = FULL if run.full else QUICK
    worker = {"batch_max_rows": BATCH_ROWS, "max_senders": SENDERS}
    run.settings |= effective(**worker)
    for kind in databases:
        with scene(places, kind, producers=profile.producers, **worker) as actors:
            story = Story(actors, profile)
            story.play()
            report(run, story.observed())


class Story:
    """The phases on one database, from the first row to the last."""

    def __init__(self, scene: Scene, profile: Profile) -> None:
        self.scene = scene
        self.profile = profile
        self.phases: list[Phase] = []
        self.back_capacity = self.calm_capacity = 0.0
        self._control = scene.beacon.control

    def play(self) -> None:
        self.back_capacity = self._capacity_by_hand(self._back_latency)
        self.calm_capacity = self._capacity_by_hand(0.0)
        self.scene.go(self.profile.rate, 1)
        time.sleep(WARM_SECONDS)
        self._healthy()
        for trouble in TROUBLES:
            self._strike(trouble)
            self._recover(trouble)
            self._healthy()
        self.scene.end(PATIENCE_SECONDS * self.profile.scale)

    def observed(self) -> Observations:
        """Everything that was recorded."""
        return Observations(
            kind=self.scene.kind,
            rate=self.profile.rate,
            phases=self.phases,
            samples=self.scene.watch.samples,
            commits=self.scene.commits(),
            arrivals=self._control.arrivals(),
            duplicates=self._control.duplicates(),
            limits={trouble.name: trouble.limit * self.profile.rate for trouble in TROUBLES if trouble.limit},
            back_capacity=self.back_capacity,
            calm_capacity=self.calm_capacity,
            caught_up=int(CAUGHT_UP_SECONDS * self.profile.rate),
        )

    def _healthy(self) -> None:
        self._pass(HEALTHY, HEALTHY_SECONDS)

    def _pass(self, name: str, seconds: float) -> None:
        with self._phase(name):
            time.sleep(seconds * self.profile.scale)

    def _strike(self, trouble: Trouble) -> None:
        if trouble.bursts:
            self._burst(trouble)
            return
        self._set(trouble)
        if trouble.limit:
            self._pass(f"{trouble.name}{SETTLING}", trouble.seconds * SETTLING_PART)
            self._pass(trouble.name, trouble.seconds * (1 - SETTLING_PART))
        else:
            self._pass(trouble.name, trouble.seconds)

    def _burst(self, trouble: Trouble) -> None:
        half = trouble.seconds * self.profile.scale / trouble.bursts / 2
        with self._phase(trouble.name) as phase:
            for _ in range(trouble.bursts):
                self._set(trouble)
                since = time.time()
                time.sleep(half)
                phase.struck.append((since, time.time()))
                self._control.patch(**CALM)
                time.sleep(half)

    def _set(self, trouble: Trouble) -> None:
        self._control.patch(**trouble.faults)
        if trouble.limit:
            self._control.patch(rate_limit=trouble.limit * self.profile.rate / BATCH_ROWS)

    @property
    def _back_latency(self) -> float:
        """Seconds that beacon takes for an answer after an outage."""
        return SENDERS * BATCH_ROWS / (BACK_CAPACITY * self.profile.rate)

    def _capacity_by_hand(self, latency: float) -> float:
        """Rows/s that beacon takes, answering after ``latency`` seconds."""
        payloads = [message.payload for message in messages(BATCH_ROWS)]
        with Beacon() as beacon:
            beacon.control.patch(latency_ms=1000 * latency)
            return capacity(beacon.url, beacon.license, SENDERS, payloads, CAPACITY_SECONDS)

    def _recover(self, trouble: Trouble) -> None:
        latency = self._back_latency if "down" in trouble.faults else 0.0
        with self._phase(f"{BACK}{trouble.name}"):
            self._control.patch(**(CALM | {"latency_ms": 1000 * latency}))
            caught_up = int(CAUGHT_UP_SECONDS * self.profile.rate)
            self.scene.until_depth(caught_up, PATIENCE_SECONDS * self.profile.scale)
        self._control.patch(**CALM)

    @contextmanager
    def _phase(self, name: str) -> Iterator[Phase]:
        phase = Phase(name, time.time(), self.scene.beacon.counts["usage"])
        yield phase
        phase.end(time.time(), self.scene.beacon.counts["usage"])
        self.phases.append(phase)
