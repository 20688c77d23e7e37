"""Health of a lane: a circuit breaker, one state shared by every worker, stored in the lane's row.

    open ──k failures in a row──▶ paused(reason, next probe) ──probe delivered──▶ open
         ──Retry-After──────────▶ paused until then
         ──misconfigured, licence refused──▶ paused, re-probed with backoff
         ──everything refused──▶ the same, and what is refused meanwhile waits instead of dying
    paused(no probe): the log contradicts the ledger; only ``outbox audit --mend`` opens it
    off: switched off by configuration

While a lane is paused, one batch is in flight as a probe, and only its answer changes the state: the requests that
left before the pause carry no new information, except that an endpoint which accepts one does not refuse everything.
So an outage of a day costs a few hundred requests, a short failure with many requests in flight pauses the lane no
longer than a single failed request, and no attempt is counted for entries that were not sent.

    beacon answered, or may have      ──▶ the wait doubles, from OUTBOX_BACKOFF_BASE
    beacon was not reached at all     ──▶ it grows by a seventh, from an eighth of that, unless attempts are limited

A failed connection costs beacon nothing, so the next one is tried after about an eighth of the time that the outage has
lasted, and beacon's return is noticed after half of that on average. A beacon that answers is probed less often. So is
any beacon where the number of attempts is limited: frequent probes would use them up in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from outbox.core.backoff import Backoff, equal_jitter
from outbox.core.policy import is_due
from outbox.core.receipt import Receipt, Verdict

FAILURES_TO_OPEN_BREAKER = 3
DEAD_IN_A_ROW = 8
"""So many entries that beacon refuses one after another mean that the endpoint is broken, not the entries."""
DOUBLING = 5
"""The wait doubles in this many steps; a probe that may have reached beacon takes them all at once."""
FIRST_ANSWERED = 1 + 3 * DOUBLING
"""The step whose wait is the base of the backoff; the wait of step 1 is an eighth of it."""


class LaneState(StrEnum):
    OPEN = "open"
    PAUSED = "paused"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Health:
    """Times are in microseconds of the database's clock."""

    state: LaneState = LaneState.OPEN
    reason: str | None = None
    next_probe_at: int | None = None
    """While paused: when the next probe may leave; None: never."""
    failures: int = 0
    """While open: failures in a row. While paused: the current step of the backoff, from 1."""
    dead_streak: int = 0
    """Entries that died in a row of a refusal."""

    @property
    def stopped(self) -> bool:
        """Paused without a probe: only an operator's mend opens the lane again."""
        return self.state is LaneState.PAUSED and self.next_probe_at is None

    @property
    def refusing(self) -> bool:
        """Paused because the endpoint refuses everything. A refused entry waits instead of dying."""
        return self.state is LaneState.PAUSED and self.dead_streak >= DEAD_IN_A_ROW

    @property
    def one_death_short(self) -> bool:
        """One more death would mean that the endpoint refuses everything."""
        return self.dead_streak + 1 >= DEAD_IN_A_ROW

    @property
    def fresh_first(self) -> bool:
        """Whether the next probe takes new entries.

        If the entries that were refused are themselves at fault, probing with them alone would pause the lane for ever.
        """
        return self.refusing and self.failures // DOUBLING % 2 == 0

    def may_send(self, now: int, max_pause: int) -> bool:
        """Whether the lane is open or a probe is due.

        A probe more than ``max_pause`` µs ahead counts as due: the clock was set back.
        """
        if self.state is LaneState.OPEN:
            return True
        if self.state is LaneState.OFF or self.next_probe_at is None:
            return False
        return is_due(self.next_probe_at, now, max_pause)


def probing(health: Health, now: int, lease: int) -> Health:
    """Health once a probe has left: the next one waits for its answer, or for the end of its ``lease`` (µs)."""
    return health if health.state is LaneState.OPEN else replace(health, next_probe_at=now + lease)


def after(health: Health, receipt: Receipt, *, died: bool, probe: bool, now: int, backoff: Backoff) -> Health:
    """Health after one answer. ``probe``: the request was the probe of a paused lane.

    ``died``: the answer made a batch of one dead. A lane that is ``one_death_short`` does not count the death if the
    endpoint accepted another part of the batch that was halved.
    """
    if health.state is LaneState.OFF or health.stopped:
        return health
    if health.refusing and receipt.verdict is Verdict.DELIVERED:
        return Health()
    if health.state is LaneState.PAUSED and not probe:
        return _held(health, now, receipt.retry_after_seconds)
    match receipt.verdict:
        case Verdict.DELIVERED:
            return Health()
        case Verdict.INTERRUPTED:
            return health if health.state is LaneState.OPEN else replace(health, next_probe_at=now)
        case Verdict.REFUSED | Verdict.TOO_LARGE:
            return _after_refusal(health, receipt, died, now, backoff)
        case Verdict.MISCONFIGURED | Verdict.UNAUTHORIZED:
            return _paused(health, receipt, now, backoff)
        case Verdict.UNAVAILABLE | Verdict.AMBIGUOUS:  # pragma: no branch - mypy proves that no verdict is left
            failures = health.failures + 1
            passing = receipt.retry_after_seconds is None and failures < FAILURES_TO_OPEN_BREAKER
            if health.state is LaneState.OPEN and passing:
                return replace(health, failures=failures)
            return _paused(health, receipt, now, backoff)


def _held(health: Health, now: int, retry_after_seconds: float | None) -> Health:
    """Health after the answer to a request from before the pause: only its Retry-After counts, unless ``refusing``."""
    if retry_after_seconds is None or health.next_probe_at is None:
        return health
    return replace(health, next_probe_at=max(health.next_probe_at, now + _micros(retry_after_seconds)))


def _after_refusal(health: Health, receipt: Receipt, died: bool, now: int, backoff: Backoff) -> Health:
    """Health after a refusal. Beacon is up, but an endpoint that refuses every entry must not make them all dead.

    An endpoint that has accepted a part of an entry does not refuse everything.
    """
    streak = 0 if receipt.taken_in_part else health.dead_streak + died
    if streak < DEAD_IN_A_ROW:
        return Health(dead_streak=streak)
    reason = f"endpoint refuses everything: {streak} entries in a row, last: {receipt.reason}"
    return replace(_paused(health, receipt, now, backoff), reason=reason, dead_streak=streak)


def _paused(health: Health, receipt: Receipt, now: int, backoff: Backoff) -> Health:
    begun = 0 if health.state is LaneState.OPEN else health.failures  # a new pause begins at the first step
    soon = receipt.unreached and not backoff.attempts_limited
    step = begun + 1 if soon else max(begun + DOUBLING, FIRST_ANSWERED)
    wait = max(_probe_wait(step, backoff), receipt.retry_after_seconds or 0.0)
    return Health(LaneState.PAUSED, receipt.reason, now + _micros(wait), step, health.dead_streak)


def _probe_wait(step: int, backoff: Backoff) -> float:
    """Seconds until the next probe: half to all of what the ``step`` allows."""
    return equal_jitter(1 + (step - 1) / DOUBLING, backoff.base / 8, backoff.maximum, backoff.draw)


def _micros(seconds: float) -> int:
    return int(seconds * 1_000_000)
