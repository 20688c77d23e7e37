"""The example service under load, killed twice, with a beacon that is down for a while: every selected trace arrives
once, none of the others, and nobody's personal data.

``OUTBOX_TEST_BEACON_DOWN_SECONDS`` says how long beacon is down (default 1), ``OUTBOX_TEST_SEED`` when the kills are.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from examples.arrived import Span, traces_arrived
from examples.load import Outcome, visits
from examples.service import SLOW_SECONDS
from outbox import Outbox, Settings
from outbox.simulator import SimulatorClient
from tests.otel.personal import MEASURED, found_in_files, found_on_the_wire
from tests.support.delivery import left
from tests.support.processes import free_port
from tests.support.restarting import Restarting
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
DOWN_SECONDS = float(os.environ.get("OUTBOX_TEST_BEACON_DOWN_SECONDS", "1"))
SEED = int(os.environ.get("OUTBOX_TEST_SEED", "1"))
PATIENCE = 150.0
"""Seconds for a process to start, or for a condition to hold, on a busy machine."""
SERVER, ERROR = 2, 2
"""A span's kind and status, as OTLP numbers them."""
CUSTOMERS = [f"{MEASURED['path']}@example.com"]


class Process(Restarting):
    """A Python module that runs as a process of its own."""

    def __init__(self, folder: Path, name: str, *command: str, **settings: Any) -> None:
        given = {f"OUTBOX_{key.upper()}": str(value) for key, value in settings.items()}

        def start(out: IO[bytes], errors: IO[bytes]) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=out,
                stderr=errors,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **given},
            )

        super().__init__(name, folder, start)


class Scene:
    """A beacon, a shop, and the worker that delivers: the shop's own, or a process of its own."""

    def __init__(self, folder: Path, stack: ExitStack, *, own_worker: bool) -> None:
        self.folder, self._stack = folder, stack
        self.kills = 0
        self.home = folder / "shop"
        self.home.mkdir()
        self.beacon_url = self._start_beacon()
        self.settings: dict[str, Any] = {
            "database_url": f"sqlite:///{self.home / 'outbox.db'}",
            "beacon_url": self.beacon_url,
            "license_key": "any",
            "lease_seconds": 2,
            "request_timeout": 1,
            "poll_seconds": 0.05,
            "backoff_base": 0.05,
            "backoff_max": 0.5,
            "max_attempts": 1000,
            "retention_sent": "1d",
        }
        self.box = stack.enter_context(Outbox(settings=Settings(**self.settings)))
        self.box.migrate()
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        os.environ["SHOP_WORKER"] = "0" if own_worker else "1"
        self.shop = self._start("shop", "tests.otel.shop", str(self._port), **self.settings)
        self.worker = self._start("worker", "outbox", "worker", **self.settings) if own_worker else self.shop
        self.serves()

    def _start(self, name: str, *command: str, **settings: Any) -> Process:
        folder = self.home if name == "shop" else self.folder
        process = Process(folder, name, *command, **settings)
        self._stack.callback(process.end)
        return process

    def _start_beacon(self) -> str:
        process = self._start("beacon", "outbox", "beacon", "--record-bodies", "100000")

        def listening() -> re.Match[str] | None:
            return re.search(r"http://\S+", process.errors.read_text())

        return wait_until(listening, PATIENCE, "the simulator does not listen")[0]

    def serves(self) -> None:
        def answers() -> bool:
            try:
                return httpx.get(f"{self.url}/telemetry").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answers, PATIENCE, lambda: f"the shop does not answer: {self.shop.errors.read_text()[-2000:]}")

    def kill_and_start(self) -> None:
        self.worker.kill()
        self.worker.start()
        self.serves()
        self.kills += 1

    def commits(self) -> None:
        """Wait until something more is committed."""
        told = len(self.committed())
        wait_until(lambda: len(self.committed()) > told, PATIENCE, "nothing is committed")

    def committed(self) -> list[tuple[str, str]]:
        """Trace and span id of each span that the shop reported as committed."""
        pairs = (line.split() for line in self.shop.lines() if line != "listening")
        return [(trace, span) for trace, span in pairs]


