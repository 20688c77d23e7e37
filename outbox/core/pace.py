"""Client-side rate limit: how many requests a second a lane may begin, once beacon's 429s show a limit of its own.

    two 429s in SOON_SECONDS, with deliveries between ──▶ there is a limit: begin the search
    all delivered at this rate for a while            ──▶ proven: try half way up to the lowest refused rate
    429                                               ──▶ refused: try half way down to the highest proven rate
    proven and refused are close                      ──▶ hold the proven rate; after HOLD_SECONDS try a little more
    the proven rate is refused, or a hold has passed  ──▶ a step down, or up; each step is three times the one before
    429 at the first or second step up                ──▶ hold the proven rate, and try again after twice the time
    all delivered at the third step up                ──▶ there is no limit any more

Every 429 costs the pause that it asks for, in which beacon would have accepted requests. Additive increase with
multiplicative decrease, as in a congestion window, would pay that every few seconds. A bisection pays it half a dozen
times, and then once for each attempt to find that the limit has risen; those become ever rarer. A 429 to the first
request after a pause means that the pause was too short, and says nothing about the rate.

Most rate limiters are token buckets and allow a burst after a pause. A strict one allows none and refuses the second of
two requests that come too close together, so few requests prove a rate there. Like the concurrency limit, the rate is
each worker's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from outbox.core.receipt import Receipt, Verdict

TOO_MANY_REQUESTS = 429
SOON_SECONDS = 30.0
"""Two 429s within this time, with a delivery between them, mean that beacon limits the rate."""
WIDE = 64.0
"""The search begins between the mean rate delivered between those two 429s and this multiple of it."""
CLOSE = 1.04
"""The search ends when ``refused`` is at most this multiple of ``proven``."""
PROOF_REQUESTS, PROOF_SECONDS = 8, 1.5
"""A rate is proven by at least this many deliveries at it, over at least this time."""
MARGIN = 3
"""A step up is proven when the deliveries beyond the proven rate exceed ``MARGIN * (saved + 1)``: a burst allowance
may account for fewer."""
STRICT, STRICT_PROOF_REQUESTS = 1, 4
"""Beacon is strict if it delivered at most ``STRICT`` requests between two 429s. Fewer requests prove a rate then."""
LONGEST_PROOF_SECONDS = 30.0
"""Deliveries at a rate for so long prove it, however large the burst allowance may be."""
IN_USE = 0.85
"""Share of the rate that must have been used for the deliveries to say anything about it."""
HOLD_SECONDS, HOLD_MAX_SECONDS = 15.0, 120.0
"""How long a found rate is held before a higher one is tried: first, and at most. The latter is about how late a limit
that was lifted is noticed; each try in vain costs about a second."""
LONGEST_STEP = 2.0
"""Largest factor by which a rate is raised or lowered in one step."""
PAUSE_SECONDS = 1.0
"""Approximate cost of a 429. A held rate that is refused after n times this long is lowered by 1/n at most."""
LEAST_RATE = 1.0
"""Requests a second. Below it the pauses that the 429s ask for limit the rate anyway, and erratic 429s must not stop a
lane."""
BURST_SECONDS = 0.05
"""Requests that could not begin when they were due may begin together, as far as they fall into this time."""


@dataclass(frozen=True, slots=True)
class Pace:
    """State of the rate limit of one lane. Rates are in requests a second, times in seconds of one monotonic clock."""

    rate: float = math.inf
    """The rate that is allowed now; infinite: no limit is known."""
    proven: float = 0.0
    """The highest rate at which everything was delivered; 0: none yet."""
    refused: float = math.inf
    """The lowest rate that met a 429; infinite: none that still counts."""
    since: float = -math.inf
    """When this rate was set; once ``begun``, when the first request left at it."""
    begun: bool = False
    """A request has left at this rate."""
    taken: int = 0
    """Requests delivered at this rate."""
    streak: int = 0
    """Requests delivered since the last 429, at any rate."""
    saved: float = math.inf
    """The shortest streak that a 429 has ended: an upper bound of the burst that beacon allows after a pause."""
    usual: float = math.inf
    """Usual latency in seconds: a faster answer replaces it, a slower one moves it by an eighth of the difference."""
    step: float = CLOSE
    """Factor of the next step up or down."""
    hold: float = HOLD_SECONDS
    """How long the found rate is held before a higher one is tried."""
    next_at: float = -math.inf
    """When the next request may begin."""

    def wait(self, now: float) -> float:
        """Seconds until a request may begin."""
        return max(0.0, self.next_at - now)

    def room(self, now: float, most: int) -> int:
        """How many requests may begin now; at most ``most``."""
        if not self.limited:
            return most
        if now < self.next_at:
            return 0
        if self.held and not self.begun:  # two at once would use up the burst that a late request needs
            return min(most, 1)
        return min(most, 1 + int(min(now - self.next_at, BURST_SECONDS) * self.rate))

    @property
    def limited(self) -> bool:
        return self.rate < math.inf

    @property
    def strict(self) -> bool:
        """Beacon allows no burst after a pause."""
        return self.saved <= STRICT

    @property
    def held(self) -> bool:
        """The search is over: ``rate`` is the proven one."""
        return self.proven > 0 and self.refused <= CLOSE * self.proven


def left(pace: Pace, now: float, requests: int) -> Pace:
    """The pace after so many ``requests`` have begun."""
    if not pace.limited:
        return pace
    next_at = max(pace.next_at + requests / pace.rate, now + 1 / pace.rate)
    return replace(pace, next_at=next_at, begun=True, since=pace.since if pace.begun else now)


def after(pace: Pace, receipt: Receipt, *, left_at: float, now: float) -> Pace:
    """The pace after one answer. The answer to a request that left before this rate was set changes nothing."""
    if left_at < pace.since:
        return pace
    if receipt.status == TOO_MANY_REQUESTS:
        return _refused(pace, now)
    if receipt.verdict is Verdict.DELIVERED:
        pace = _timed(pace, left_at, now)
        return _taken(replace(pace, taken=pace.taken + 1, streak=pace.streak + 1), left_at, now)
    return pace


def _timed(pace: Pace, left_at: float, now: float) -> Pace:
    """Update the usual latency.

    A late answer may mean that the request reached beacon late. A strict beacon measures the distance to the next
    request from that arrival, so the next one is delayed accordingly.
    """
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
    refused = pace.rate if pace.step == LONGEST_STEP else CLOSE * pace.proven  # a small step up: hold the proven rate
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
    """Whether the deliveries at this rate prove it, ``seconds`` after the first request at it."""
    beyond = pace.taken - 1 - pace.proven * seconds
    if pace.refused == math.inf and seconds < LONGEST_PROOF_SECONDS and beyond <= MARGIN * (pace.saved + 1):
        return False  # a little above the limit the burst allowance lasts for a while
    if pace.strict and not pace.held:
        return pace.taken >= STRICT_PROOF_REQUESTS
    return pace.taken >= PROOF_REQUESTS and seconds >= PROOF_SECONDS


def _real(pace: Pace, left_at: float) -> float:
    """The rate that is proven, in requests a second.

    Requests leave a little late, never early, so their real rate is below the intended one. A strict beacon has
    accepted only the real one.
    """
    if not pace.strict or left_at <= pace.since:
        return pace.rate
    return min(pace.rate, (pace.taken - 1) / (left_at - pace.since))


def _next(pace: Pace, now: float) -> Pace:
    """The next rate to try: between the known bounds, or a step beyond the only one."""
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
