"""The course of the demo, with its progress on the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from outbox import Outbox, Settings
from outbox.demo.picture import Timeline, draw
from outbox.demo.producers import Producers
from outbox.demo.tally import tally
from outbox.simulator import Simulator

LOOK_SECONDS = 0.1
LANES = ("usage", "metrics", "traces")
START_SECONDS = 30.0
"""Upper bound for the start of the worker's process; the timed phases begin at its first delivery."""
DRAIN_SECONDS = 60.0
"""Upper bound for what waits at the end: what a slow machine has not delivered by then is called lost."""


def run(folder: Path | None = None, *, seconds: float = 12.0) -> int:
    """Run the demo in ``folder`` (a new temporary one by default). Returns 0, or 1 if an entry was lost.

    seconds: about how long the producers write after the first delivery; the outage takes a third of it.
    """
    folder = folder or Path(tempfile.mkdtemp(prefix="outbox-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.print(f"working in {folder}", soft_wrap=True, highlight=False)
    with Simulator() as beacon:
        settings = Settings(
            database_url=f"sqlite:///{folder}/outbox.db", beacon_url=beacon.url, license_key=beacon.license
        )
        with Outbox(settings=settings) as box:
            box.migrate()
            story = Story(box, beacon, folder, console)
            try:
                story.play(seconds)
            finally:
                story.close()
            result = tally(story.producers, beacon)
    draw(story.timeline, result.lost, folder / "demo.png")
    console.print(result.table())
    console.print(f"picture: {folder / 'demo.png'}", soft_wrap=True, highlight=False)
    return 1 if result.lost else 0


class Story:
    """The beacon, the producers and the worker's process, and the timeline of the run."""

    def __init__(self, box: Outbox, beacon: Simulator, folder: Path, console: Console) -> None:
        self.beacon = beacon
        self.folder = folder
        self.console = console
        self.producers = Producers(box)
        self.timeline = Timeline()
        self._began = time.monotonic()
        self._worker = self._start_worker()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def play(self, seconds: float) -> None:
        with self._live or nullcontext():
            self._tell("producers write, the worker delivers")
            self.producers.start()
            self._watch(START_SECONDS, until=lambda: self._delivered() > 0)
            self._watch(seconds / 4)
            self._outage(seconds / 3)
            self._watch(seconds / 6)
            self._crash()
            self._watch(seconds / 4)
            self.producers.stop()
            self._tell("the producers are done; what waits is drained")
            self._watch(DRAIN_SECONDS, until=lambda: self._delivered() >= self.producers.total)

    def close(self) -> None:
        self.beacon.faults.clear()
        self._worker.terminate()
        try:
            self._worker.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.wait()
        self.producers.stop()

    def _outage(self, seconds: float) -> None:
        self._tell("beacon is down")
        began = self._now()
        self.beacon.faults.down = True
        self._watch(seconds)
        self.beacon.faults.down = False
        self.timeline.outage = (began, self._now())
        self._tell("beacon is back")

    def _crash(self) -> None:
        """Kill the worker after beacon accepted a request and before it answered: the worst moment."""
        self.beacon.faults.latency_ms = 1500.0
        self._watch(LOOK_SECONDS)
        before = self.beacon.received.unique("usage")
        self._watch(5.0, until=lambda: self.beacon.received.unique("usage") > before)
        self._worker.kill()
        self._worker.wait()
        self.timeline.killed = self._now()
        self.beacon.faults.latency_ms = 0.0
        self._tell("the worker was killed while a request was on the wire; another starts")
        self._worker = self._start_worker()

    def _start_worker(self) -> subprocess.Popen[bytes]:
        own = {
            "OUTBOX_DATABASE_URL": f"sqlite:///{self.folder}/outbox.db",
            "OUTBOX_BEACON_URL": self.beacon.url,
            "OUTBOX_LICENSE_KEY": self.beacon.license,
            "OUTBOX_LEASE_SECONDS": "4",
            "OUTBOX_REQUEST_TIMEOUT": "2",
            "OUTBOX_BACKOFF_MAX": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "outbox.demo.worker"],
            cwd=self.folder,
            env={**os.environ, **own},
        )

    def _watch(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Sample the timeline and update the display for ``seconds``, or until ``until()`` is true."""
        deadline = time.monotonic() + seconds
        while True:
            self.timeline.note(self._now(), self.producers.total, self._delivered())
            self._show()
            if until() or time.monotonic() >= deadline:
                return
            time.sleep(LOOK_SECONDS)

    def _delivered(self) -> int:
        return sum(self.beacon.received.unique(lane) for lane in LANES)

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _line(self, what: str) -> str:
        return f"{self._now():5.1f} s  {self.producers.total:6,} committed  {self._delivered():6,} delivered  {what}"

    def _tell(self, what: str) -> None:
        self.console.print(self._line(what), highlight=False, soft_wrap=True)

    def _show(self) -> None:
        if self._live is not None:
            waiting = self.producers.total - self._delivered()
            self._live.update(Text(self._line(f"{max(waiting, 0):,} waiting")), refresh=True)
