"""Producers at a fixed rate while beacon has every trouble there is, one after the other.

    healthy ─▶ trouble ─▶ caught up ─▶ healthy ─▶ trouble ─▶ ...

A producer commits single rows by ``Outbox.put`` in a process of its own; ``outbox worker`` delivers with the settings
that it comes with, but for small batches: so that a limit of requests is a limit of rows, and slowness is felt. Beacon
is a third process. What callers waited for a commit in a trouble is held to what they waited in all healthy stretches
together, which lie between the troubles. See ``benchmarks.pressure`` for what is made of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.figures import Run
from benchmarks.hand.beacon import capacity
from benchmarks.places import Beacon, Places
from benchmarks.pressure import HEALTHY, Observations, Phase, report
from benchmarks.rows import messages
from benchmarks.scene import Scene, scene

BATCH_ROWS = 12
SENDERS = 4
BACK_CAPACITY = 2.0
"""Times the arrival: what all senders together get through when beacon comes back, so slow does it answer then, if a
request takes no time of its own. What they do is measured by hand; half of it is free for the backlog."""
CAPACITY_SECONDS = 1.5
CAUGHT_UP_SECONDS = 0.1
"""A backlog of what arrives in this time is none."""
WARM_SECONDS = 0.5
HEALTHY_SECONDS = 0.7
SETTLING_PART = 0.6
"""Of the time under a limit, before it counts: the limit has to be found, and each 429 on the way costs a second."""
PATIENCE_SECONDS = 60.0
"""For a backlog to be cleared, times the profile's scale."""


@dataclass(frozen=True)
class Profile:
    """``rate``: rows/s of all producers together. ``scale``: times the seconds of each phase."""

    rate: int
    producers: int
    scale: float


QUICK, FULL = Profile(250, 1, 1.0), Profile(500, 2, 8.0)
"""A producer that commits 250 times a second is idle half of the time: what it waits for is not itself."""


@dataclass(frozen=True)
class Trouble:
    """``faults``: of the simulator. ``bursts``: they strike in the first half of each of so many parts of the phase.

    ``limit``: the part of the arrival that beacon takes.
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
    if not run.full and len(databases) > 1:
        databases = ["sqlite"]  # where producers and the worker are most in each other's way
    profile = FULL if run.full else QUICK
    for kind in databases:
        with scene(places, kind, producers=profile.producers, batch_max_rows=BATCH_ROWS, max_senders=SENDERS) as actors:
            story = Story(actors, profile)
            story.play()
            report(run, story.observed())


class Story:
    """On one database, from the first row to the last."""

    def __init__(self, scene: Scene, profile: Profile) -> None:
        self.scene = scene
        self.profile = profile
        self.phases: list[Phase] = []
        self.back_capacity = 0.0
        self._control = scene.beacon.control

    def play(self) -> None:
        self.back_capacity = self._capacity_by_hand()
        self.scene.go(self.profile.rate, 1)
        time.sleep(WARM_SECONDS)
        self._healthy()
        for trouble in TROUBLES:
            self._strike(trouble)
            self._recover(trouble)
            self._healthy()
        self.scene.end(PATIENCE_SECONDS * self.profile.scale)

    def observed(self) -> Observations:
        """All that was seen."""
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
            self._pass(f"{trouble.name}, settling", trouble.seconds * SETTLING_PART)
            self._pass(trouble.name, trouble.seconds * (1 - SETTLING_PART))
        else:
            self._pass(trouble.name, trouble.seconds)

    def _burst(self, trouble: Trouble) -> None:
        half = trouble.seconds * self.profile.scale / trouble.bursts / 2
        with self._phase(trouble.name):
            for _ in range(trouble.bursts):
                self._set(trouble)
                time.sleep(half)
                self._control.patch(**CALM)
                time.sleep(half)

    def _set(self, trouble: Trouble) -> None:
        self._control.patch(**trouble.faults)
        if trouble.limit:
            self._control.patch(rate_limit=trouble.limit * self.profile.rate / BATCH_ROWS)

    @property
    def _back_latency(self) -> float:
        """Seconds that beacon takes for an answer when it comes back."""
        return SENDERS * BATCH_ROWS / (BACK_CAPACITY * self.profile.rate)

    def _capacity_by_hand(self) -> float:
        payloads = [message.payload for message in messages(BATCH_ROWS)]
        with Beacon() as beacon:
            beacon.control.patch(latency_ms=1000 * self._back_latency)
            return capacity(beacon.url, beacon.license, SENDERS, payloads, CAPACITY_SECONDS)

    def _recover(self, trouble: Trouble) -> None:
        latency = self._back_latency if "down" in trouble.faults else 0.0
        with self._phase(f"back after {trouble.name}"):
            self._control.patch(**(CALM | {"latency_ms": 1000 * latency}))
            caught_up = int(CAUGHT_UP_SECONDS * self.profile.rate)
            self.scene.until_depth(caught_up, PATIENCE_SECONDS * self.profile.scale)
        self._control.patch(**CALM)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        phase = Phase(name, time.time(), self.scene.beacon.counts["usage"])
        yield
        phase.end(time.time(), self.scene.beacon.counts["usage"])
        self.phases.append(phase)
