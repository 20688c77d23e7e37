"""How many requests a second a lane may begin, once beacon has shown that it counts them.

    429, and soon again although some were taken between ──▶ there is a limit: search for it
    all taken at this pace for a while                   ──▶ proven: half way up to the lowest that was refused
    429                                                  ──▶ refused: half way down to the highest that was proven
    the two are close                                    ──▶ hold what is proven; after half a minute try a little more
    refused what was proven, or nothing refused lately   ──▶ a step down, or up; each three times the one before
    429 to the first or second step up                   ──▶ hold what is proven, and try again after twice the time
    three steps up were all taken                        ──▶ there is no limit

Every 429 costs the pause that it asks for, in which beacon would have taken what it now does not. A pace that rises
until it is refused and then falls, as a congestion window does, would pay that every few seconds; a bisection pays half
a dozen times, and then once for each look whether the limit has risen, which come ever more seldom. A 429 to the first
request after a pause says that the pause was short, and nothing of the pace. A beacon that is strict, and lets nothing
be saved up for later, refuses the second of two requests that come too close: there few requests prove a pace. Like the
number of senders, the pace is each worker's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from outbox.core.receipt import Receipt, Verdict

TOO_MANY_REQUESTS = 429
SOON_SECONDS = 30.0
"""Between two 429s that are taken for a limit."""
WIDE = 64.0
"""The search begins between the mean taken between the first two 429s and so many times as much."""
CLOSE = 1.04
"""Between proven and refused: close enough to hold."""
PROOF_REQUESTS, PROOF_SECONDS = 8, 1.5
"""All taken for so long at a pace prove it."""
MARGIN = 3
"""Beyond the limit a pace is proven by so many times as many more requests as can be saved up, and one."""
STRICT, STRICT_PROOF_REQUESTS = 1, 4
"""A beacon that after a pause took no more than so many before it refused lets nothing be saved up: so few prove."""
IN_USE = 0.85
"""Of the pace: with less under way the pace is not what is tried."""
HOLD_SECONDS, HOLD_MAX_SECONDS = 30.0, 600.0
LONGEST_STEP = 2.0
PAUSE_SECONDS = 1.0
"""What a 429 costs about. A held pace that is refused after n times as long is not lowered by more than 1/n."""
LEAST_RATE = 1.0
"""Below it the pause that each 429 asks for is pace enough, and 429s without rule or reason must not stop a lane."""
BURST_SECONDS = 0.05
"""What was not begun in time is made up for, as far as this goes back."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Paces in requests a second, times in seconds of one monotonic clock."""

    rate: float = math.inf
    proven: float = 0.0
    refused: float = math.inf
    since: float = -math.inf
    """When this pace was set, and then when the first request left at it."""
    begun: bool = False
    """A request has left at this pace."""
    taken: int = 0
    """Requests delivered at this pace."""
    streak: int = 0
    """Requests delivered since the last 429, at any pace."""
    saved: float = math.inf
    """The shortest streak that a 429 has ended: more than that cannot be saved up in a pause."""
    usual: float = math.inf
    """Seconds that an answer takes: the least, and slowly what it takes now."""
    step: float = CLOSE
    hold: float = HOLD_SECONDS
    next_at: float = -math.inf
    """When the next request may leave."""

    def wait(self, now: float) -> float:
        """Seconds until a request may leave."""
        return max(0.0, self.next_at - now)

    def room(self, now: float, most: int) -> int:
        """How many requests may leave now, of ``most``."""
        if not self.limited:
            return most
        if now < self.next_at:
            return 0
        if self.held and not self.begun:  # after a pause two at once would use up what is saved up for a late one
            return min(most, 1)
        return min(most, 1 + int(min(now - self.next_at, BURST_SECONDS) * self.rate))

    @property
    def limited(self) -> bool:
        return self.rate < math.inf

    @property
    def strict(self) -> bool:
        """Beacon lets nothing be saved up."""
        return self.saved <= STRICT

    @property
    def held(self) -> bool:
        """The limit is found."""
        return self.proven > 0 and self.refused <= CLOSE * self.proven


def left(pace: Pace, now: float, requests: int) -> Pace:
    """``requests`` have begun."""
    if not pace.limited:
        return pace
    next_at = max(pace.next_at + requests / pace.rate, now + 1 / pace.rate)
    return replace(pace, next_at=next_at, begun=True, since=pace.since if pace.begun else now)


