"""The record of what the simulator received: ids, repetitions, Idempotency-Keys, and the answers.

Usage is counted by row id. Telemetry entries have no id on the wire: a telemetry request is identified by its
Idempotency-Key, or by the digest of its body where it has no key, and its items are counted once per such identity.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from outbox.core.lane import Lane
from outbox.simulator.encodings import decoded
from outbox.simulator.exchange import LANE_NAMES, VERIFY
from outbox.simulator.journal import JournalLine


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request as it arrived. ``status`` is 0 for a request that was not answered."""

    path: str
    headers: dict[str, str]
    """Names are lower-case; values that contain a secret are masked."""
    body: bytes = field(repr=False)
    status: int
    time: float
    """Epoch seconds."""

    @property
    def content(self) -> bytes:
        """The decoded body. Raises as ``encodings.decoded`` does."""
        return decoded(self.body, self.headers.get("content-encoding", ""))


Arrival = tuple[str, float]
"""Idempotency-Key and epoch seconds. All ids of a request share one tuple, which saves memory with a million ids."""


class _LaneRecord:
    def __init__(self, keep_bodies: int) -> None:
        self.requests = 0
        self.accepted = 0
        self.body_bytes = 0
        self.malformed = 0
        self.rows = 0
        self.unique = 0
        self.keyless = 0
        self.duplicate_requests = 0
        self.conflicting_keys = 0
        self.in_flight = 0
        self.peak_in_flight = 0
        self.statuses: Counter[int] = Counter()
        self.first: dict[str, Arrival] = {}
        self.again: dict[str, list[str]] = {}
        self.contents: dict[str, int] = {}
        self.attempts: dict[str, int] = {}
        self.bodies: deque[RecordedRequest] = deque(maxlen=keep_bodies)

    def arrived(self, id: str, arrival: Arrival) -> bool:
        """Record ``id``. Returns whether it is new."""
        if id in self.first:
            self.again.setdefault(id, []).append(arrival[0])
            return False
        self.first[id] = arrival
        return True

    def arrived_together(self, ids: Sequence[str], arrival: Arrival) -> int:
        """Record ``ids``. Returns how many are new. The usual case, all of them new, takes two calls into C."""
        together = dict.fromkeys(ids, arrival)
        if len(together) == len(ids) and self.first.keys().isdisjoint(ids):
            self.first.update(together)
            return len(ids)
        return sum([self.arrived(id, arrival) for id in ids])

    def keyed(self, key: str, content: int) -> None:
        """Record that ``key`` came with ``content``: a hash of what must be the same in every request with this key."""
        if not key:
            self.keyless += 1
        elif self.contents.setdefault(key, content) != content:
            self.conflicting_keys += 1

    def counts(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "accepted": self.accepted,
            "rows": self.rows,
            "unique": self.unique,
            "duplicates": len(self.again),
            "duplicate_requests": self.duplicate_requests,
            "conflicting_keys": self.conflicting_keys,
            "keyless": self.keyless,
            "malformed": self.malformed,
            "body_bytes": self.body_bytes,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
        }