@contextmanager
def shopping(scene: Scene) -> Iterator[list[Outcome]]:
    """Clients that send requests until the end of the block. Yields the outcomes of their requests."""
    outcomes: list[Outcome] = []
    enough = threading.Event()

    def shop() -> None:
        while not enough.is_set():
            some = visits(40, CUSTOMERS, scene.url)
            outcomes.extend(some)
            if all(outcome.status == 0 for outcome in some):  # nobody serves: come again later
                enough.wait(0.2)

    customers = threading.Thread(target=shop)
    customers.start()
    try:
        yield outcomes
    finally:
        enough.set()
        customers.join()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOP_WORKER", "1")  # so that it is put back
    return tmp_path


@pytest.mark.parametrize("victim", ["shop", "worker"])
@pytest.mark.timeout(600 + 3 * DOWN_SECONDS)
def test_every_selected_trace_arrives_once_and_nothing_else(victim: str, folder: Path) -> None:
    chance = random.Random(SEED)
    with ExitStack() as stack:
        scene = Scene(folder, stack, own_worker=victim == "worker")
        beacon = stack.enter_context(SimulatorClient(scene.beacon_url))
        with shopping(scene) as outcomes:
            scene.commits()
            threading.Event().wait(chance.uniform(0, 0.3))
            scene.kill_and_start()
            scene.commits()
            beacon.patch(down=True)
            accepted = beacon.get()["counts"]["traces"]["accepted"]
            scene.commits()
            threading.Event().wait(chance.uniform(0, DOWN_SECONDS))
            scene.kill_and_start()
            threading.Event().wait(DOWN_SECONDS)
            scene.commits()
            wait_until(lambda: left(scene.box, "traces") > 0, PATIENCE, "nothing waited for beacon")
            assert beacon.get()["counts"]["traces"]["accepted"] == accepted
            beacon.patch(down=False)
        committed = scene.committed()
        wait_until(
            lambda: left(scene.box, "traces") == 0 and committed_arrived(scene, committed),
            PATIENCE,
            lambda: str(scene.box.status()),
        )
        state = beacon.get()["counts"]["traces"]
        bodies = [body["body"] for lane in ("traces", "metrics", "logs") for body in beacon.bodies(lane)]
        arrived = traces_arrived(scene.beacon_url)
    judge(committed, arrived, outcomes)
    assert state["conflicting_keys"] == state["keyless"] == 0
    assert found_on_the_wire(bodies) == set()
    assert {name: marks for name, marks in found_in_files(scene.home).items() if "outbox.db" in name} == {}
    assert any("path" in marks for marks in found_in_files(scene.home).values()), "the shop's own files must name them"
    print(
        f"\n{victim} killed {scene.kills} times, beacon down {DOWN_SECONDS:g} s, seed {SEED}: {len(outcomes)} requests,"
        f" {len({trace for trace, _ in committed})} traces told as committed, {len(arrived)} arrived,"
        f" {state['duplicate_requests']} requests came again under their key"
    )


def committed_arrived(scene: Scene, committed: list[tuple[str, str]]) -> bool:
    return set(committed) <= spans_in(traces_arrived(scene.beacon_url)).keys()


def spans_in(arrived: dict[str, list[Span]]) -> Counter[tuple[str, str]]:
    return Counter((span["traceId"], span["spanId"]) for spans in arrived.values() for span in spans)


def judge(committed: list[tuple[str, str]], arrived: dict[str, list[Span]], outcomes: list[Outcome]) -> None:
    """Every reported trace arrived, each span once; each trace that arrived is slow or failed, by its own spans and by
    the outcome of its request."""
    assert committed
    assert len(set(committed)) == len(committed)
    spans = spans_in(arrived)
    assert set(committed) <= spans.keys()
    assert set(spans.values()) == {1}
    for trace, its in arrived.items():
        assert is_selected(its), f"trace {trace} was neither slow nor failed"
    seen = {outcome.trace_id: outcome for outcome in outcomes}
    answered = [outcome for outcome in outcomes if outcome.status]
    unselected = {outcome.trace_id for outcome in answered if not outcome.failed and not outcome.slow}
    assert unselected
    assert unselected & arrived.keys() == set(), "a quick, good request left a trace"
    assert any(seen[trace].failed for trace in arrived if trace in seen)
    assert any(seen[trace].slow for trace in arrived if trace in seen)


def is_selected(spans: list[Span]) -> bool:
    """Whether a trace is slow or failed by its own spans. True if a kill cut off the root, which would show it."""
    roots = [span for span in spans if span["kind"] == SERVER]
    return (
        not roots
        or any(span.get("status", {}).get("code") == ERROR for span in spans)
        or seconds(roots[0]) > SLOW_SECONDS
    )


def seconds(span: Span) -> float:
    return (int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])) / 1e9