def after(pace: Pace, receipt: Receipt, *, left_at: float, now: float) -> Pace:
    """The pace after one answer. What left before this pace was tried says nothing of it."""
    if left_at < pace.since:
        return pace
    if receipt.status == TOO_MANY_REQUESTS:
        return _refused(pace, now)
    if receipt.verdict is Verdict.DELIVERED:
        pace = _timed(pace, left_at, now)
        return _taken(replace(pace, taken=pace.taken + 1, streak=pace.streak + 1), left_at, now)
    return pace


def _timed(pace: Pace, left_at: float, now: float) -> Pace:
    """A late answer may be to a request that arrived late. Of a strict beacon the next keeps its distance from that."""
    seconds = now - left_at
    late = seconds - pace.usual
    next_at = max(pace.next_at, left_at + late + 1 / pace.rate) if pace.strict else pace.next_at
    return replace(pace, usual=pace.usual + late / 8 if late > 0 else seconds, next_at=next_at)


def _refused(pace: Pace, now: float) -> Pace:
    if pace.taken == pace.streak == 0:
        return replace(pace, since=now, begun=False, streak=0)
    pace = replace(pace, streak=0, saved=min(pace.saved, pace.streak))
    if not pace.limited:
        if now - pace.since > SOON_SECONDS:
            return replace(pace, since=now, taken=0)
        mean = pace.taken / (now - pace.since)
        return _next(replace(pace, proven=mean, refused=WIDE * mean), now)
    if pace.rate <= pace.proven:
        step = min(pace.step, 1 + PAUSE_SECONDS / max(now - pace.since, PAUSE_SECONDS))
        return _next(replace(pace, proven=0.0, refused=pace.rate, step=step), now)
    if pace.refused < math.inf:
        return _next(replace(pace, refused=pace.rate), now)
    refused = pace.rate if pace.step == LONGEST_STEP else CLOSE * pace.proven  # not far beyond: hold what is proven
    return _next(replace(pace, refused=refused, hold=min(2 * pace.hold, HOLD_MAX_SECONDS)), now)


def _taken(pace: Pace, left_at: float, now: float) -> Pace:
    seconds = now - pace.since
    if not pace.limited or not _proof(pace, seconds):
        return pace
    if pace.taken < IN_USE * pace.rate * seconds:
        return replace(pace, since=now - seconds / 2, taken=pace.taken // 2)
    if pace.held:
        return pace if seconds < pace.hold else _next(replace(pace, refused=math.inf), now)
    if pace.refused == math.inf and pace.step == LONGEST_STEP:
        return Pace()
    hold = HOLD_SECONDS if pace.refused == math.inf else pace.hold
    return _next(replace(pace, proven=max(pace.proven, _real(pace, left_at)), hold=hold), now)


def _proof(pace: Pace, seconds: float) -> bool:
    """Whether what was taken at this pace, ``seconds`` since the first request at it, is enough to prove it."""
    beyond = pace.taken - 1 - pace.proven * seconds
    if pace.refused == math.inf and seconds < HOLD_SECONDS and beyond <= MARGIN * (pace.saved + 1):
        return False  # a little beyond the limit what was saved up lasts for a while
    if pace.strict and not pace.held:
        return pace.taken >= STRICT_PROOF_REQUESTS
    return pace.taken >= PROOF_REQUESTS and seconds >= PROOF_SECONDS


def _real(pace: Pace, left_at: float) -> float:
    """What is proven, requests a second. They leave a little late, never early: a strict beacon has taken what they
    came to, not what was meant."""
    if not pace.strict or left_at <= pace.since:
        return pace.rate
    return min(pace.rate, (pace.taken - 1) / (left_at - pace.since))


def _next(pace: Pace, now: float) -> Pace:
    """What to try between, below or above what is known."""
    step = min(pace.step**3, LONGEST_STEP)
    if pace.held:
        rate, step = pace.proven, CLOSE
    elif pace.proven == 0:
        rate = pace.refused / pace.step
    elif pace.refused == math.inf:
        rate = pace.proven * pace.step
    else:
        rate, step = math.sqrt(pace.proven * pace.refused), CLOSE
    return replace(pace, rate=max(LEAST_RATE, rate), step=step, since=now, begun=False, taken=0)