class Received:
    """Everything that a simulator received. Safe to read from any thread."""

    def __init__(self, *, record_bodies: int = 0) -> None:
        self._record_bodies = record_bodies
        self._changed = threading.Condition()
        self.clear()

    def clear(self) -> None:
        with self._changed:
            self._lanes = {name: _LaneRecord(self._record_bodies) for name in LANE_NAMES}
            self._connections = 0
            self._garbage = 0
            self._followed = 0

    # -- for tests

    def counts(self) -> dict[str, Any]:
        """Counts as plain values: one dict per lane (verify too), and ``connections``, ``garbage``, ``followed``.

        rows: usage rows, data points, spans or log records in all accepted requests; unique: the same without
        repetitions; duplicates: ids (telemetry: requests) accepted more than once; duplicate_requests: accepted
        requests with a key accepted before; conflicting_keys: requests with a known key and other contents;
        statuses: answers by status ("0": not answered); in_flight: requests whose answer is delayed right now,
        peak_in_flight: their maximum (both need ``latency_ms``: otherwise each request is answered at once).
        """
        with self._changed:
            lanes = {name: lane.counts() for name, lane in self._lanes.items()}
            return {
                **lanes,
                "connections": self._connections,
                "garbage": self._garbage,
                "followed": self._followed,
            }

    def ids(self, lane: str = Lane.USAGE) -> dict[str, int]:
        """How often each id was accepted."""
        with self._changed:
            record = self._lanes[lane]
            return dict.fromkeys(record.first, 1) | {id: 1 + len(keys) for id, keys in record.again.items()}

    def duplicates(self, lane: str = Lane.USAGE) -> dict[str, list[str]]:
        """The Idempotency-Keys, in order of arrival, of each id that was accepted more than once."""
        with self._changed:
            record = self._lanes[lane]
            return {id: [record.first[id][0], *keys] for id, keys in record.again.items()}

    def arrivals(self, lane: str = Lane.USAGE) -> dict[str, float]:
        """When each id was first accepted, in epoch seconds."""
        with self._changed:
            return {id: time for id, (_, time) in self._lanes[lane].first.items()}

    def attempts(self, id: str) -> int:
        """``num_failed_send_attempts`` of a usage row when it was last accepted; 0 for an unknown id."""
        with self._changed:
            return self._lanes[Lane.USAGE].attempts.get(id, 0)

    def bodies(self, lane: str = Lane.USAGE) -> list[RecordedRequest]:
        """The last ``record_bodies`` requests, including refused ones, oldest first."""
        with self._changed:
            return list(self._lanes[lane].bodies)

    def unique(self, lane: str = Lane.USAGE) -> int:
        with self._changed:
            return self._lanes[lane].unique

    def wait_for(self, holds: Callable[[Received], bool], timeout: float) -> bool:
        """Whether ``holds(self)`` becomes true within ``timeout`` seconds; it is evaluated after every request."""
        with self._changed:
            return self._changed.wait_for(lambda: holds(self), timeout)

    # -- for the endpoints

    def accept_verify(self) -> None:
        with self._changed:
            self._lanes[VERIFY].accepted += 1

    def accept_usage(self, key: str, ids: Sequence[str], attempts: Sequence[int], *, now: float) -> int:
        """Record the rows of one request, given as two columns of equal length. Returns how many ids are new."""
        with self._changed:
            lane = self._lanes[Lane.USAGE]
            new = lane.arrived_together(ids, (key, now))
            if lane.attempts or any(attempts):
                lane.attempts.update(zip(ids, attempts, strict=True))
            lane.accepted += 1
            lane.rows += len(ids)
            lane.unique += new
            lane.duplicate_requests += bool(key) and key in lane.contents
            lane.keyed(key, hash(tuple(ids)))
            return new

    def accept_telemetry(self, name: Lane, key: str, body: bytes, items: int, *, now: float) -> None:
        digest = hashlib.sha256(body).digest()
        with self._changed:
            lane = self._lanes[name]
            new = lane.arrived(key or f"sha256:{digest.hex()}", (key, now))
            lane.accepted += 1
            lane.rows += items
            lane.unique += items if new else 0
            lane.duplicate_requests += not new
            lane.keyed(key, hash(digest))

    def restore(self, lines: Iterable[JournalLine]) -> None:
        """Record the ids of an earlier run from its journal, without counting its requests."""
        with self._changed:
            for line in lines:
                lane = self._lanes[line.lane]
                lane.unique += lane.arrived_together(line.ids, (line.key, line.t))
                if line.key:
                    lane.contents.setdefault(line.key, hash(tuple(line.ids)))

    def answered(self, name: str, request: RecordedRequest, *, malformed: bool) -> None:
        """Record a request and its answer, and wake the threads in ``wait_for``."""
        with self._changed:
            lane = self._lanes[name]
            lane.requests += 1
            lane.body_bytes += len(request.body)
            lane.malformed += malformed
            lane.statuses[request.status] += 1
            lane.bodies.append(request)
            self._changed.notify_all()

    def held(self, name: str) -> Callable[[], None]:
        """Count a request whose answer is delayed as in flight. Call the result when the request is over."""
        lane = self._lanes[name]
        lane.in_flight += 1
        lane.peak_in_flight = max(lane.peak_in_flight, lane.in_flight)

        def let_go() -> None:
            lane.in_flight -= 1

        return let_go

    def connected(self) -> None:
        self._connections += 1

    def garbage(self) -> None:
        with self._noting():
            self._garbage += 1

    def followed(self) -> None:
        with self._noting():
            self._followed += 1

    @contextmanager
    def _noting(self) -> Iterator[None]:
        with self._changed:
            yield
            self._changed.notify_all()
