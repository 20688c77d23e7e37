"""The peers: each a program in an environment of its own, told what to do by JSON and answering by JSON."""

from __future__ import annotations

import json
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.known import folder_of
from benchmarks.peers import environment
from benchmarks.peers.columns import Measure, Values, waiting
from benchmarks.peers.storage import settled_bytes
from benchmarks.places import Beacon, Places
from benchmarks.rows import prepared

START_SECONDS = 30.0
ANSWER_SECONDS = 300.0
ARRIVAL_SECONDS = 60.0


@dataclass(frozen=True)
class Peer:
    """``rows``: how many a round of the quick profile measures, by column; it cannot do a column that is not there.

    A slow peer is given fewer rows: what is compared is rows a second, or bytes a row.
    """

    name: str
    database: str
    rows: Mapping[str, int]
    variant: str = ""
    """Another way to do a column with the same peer: what its program calls it."""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.variant}" if self.variant else self.name

    def key(self, column: str) -> str:
        return f"peers/{self.variant or column}/{self.database}/{self.name}"


STORED = {"kept": 200_000, "deleted": 200_000}

PEERS = (
    Peer(
        "txoutbox",
        "postgresql",
        {"enqueue": 1000, "bulk": 5000, "drain": 10_000, "post": 5000, "latency": 400} | STORED,
    ),
    Peer("txoutbox", "postgresql", {"post": 20_000}, "coalesced"),
    Peer(
        "pgqueuer",
        "postgresql",
        # It keeps no row that was delivered, so there is no "kept"; its log of jobs stays in both.
        {"enqueue": 1000, "bulk": 20_000, "drain": 10_000, "post": 4000, "latency": 400, "deleted": 200_000},
    ),
    Peer("pgqueuer", "postgresql", {"post": 10_000}, "coalesced"),
    Peer(
        "procrastinate",
        "postgresql",
        {"enqueue": 500, "bulk": 3000, "drain": 600, "post": 600, "latency": 400, "kept": 20_000, "deleted": 20_000},
    ),
    Peer("huey", "sqlite", {"enqueue": 1000, "drain": 1000, "post": 1000, "latency": 400}),
    Peer("persist-queue", "sqlite", {"enqueue": 1000, "drain": 5000, "post": 3000, "latency": 400}),
    Peer("persist-queue", "sqlite", {"post": 10_000}, "coalesced"),
)


def measure(places: Places, beacon: Beacon, peer: Peer, column: str, rows: int, rate: int) -> Measure:
    how: Callable[..., Values] = {"latency": _latency, "kept": _storage, "deleted": _storage}.get(column, _speed)

    def measured() -> Values:
        beacon.control.reset()
        return how(places, beacon, peer, column, rows, rate)

    return measured


def _speed(places: Places, beacon: Beacon, peer: Peer, column: str, rows: int, _rate: int) -> Values:
    with places.fresh(peer.database) as url, _prepared(rows) as (_, file):
        answer = _ask(peer, _job(peer.variant or column, url, file, beacon))
        _check(peer, answer, rows, beacon if column == "post" else None)
    return {column: rows / answer["seconds"]}


def _storage(places: Places, beacon: Beacon, peer: Peer, column: str, rows: int, _rate: int) -> Values:
    """Bytes a row beyond the empty tables, after all were delivered and VACUUM has run."""
    with places.fresh(peer.database) as url:
        with _prepared(0) as (_, file):
            _ask(peer, _job("enqueue", url, file, beacon))
        empty = settled_bytes(url)
        with _prepared(rows) as (_, file):
            _check(peer, _ask(peer, _job("drain", url, file, beacon, delete=column == "deleted")), rows)
        return {column: (settled_bytes(url) - empty) / rows}


def _latency(places: Places, beacon: Beacon, peer: Peer, _column: str, rows: int, rate: int) -> Values:
    """A producer in one process, a worker in another."""
    with places.fresh(peer.database) as url, _prepared(rows) as (ids, file):
        with _prepared(0) as (_, nothing):
            _ask(peer, _job("enqueue", url, nothing, beacon))  # makes the tables
        with _working(peer, _job("work", url, file, beacon)):
            committed = _ask(peer, _job("produce", url, file, beacon, rate=rate))["committed"]
            _until_received(peer, beacon, rows)
        arrivals = beacon.control.arrivals()
    return waiting([arrivals[id] - at for id, at in zip(ids, committed, strict=True)])


@contextmanager
def _prepared(rows: int) -> Iterator[tuple[Sequence[str], str]]:
    """The ids, and the file of payloads that a program reads."""
    made = prepared(rows)
    with tempfile.NamedTemporaryFile("w", prefix="outbox-bench-", suffix=".rows") as file:
        file.write("\n".join([payload for _, payload in made]))
        file.flush()
        yield [str(id) for id, _ in made], file.name


def _job(do: str, url: str, rows: str, beacon: Beacon, **more: Any) -> dict[str, Any]:
    database = str(folder_of(url)) if url.startswith("sqlite") else url.replace("+psycopg", "", 1)
    job = {"do": do, "database": database, "rows": rows, "beacon": beacon.url, "license": beacon.license}
    return job | more


def _command(peer: Peer, job: Mapping[str, Any]) -> list[str]:
    program = Path(__file__).with_name(f"{peer.name.replace('-', '_')}_peer.py")
    return [str(environment.interpreter()), str(program), json.dumps(job)]


def _ask(peer: Peer, job: Mapping[str, Any]) -> dict[str, Any]:
    done = subprocess.run(_command(peer, job), capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(f"{peer.label} could not {job['do']}:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@contextmanager
def _working(peer: Peer, job: Mapping[str, Any]) -> Iterator[None]:
    with tempfile.TemporaryFile("w+") as errors:
        worker = subprocess.Popen(_command(peer, job), stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert worker.stdout is not None
            ready, _, _ = select.select([worker.stdout], [], [], START_SECONDS)
            if not ready or worker.stdout.readline() != "ready\n":
                raise RuntimeError(f"the worker of {peer.label} did not start")
            yield
        except RuntimeError as error:
            errors.seek(0)
            raise RuntimeError(f"{error}; its worker says:\n{errors.read()[-3000:]}") from error
        finally:
            worker.kill()  # what it holds is in its database, which is dropped
            worker.communicate()


def _until_received(peer: Peer, beacon: Beacon, rows: int) -> None:
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while (received := beacon.counts["usage"]["unique"]) < rows:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{peer.label} delivered {received} of {rows} rows")
        time.sleep(0.02)


def _check(peer: Peer, answer: Mapping[str, Any], rows: int, beacon: Beacon | None = None) -> None:
    """By the beacon's own record where it was posted to: a handler that fails may be logged and forgotten."""
    received = rows if beacon is None else beacon.counts["usage"]["unique"]
    if not answer["rows"] == received == rows:
        raise RuntimeError(f"{peer.label} says {answer['rows']} of {rows} rows, beacon received {received}")
