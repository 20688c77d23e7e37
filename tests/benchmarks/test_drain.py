"""What the benchmarks of drain take for the worker's is the worker's."""

from __future__ import annotations

from pathlib import Path

from benchmarks.drain import WorkerProcess
from benchmarks.places import Beacon, fill, outbox_in, settings

BALLAST_BYTES = 512 * 2**20


def test_the_memory_of_a_worker_is_not_that_of_the_process_which_started_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/outbox.db"
    with Beacon() as beacon, outbox_in(url, settings(beacon)) as box:
        fill(box, 10)
        ballast = b"x" * BALLAST_BYTES  # resident: it is written
        worker = WorkerProcess(url, beacon.url)
        worker.start()
        drained = worker.wait()
    assert drained.sent == 10
    assert drained.peak_bytes < len(ballast)
