"""Adaptive concurrency limit: as many requests of a lane in flight as beacon answers without slowing down.

    the limit was reached, latency near its mean ──▶ one more for each round of answers
    no answer, 429, 5xx, or latency far above    ──▶ nine tenths of the limit
    the probe of a pause is answered             ──▶ two, then one more for each answer up to nine tenths of the limit
                                                     before the pause

A probe is the only request in flight, so its failure says nothing about how many beacon can take. After an answered
probe beacon may be a different server than before the outage: its latency is learned anew. Up to the limit that was
known to be good the limit doubles with each round of answers (TCP slow start), so that many workers together do not
overload a beacon that has just come back.

The rules are those of Vector's adaptive request concurrency (AIMD); mean and deviation are smoothed as in RFC 6298.
Each worker has its own limit and finds its share of beacon's capacity as a TCP connection does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from outbox.core.receipt import Receipt, Verdict

DECREASE = 0.9
FAR_DEVIATIONS = 2.5
"""Latency this many deviations above the mean counts as overload."""
LEAST_DEVIATION = 0.2
"""Lower bound of the deviation, as a share of the mean: on a fast connection the measured one is noise."""
AT_ONCE_SECONDS, AT_ONCE_ANSWERS = 0.005, 8
"""This many answers in a row within this time mean that beacon answers at once."""
_MEAN_GAIN, _DEVIATION_GAIN = 1 / 8, 1 / 4


@dataclass(frozen=True, slots=True)
class Concurrency:
    """State of the limit. Latencies are in seconds; ``limit`` is fractional, ``allowed`` is its whole part."""

    limit: float = 1.0
    mean: float | None = None
    deviation: float = 0.0
    proven: float = 1.0
    """The limit at the last answer whose latency was not far above the mean."""
    known: float = 0.0
    """Slow-start threshold: below it the limit grows by one for each answer."""
    quick: int = 0
    """Answers in a row within ``AT_ONCE_SECONDS``, counted up to ``AT_ONCE_ANSWERS``."""

    @property
    def allowed(self) -> int:
        return int(self.limit)

    @property
    def at_once(self) -> bool:
        """Beacon answers so fast that the caller may wait for the answer in its own thread. One late or missing answer
        ends this."""
        return self.quick == AT_ONCE_ANSWERS


def after(
    state: Concurrency, receipt: Receipt, *, seconds: float, reached: bool, maximum: int, probe: bool = False
) -> Concurrency:
    """The limit after an answer that took ``seconds``. ``reached``: as many requests were in flight as were allowed."""
    if receipt.verdict is Verdict.INTERRUPTED:
        return state
    none = receipt.verdict in (Verdict.UNAVAILABLE, Verdict.AMBIGUOUS)
    quick = 0 if none or seconds > AT_ONCE_SECONDS else min(state.quick + 1, AT_ONCE_ANSWERS)
    state = replace(state, quick=quick)
    if none:
        return state if probe else _fewer(state)
    if probe:
        known = DECREASE * state.proven
        return _measured(Concurrency(min(2.0, maximum), proven=state.proven, known=known, quick=quick), seconds)
    near, far = _bounds(state)
    measured = _measured(state, seconds)
    if seconds > far:
        return _fewer(measured)
    measured = replace(measured, proven=state.limit)
    if reached and seconds <= near:
        more = 1.0 if state.limit < state.known else 1 / state.limit
        return replace(measured, limit=min(float(maximum), state.limit + more))
    return measured


def _fewer(state: Concurrency) -> Concurrency:
    return replace(state, limit=max(1.0, state.limit * DECREASE), known=0.0)


def _bounds(state: Concurrency) -> tuple[float, float]:
    """The latency up to which an answer is near the mean, and the one above which it is far from it."""
    if state.mean is None:
        return math.inf, math.inf
    deviation = max(state.deviation, LEAST_DEVIATION * state.mean)
    return state.mean + deviation, state.mean + FAR_DEVIATIONS * deviation


def _measured(state: Concurrency, seconds: float) -> Concurrency:
    if state.mean is None:
        return replace(state, mean=seconds, deviation=seconds / 2)
    error = seconds - state.mean
    deviation = state.deviation + _DEVIATION_GAIN * (abs(error) - state.deviation)
    return replace(state, mean=state.mean + _MEAN_GAIN * error, deviation=deviation)
