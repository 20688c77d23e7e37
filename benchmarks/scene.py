"""The processes of a long benchmark: producers, ``outbox worker`` and the simulator; and a thread that samples them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from benchmarks.children import OutboxWorker, Producer
from benchmarks.known import folder_of
from benchmarks.places import Beacon, Places, outbox_in, settings
from benchmarks.records import Commits, count_commits, read_commits
from benchmarks.watch import SAMPLE_SECONDS, Watch
from outbox import Outbox

_SIZES = {
    "postgresql": "SELECT pg_database_size(current_database())",
    "mariadb": "SELECT sum(file_size) FROM information_schema.innodb_sys_tablespaces"
    " WHERE name LIKE concat(database(), '/%')",
}


@dataclass(frozen=True)
class Scene:
    kind: str
    beacon: Beacon
    worker: OutboxWorker
    producers: Sequence[Producer]
    watch: Watch

    def go(self, rate: float, rows: int) -> None:
        """All producers together commit ``rate`` rows/s, ``rows`` at a time."""
        for producer in self.producers:
            producer.go(rate / len(self.producers), rows)

    def end(self, seconds: float) -> None:
        """Pause the producers, wait at most ``seconds`` for the backlog to be delivered, and end the sampling."""
        for producer in self.producers:
            producer.rest()
        self.until_depth(0, seconds)
        self.watch.close()
        if left := self.depth():
            print(
                f"{self.kind}: {left} rows still wait; the worker's log ends:\n{self.worker.last_words()}", flush=True
            )

    def until_depth(self, rows: int, seconds: float) -> None:
        """Wait until at most ``rows`` rows wait, but no longer than ``seconds``: a backlog shows in the figures."""
        deadline = time.monotonic() + seconds
        while self.depth() > rows and time.monotonic() < deadline:
            time.sleep(0.05)

    def depth(self) -> int:
        """The number of rows committed but not received."""
        warm = len(self.producers)  # each producer committed one warm-up row that is not recorded
        committed = sum(count_commits(producer.record) for producer in self.producers)
        return committed + warm - int(self.beacon.counts["usage"]["unique"])

    def commits(self) -> Commits:
        return read_commits([producer.record for producer in self.producers])


@contextmanager
def scene(
    places: Places, kind: str, *, producers: int = 1, sample_seconds: float = SAMPLE_SECONDS, **worker: Any
) -> Iterator[Scene]:
    """Start all processes and wait until they are ready. ``worker``: settings that differ from the defaults."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outbox-bench-")))
        beacon = stack.enter_context(Beacon())
        url = stack.enter_context(places.fresh(kind))
        box = stack.enter_context(outbox_in(url, settings(beacon)))
        delivering = OutboxWorker(url, beacon.url, folder, **worker)
        stack.callback(delivering.close)
        writing: list[Producer] = []
        for number in range(producers):
            writing.append(Producer(kind, url, folder / f"commits-{number}"))
            stack.callback(writing[-1].close)
        for producer in writing:
            producer.expect(producer.ready)
        delivering.expect(delivering.ready)
        pids = {"worker": delivering.pid, "producer": writing[0].pid}
        watch = stack.enter_context(Watch(beacon, box, pids, _size_of(kind, url, box), sample_seconds))
        yield Scene(kind, beacon, delivering, writing, watch)


def _size_of(kind: str, url: str, box: Outbox) -> Callable[[], float]:
    """A function that returns the size of the database on disk in MiB."""
    if kind == "sqlite":
        folder = folder_of(url)
        return lambda: sum(file.stat().st_size for file in folder.glob("outbox.db*")) / 2**20

    def size() -> float:
        with box.engine.connect() as connection:
            return float(connection.execute(text(_SIZES[kind])).scalar_one() or 0) / 2**20

    return size
