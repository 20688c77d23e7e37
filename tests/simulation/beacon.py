"""A simulated beacon: every kind of answer and of silence, each judged by core's own table."""

from __future__ import annotations

import json
from uuid import UUID

from outbox.core.batch import Batch
from outbox.core.lane import LANES, Lane
from outbox.core.receipt import Answer, Failure, Receipt
from outbox.core.verdict import judge
from tests.simulation.scenario import Outage, Scenario
from tests.simulation.world import MILLISECOND, SECOND, World

JSON = {"content-type": "application/json"}


class Beacon:
    """Remembers the rows that it took, by payload, and the idempotency keys. A worker learns of them
    only through the answers."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self.world, self.scenario = world, scenario
        self.healed = False
        self.poison: set[str] = set()
        """Payloads of rows that it refuses."""
        self.killers: set[str] = set()
        """Payloads of rows that crash the worker that sends them, until beacon is healed."""
        self.received: dict[str, int] = {}
        """How often each row was taken, by payload."""
        self.requests: dict[Lane, int] = dict.fromkeys(Lane, 0)
        self._took = False
        self._keys: set[UUID] = set()
        self._judged: dict[tuple[Lane, int, object], Receipt] = {}

    def outage(self) -> Outage | None:
        return None if self.healed else self.scenario.outage_at(self.world.now)

    def post(self, batch: Batch) -> tuple[Receipt, int, bool]:
        """The receipt that the transport returns, the time that takes in µs, and whether beacon took the rows."""
        self.requests[batch.lane] += 1
        self._took = False
        answer, took = self._answer(batch)
        return self._judge(batch, answer), took, self._took

    def _answer(self, batch: Batch) -> tuple[Answer | Failure, int]:
        world, outage = self.world, self.outage()
        quick = world.between(5 * MILLISECOND, 300 * MILLISECOND)
        timeout = int(self.scenario.policy.request_timeout * SECOND)
        if outage is not None:
            return self._out(outage.kind, batch, timeout if world.happens(0.5) else quick)
        if not self.healed and world.happens(self.scenario.blip):
            return self._blip(batch), quick
        if self.scenario.body_limit is not None and batch.rows > self.scenario.body_limit:
            return _status(413), quick
        if not self.poison.isdisjoint(batch.payloads):
            return _status(422 if batch.lane is Lane.USAGE else 400), quick
        if batch.id in self._keys and batch.lane is Lane.USAGE and world.happens(0.3):
            return Answer(409, JSON, b'{"error": "duplicate batch"}'), quick
        new = self._take(batch)
        if not self.healed and world.happens(self.scenario.lost):
            return Failure.LOST, timeout if world.happens(0.5) else quick
        return _taken(batch.lane, new), quick

    def _out(self, kind: str, batch: Batch, took: int) -> tuple[Answer | Failure, int]:
        match kind:
            case "no_connection":
                return Failure.NOT_SENT, took
            case "silence":
                if self.world.happens(0.3) and self.poison.isdisjoint(batch.payloads):
                    self._take(batch)
                return Failure.LOST, took
            case "429":
                wait = self.world.chance.choice((1, 30, 600, 9000))
                return Answer(429, {**JSON, "retry-after": str(wait)}, b"{}"), took
            case "html":
                return Answer(200, {"content-type": "text/html"}, b"<html>Welcome to the airport</html>"), took
            case _:
                return _status(int(kind)), took

    def _blip(self, batch: Batch) -> Answer | Failure:
        kind = self.world.chance.randrange(8)
        if kind < 4:
            if not self.poison.isdisjoint(batch.payloads):
                return _status(400)
            self._take(batch)
        match kind:
            case 0:
                return Answer(200, JSON, b'{"inserted', truncated=True)
            case 1:
                return Answer(200, JSON, json.dumps({"inserted_count": batch.rows + 1}).encode())
            case 2:
                return _status(502)
            case 3 | 4:
                return Failure.LOST
            case 5:
                return Answer(429, {**JSON, "retry-after": "20"}, b"{}")
            case 6:
                return Failure.NOT_SENT
            case _:
                return _status(503)

    def _take(self, batch: Batch) -> int:
        """Store the rows and the key; returns how many of the rows are new to beacon."""
        self._took = True
        self._keys.add(batch.id)
        new = 0
        for payload in batch.payloads:
            times = self.received.get(payload, 0)
            self.received[payload] = times + 1
            new += not times
        return new

    def _judge(self, batch: Batch, answer: Answer | Failure) -> Receipt:
        said = (
            answer if isinstance(answer, Failure) else (answer.status, answer.body, answer.headers.get("retry-after"))
        )
        known = (batch.lane, batch.rows, said)
        if known not in self._judged:
            self._judged[known] = judge(batch.lane, batch.rows, answer, now=0)
        return self._judged[known]


def _status(status: int) -> Answer:
    return Answer(status, JSON, b"{}")


def _taken(lane: Lane, new: int) -> Answer:
    document = {"inserted_count": new} if LANES[lane].billing else {}
    return Answer(200, JSON, json.dumps(document).encode())
