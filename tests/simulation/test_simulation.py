"""Days of faults in virtual time: no invariant breaks, and every committed entry ends.

``OUTBOX_TEST_SEEDS`` is the number of days (default 500). A failure names its seed; ``simulate(seed)`` repeats it.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.simulation.run import Simulation, simulate, simulate_all
from tests.simulation.scenario import OUTAGES, Outage, Scenario, draw
from tests.simulation.world import DAY, HOUR

SEEDS = int(os.environ.get("OUTBOX_TEST_SEEDS", "500"))
CHUNK = 20
ROOT = Path(__file__).parents[2]

FAULTS = {
    *("crash", "stall", "jump", "set back", "expired", "stale", "duplicate", "rollback", "stray"),
    *("probe", "halve", "dead", "requeue", "discard", "shed", "off", "deleted", "mend"),
    *(f"answer {status}" for status in (200, 302, 400, 401, 404, 409, 413, 422, 429, 500, 502, 503)),
    *("answer ambiguous", "answer unavailable"),
}


def chunks() -> Iterator[range]:
    for start in range(0, SEEDS, CHUNK):
        yield range(start, min(start + CHUNK, SEEDS))


@pytest.mark.timeout(max(180, SEEDS // 5))
def test_days_of_faults_break_no_invariant() -> None:
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as processes:
        results = list(processes.map(simulate_all, chunks()))
    broken = [violation for _, violations in results for violation in violations]
    assert not broken, f"{len(broken)} of {SEEDS} days:\n" + "\n".join(broken[:20])
    happened = frozenset[str]().union(*(kinds for kinds, _ in results))
    assert SEEDS < 500 or happened >= FAULTS, f"never happened: {sorted(FAULTS - happened)}"


@pytest.mark.parametrize("seed", [1, 20, 300])
def test_the_same_seed_is_the_same_day(seed: int) -> None:
    fingerprint = simulate(seed).fingerprint
    assert simulate(seed).fingerprint == fingerprint
    code = f"from tests.simulation.run import simulate; print(simulate({seed}).fingerprint)"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert elsewhere.stdout.strip() == fingerprint, "it depends on the order of a set of strings"


def test_another_seed_is_another_day() -> None:
    assert simulate(1).fingerprint != simulate(2).fingerprint


def quiet(seed: int) -> Scenario:
    """A day without a fault."""
    nothing: dict[str, Any] = dict.fromkeys(("poison", "killer", "lost", "blip", "crash", "stall", "jumps"), 0)
    nobody: dict[str, Any] = dict.fromkeys(("requeues", "discards", "sheds", "switches"), 0)
    return replace(draw(Random(seed)), **nothing, **nobody, body_limit=None, set_back=False, outages=())


@pytest.mark.parametrize("seed", range(10))
def test_without_a_fault_beacon_gets_every_entry_once_and_nothing_else(seed: int) -> None:
    day = Simulation(seed, scenario=quiet(seed))
    day.run()
    committed = [payload for payloads in day.producers.committed.values() for payload in payloads]
    assert committed
    assert day.beacon.received == dict.fromkeys(committed, 1)


@pytest.mark.parametrize("kind", [kind for kind in OUTAGES if kind != "400"])
def test_an_outage_of_a_day_costs_a_few_hundred_requests(kind: str) -> None:
    day = Simulation(7, scenario=replace(quiet(7), outages=(Outage(HOUR, DAY, kind),)))
    outcome = day.run()
    assert 0 < outcome.outage_requests < 500
