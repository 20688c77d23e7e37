"""Simulates one lane over days of virtual time with the decisions of core. Beacon is a function of the request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from outbox.core.backoff import Backoff
from outbox.core.health import Health, LaneState, after, probing
from outbox.core.lane import Lane
from outbox.core.policy import Policy
from outbox.core.receipt import Answer, Failure, Receipt
from outbox.core.transition import Move, decide
from outbox.core.verdict import judge

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

POLICY = Policy()
TAKEN = Answer(200, {}, b'{"inserted_count": 1}')


@dataclass(frozen=True, slots=True)
class Request:
    """A batch of one entry in flight. Times are in µs."""

    sent: int
    lands: int
    probe: bool
    fresh: bool
    """Whether its entry was never refused."""


Beacon = Callable[[Request], Answer | Failure]
"""The result of a request at the time it ends."""


class LaneOverDays:
    """A lane that always has entries: at most ``senders`` requests in flight, one every ``every`` µs."""

    def __init__(
        self,
        beacon: Beacon,
        *,
        draws: Iterator[float],
        senders: int = 8,
        every: int = MINUTE,
        takes: int = SECOND // 20,
    ) -> None:
        self.beacon = beacon
        self.draws = draws
        self.senders = senders
        self.every = every
        self.takes = takes
        self.health = Health()
        self.now = 0
        self.answered: list[tuple[Request, Receipt]] = []
        self.deaths = 0
        self._flying: list[tuple[int, int, Request]] = []
        self._next_new = 0
        self._sent = 0

    def run(self, until: int, enough: Callable[[], bool] = lambda: False) -> None:
        """Advance the time to ``until``, or to the first answer after which ``enough`` is true."""
        while not enough():
            self._send_what_may_leave()
            landing = self._flying[0][0] if self._flying else until
            moment = min(landing, self._next_departure(), until)
            self.now = max(self.now, moment)
            if self._flying and landing <= moment:
                self._land(heappop(self._flying)[2])
            elif moment == until:
                return

    def _may_leave(self) -> bool:
        free = len(self._flying) < self.senders and self.health.may_send(self.now, POLICY.max_wait_us)
        return free and (self.health.state is LaneState.PAUSED or self._next_new <= self.now)

    def _send_what_may_leave(self) -> None:
        while self._may_leave():
            probe = self.health.state is LaneState.PAUSED
            fresh = self.health.fresh_first or not probe
            self._next_new = self.now + self.every
            self.health = probing(self.health, self.now, POLICY.lease_us)
            request = Request(self.now, self.now + self.takes, probe, fresh)
            self._sent += 1
            heappush(self._flying, (request.lands, self._sent, request))

    def _next_departure(self) -> int:
        if len(self._flying) == self.senders:
            return self._flying[0][0]
        if self.health.state is LaneState.PAUSED:
            assert self.health.next_probe_at is not None, "only mending opens a lane without a probe"
            return self.health.next_probe_at
        return self._next_new

    def _land(self, request: Request) -> None:
        receipt = judge(Lane.USAGE, 1, self.beacon(request), now=self.now / SECOND)
        backoff = Backoff(POLICY.backoff_base, POLICY.backoff_max, next(self.draws))
        died = self._dies_of(receipt, backoff)
        self.deaths += died
        self.health = after(self.health, receipt, died=died, probe=request.probe, now=self.now, backoff=backoff)
        self.answered.append((request, receipt))

    def _dies_of(self, receipt: Receipt, backoff: Backoff) -> bool:
        transition = decide(
            receipt,
            attempts=0,
            entries=1,
            ambiguous=False,
            attempts_limit=None,
            backoff=backoff,
            refusing=self.health.refusing,
        )
        return transition.move is Move.BURY
