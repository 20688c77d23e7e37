"""The simulator as a blocking command."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outbox.simulator.faults import Faults
from outbox.simulator.server import Simulator


def run_simulator(
    host: str = "127.0.0.1",
    port: int = 0,
    license: str | None = None,
    faults: Faults | None = None,
    ready: Callable[[str], None] | None = None,
    *,
    journal: Path | None = None,
    strict: bool = True,
    record_bodies: int = 0,
) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM, and return the counts. Call it from the main thread: it sets signal handlers.

    license: None accepts every licence. ready: called with the URL when the simulator listens.
    """
    stop = threading.Event()
    simulator = Simulator(
        port, host, license=license, any_license=license is None, strict=strict, journal=journal,
        record_bodies=record_bodies,
        **(faults.as_dict() if faults else {}),
    )  # fmt: skip
    before = {each: signal.signal(each, lambda *_: stop.set()) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with simulator:
            if ready is not None:
                ready(simulator.url)
            stop.wait()
            return {**simulator.received.counts(), "fired": dict(simulator.faults.fired)}
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    license: str | None = None,
    faults: Faults | None = None,
    *,
    journal: Path | None = None,
    strict: bool = True,
    record_bodies: int = 0,
) -> None:
    """``outbox beacon``: prints one line on stderr when it listens, and the counts as JSON on stdout at the end."""

    def ready(url: str) -> None:
        sys.stderr.write(f"beacon simulator on {url}\n")
        sys.stderr.flush()

    counts = run_simulator(
        host, port, license, faults, ready, journal=journal, strict=strict, record_bodies=record_bodies
    )
    sys.stdout.write(json.dumps(counts) + "\n")
    sys.stdout.flush()
